<?php

namespace Claviger\Symfony;

use Symfony\Component\DependencyInjection\EnvVarProcessorInterface;

/** Makes %env(claviger_random:ANYTHING)% a random text of this start alone. */
final class RandomSecret implements EnvVarProcessorInterface
{
    private static string $secret;

    public function getEnv(string $prefix, string $name, \Closure $getEnv): string
    {
        return self::$secret ??= bin2hex(random_bytes(32));
    }

    public static function getProvidedTypes(): array
    {
        return ['claviger_random' => 'string'];
    }
}
