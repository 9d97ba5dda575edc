<?php

namespace Claviger\Symfony;

use Claviger\Error;
use Claviger\Key;
use Symfony\Component\DependencyInjection\Compiler\CompilerPassInterface;
use Symfony\Component\DependencyInjection\ContainerBuilder;
use Symfony\Component\DependencyInjection\Definition;
use Symfony\Component\DependencyInjection\Reference;
use Symfony\Component\HttpFoundation\UriSigner as UriSignerSince64;
use Symfony\Component\HttpKernel\UriSigner as UriSignerUntil63;
use Symfony\Component\Security\Core\Signature\SignatureHasher as BaseSignatureHasher;
use Symfony\Component\Security\Http\RateLimiter\DefaultLoginRateLimiter;

/** Gives to custody whatever signs with kernel.secret. Services with a secret of their own keep it. */
final class CustodyPass implements CompilerPassInterface
{
    private const INSTEAD = [
        UriSignerUntil63::class => UriSigner::class,
        UriSignerSince64::class => UriSigner::class,
        BaseSignatureHasher::class => SignatureHasher::class,
    ];

    public function process(ContainerBuilder $container): void
    {
        $secret = $container->hasParameter('kernel.secret') ? $container->getParameter('kernel.secret') : '';
        if (!preg_match('/^%env\(claviger_random:\w+\)%$/D', (string) $container->resolveEnvPlaceholders($secret))) {
            throw new Error('invalid', 'framework.secret is still a secret', "set it to '%env(claviger_random:APP_SECRET)%'");
        }
        if (!$container->hasParameter('claviger.key')) {
            throw new Error('invalid', 'no key is named', 'set the parameter claviger.key to the name of the key in custody');
        }
        $container->setDefinition(Key::class, new Definition(Key::class, [
            $container->getParameter('claviger.key'),
            $container->hasParameter('claviger.socket') ? $container->getParameter('claviger.socket') : Key::SOCKET,
            $container->hasParameter('claviger.timeout') ? $container->getParameter('claviger.timeout') : 2.0,
        ]));
        foreach ($container->getDefinitions() as $definition) {
            $at = array_search($secret, $definition->getArguments(), true);
            if ($at === false) {
                continue;
            }
            $class = ltrim((string) $definition->getClass(), '\\');
            if (isset(self::INSTEAD[$class])) {
                $definition->setClass(self::INSTEAD[$class])->addMethodCall('setKey', [new Reference(Key::class)]);
            } elseif ($class === DefaultLoginRateLimiter::class) {
                // It hides who logs in from whoever reads the cache of its counts,
                // which would begin anew with each start: one of this container.
                $definition->setArgument($at, bin2hex(random_bytes(32)));
            }
        }
    }
}
