<?php

namespace Claviger\Symfony;

use Claviger\Error;
use Symfony\Component\DependencyInjection\Compiler\PassConfig;
use Symfony\Component\DependencyInjection\ContainerBuilder;
use Symfony\Component\HttpKernel\Bundle\Bundle;

/**
 * Puts custody in the place of kernel.secret. It refuses to start while
 * APP_SECRET is still there, and to build a container with another secret than
 * a random one of each start.
 */
final class ClavigerBundle extends Bundle
{
    public function build(ContainerBuilder $container): void
    {
        $container->register(RandomSecret::class)->addTag('container.env_var_processor');
        $container->register(KeepCookie::class)->addTag('kernel.event_listener', ['event' => 'kernel.exception', 'priority' => 100]);
        // Definitions are whole by then, and nothing has gone yet.
        $container->addCompilerPass(new CustodyPass(), PassConfig::TYPE_BEFORE_REMOVING);
    }

    public function boot(): void
    {
        if (!empty(getenv('APP_SECRET')) || !empty($_ENV['APP_SECRET']) || !empty($_SERVER['APP_SECRET'])) {
            throw new Error('invalid', 'APP_SECRET is still configured here', 'remove it everywhere: the key is in custody');
        }
    }
}
