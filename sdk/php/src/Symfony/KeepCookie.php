<?php

namespace Claviger\Symfony;

use Claviger\Error;
use Symfony\Component\HttpKernel\Event\ExceptionEvent;
use Symfony\Component\Security\Http\RememberMe\ResponseListener;

/**
 * Leaves a visitor's remember-me cookie where it is when custody was away: a
 * login clears it first, and the answer would say so.
 */
final class KeepCookie
{
    public function __invoke(ExceptionEvent $event): void
    {
        for ($e = $event->getThrowable(); $e !== null; $e = $e->getPrevious()) {
            if ($e instanceof Error && class_exists(ResponseListener::class)) {
                $event->getRequest()->attributes->remove(ResponseListener::COOKIE_ATTR_NAME);
            }
        }
    }
}
