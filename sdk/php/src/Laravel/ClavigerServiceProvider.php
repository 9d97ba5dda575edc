<?php

namespace Claviger\Laravel;

use Claviger\Error;
use Claviger\Key;
use Illuminate\Auth\SessionGuard as BaseSessionGuard;
use Illuminate\Cookie\Middleware\EncryptCookies as BaseEncryptCookies;
use Illuminate\Support\ServiceProvider;
use Laravel\SerializableClosure\Serializers\Signed;

/**
 * Puts custody in the place of APP_KEY. It refuses to start while APP_KEY is
 * still configured, and makes app.key a random one at each start: what is not
 * covered here is then refused, and not signed with a known key.
 */
final class ClavigerServiceProvider extends ServiceProvider
{
    public function register(): void
    {
        $config = $this->app['config'];
        $this->mergeConfigFrom(__DIR__.'/config.php', 'claviger');
        $this->refuseSecrets($config);
        $random = 'base64:'.base64_encode(random_bytes(32));
        // The second tells a later start, which finds both in the cache of the
        // configuration, that this is not a secret of the application.
        $config->set(['app.key' => $random, 'claviger.random' => $random]);

        $this->app->singleton('encrypter', function ($app) {
            $settings = $app['config']['claviger'];
            if (empty($settings['key'])) {
                throw new Error('invalid', 'no key is named', 'set CLAVIGER_KEY to the name of the key in custody');
            }
            $key = new Key($settings['key'], $settings['socket'], (float) $settings['timeout']);

            return new Encrypter($key, $app['config']['app.cipher']);
        });
        $this->app->extend('url', fn ($url, $app) => UrlGenerator::instead($url, $app['encrypter'], (bool) $app['config']['claviger.prefixed']));
        $this->app->bind(BaseEncryptCookies::class, EncryptCookies::class);
        if (method_exists(BaseSessionGuard::class, 'hashPasswordForCookie')) {
            $this->app->extend('auth', fn ($auth) => $auth->extend('session', fn ($app, $name, $config) => SessionGuard::instead(
                $auth->createSessionDriver($name, $config), $app, (bool) $app['config']['claviger.prefixed'],
            )));
        }
        if (class_exists(Signed::class)) {
            Signed::$signer = new ClosureSigner(fn () => $this->app['encrypter']);
        }
    }

    private function refuseSecrets($config): void
    {
        $found = match (true) {
            !empty($config['app.key']) && $config['app.key'] !== $config['claviger.random'] => 'app.key',
            !empty($config['app.previous_keys']) => 'app.previous_keys',
            default => $this->inEnvironment(),
        };
        if ($found !== '') {
            throw new Error('invalid', "$found is still configured here", 'remove it everywhere: the key is in custody');
        }
    }

    /** Returns where a key is in the environment, or in the file that fills it. */
    private function inEnvironment(): string
    {
        foreach (['APP_KEY', 'APP_PREVIOUS_KEYS'] as $name) {
            if (!empty(getenv($name)) || !empty($_ENV[$name]) || !empty($_SERVER[$name])) {
                return $name;
            }
            $file = $this->app->environmentFilePath();
            $text = is_file($file) ? file_get_contents($file) : '';
            if (preg_match("/^\s*(?:export\s+)?$name\s*=[ \t]*[^\s#]/m", $text)) {
                return "$name in $file";
            }
        }

        return '';
    }
}
