<?php

/** What becomes of services that take kernel.secret, and of others. */

use Claviger\Symfony\CustodyPass;
use Symfony\Component\DependencyInjection\ContainerBuilder;
use Symfony\Component\HttpKernel\UriSigner;
use Symfony\Component\Security\Http\RateLimiter\DefaultLoginRateLimiter;

require 'Symfony/Bundle/FrameworkBundle/autoload.php';
require 'Symfony/Bundle/SecurityBundle/autoload.php';
require __DIR__.'/../server.php';

$container = new ContainerBuilder();
$secret = '%env(claviger_random:APP_SECRET)%';
$container->setParameter('kernel.secret', $secret);
$container->setParameter('claviger.key', 'dev/shop/symfony');
$container->register('signer', UriSigner::class)->setArguments([$secret]);
$container->register('own', UriSigner::class)->setArguments(['a secret of its own']);
$container->register('throttle', DefaultLoginRateLimiter::class)->setArguments([1, 2, $secret]);
$container->register('other', stdClass::class)->setArguments([$secret]);
(new CustodyPass())->process($container);
foreach (['signer', 'own', 'throttle', 'other'] as $id) {
    $definition = $container->getDefinition($id);
    $arguments = $definition->getArguments();
    $what = match (end($arguments)) {
        $secret => 'random',
        'a secret of its own' => 'its own',
        default => preg_match('/^[0-9a-f]{64}$/', end($arguments)) ? 'of this container' : 'something else',
    };
    echo "$id: {$definition->getClass()}, $what, ", count($definition->getMethodCalls()), "\n";
}
