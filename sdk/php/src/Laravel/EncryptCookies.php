<?php

namespace Claviger\Laravel;

use Claviger\Error;
use Claviger\Token;
use Illuminate\Cookie\Middleware\EncryptCookies as Base;

/**
 * Laravel's middleware with its cookies made and opened in custody. The prefix
 * that binds a cookie to its name is put on and taken off there.
 */
class EncryptCookies extends Base
{
    public function handle($request, \Closure $next)
    {
        $came = $this->open($request);

        return $this->seal($next($request), $came);
    }

    /** @return array<string, array{Token, string}> what was valid, by its name, with its text */
    private function open($request): array
    {
        $came = [];
        foreach ($request->cookies->all() as $name => $cookie) {
            $name = (string) $name;
            if ($this->isDisabled($name)) {
                continue;
            }
            if (is_array($cookie)) { // before Laravel 9 these were passed on as they came
                if (method_exists(Base::class, 'validateArray')) {
                    $request->cookies->set($name, $this->openAll($name, $cookie));
                }
                continue;
            }
            if ($token = $this->encrypter()->openCookie($name, $cookie)) {
                $came[$name] = [$token, $cookie];
            }
            $request->cookies->set($name, $token?->payload);
        }

        return $came;
    }

    private function openAll(string $name, #[\SensitiveParameter] array $cookies): array
    {
        foreach ($cookies as $index => $cookie) {
            $cookies[$index] = is_array($cookie)
                ? $this->openAll("{$name}[$index]", $cookie)
                : $this->encrypter()->openCookie("{$name}[$index]", $cookie)?->payload;
        }

        return $cookies;
    }

    /**
     * Seals the cookies of a response. One that came with the same value goes
     * back as it came, unless a newer version of the key makes them now.
     */
    private function seal($response, #[\SensitiveParameter] array $came)
    {
        foreach ($response->headers->getCookies() as $cookie) {
            $name = $cookie->getName();
            if ($this->isDisabled($name)) {
                continue;
            }
            if (static::serialized($name)) {
                throw new Error('unsupported', "the cookie $name is serialised", 'let EncryptCookies::$serialize be false');
            }
            $value = (string) $cookie->getValue();
            [$token, $text] = $came[$name] ?? [null, ''];
            if ($token === null || $token->renew || $token->payload !== $value) {
                $text = $this->encrypter()->sealCookie($name, $value);
            }
            $response->headers->setCookie($this->duplicate($cookie, $text));
        }

        return $response;
    }

    private function encrypter(): Encrypter
    {
        return $this->encrypter instanceof Encrypter
            ? $this->encrypter
            : throw new Error('unsupported', 'the encrypter is not that of custody', 'register Claviger\Laravel\ClavigerServiceProvider');
    }
}
