<?php

namespace Claviger\Laravel;

use Claviger\Error;
use Claviger\Key;
use Claviger\Token;
use Illuminate\Contracts\Encryption\DecryptException;
use Illuminate\Contracts\Encryption\Encrypter as EncrypterContract;
use Illuminate\Contracts\Encryption\StringEncrypter;

/** Encrypts, decrypts and signs with an APP_KEY that is in custody. */
final class Encrypter implements EncrypterContract, StringEncrypter
{
    private readonly array $cipher;

    /** @param string $cipher as config('app.cipher') has it */
    public function __construct(private readonly Key $key, string $cipher)
    {
        $this->cipher = match (strtolower($cipher)) {
            'aes-128-cbc', 'aes-256-cbc' => ['cipher' => 'cbc'],
            'aes-128-gcm', 'aes-256-gcm' => ['cipher' => 'gcm'],
            default => throw new Error('unsupported', "there is no cipher $cipher", 'set app.cipher to AES-256-CBC or AES-256-GCM'),
        };
    }

    public function encrypt(#[\SensitiveParameter] $value, $serialize = true)
    {
        return $this->key->protect('laravel.encrypted', $serialize ? serialize($value) : $value, $this->cipher);
    }

    public function encryptString(#[\SensitiveParameter] $value)
    {
        return $this->encrypt($value, false);
    }

    public function decrypt(#[\SensitiveParameter] $payload, $unserialize = true)
    {
        $plain = $this->open($payload)?->payload ?? throw new DecryptException('The payload is invalid.');

        return $unserialize ? unserialize($plain) : $plain;
    }

    public function decryptString(#[\SensitiveParameter] $payload)
    {
        return $this->decrypt($payload, false);
    }

    /** Returns a cookie as EncryptCookies makes it, bound to its name. */
    public function sealCookie(string $name, #[\SensitiveParameter] string $value): string
    {
        return $this->key->protect('laravel.encrypted', $value, $this->cipher + ['name' => $name]);
    }

    /** Opens a cookie of that name, or returns null when it is not valid. */
    public function openCookie(string $name, #[\SensitiveParameter] string $cookie): ?Token
    {
        // A browser may send any name; these were never made.
        return strlen($name) > 500 || !preg_match('//u', $name) ? null : $this->open($cookie, ['name' => $name]);
    }

    /** Returns a URL with its signature as the last parameter. */
    public function signURL(#[\SensitiveParameter] string $url, bool $prefixed): string
    {
        return $this->key->protect('laravel.url', $url, self::text($prefixed));
    }

    /** Whether a URL that ends in its signature is signed; its age is for Laravel to check. */
    public function signedURL(#[\SensitiveParameter] string $url, bool $prefixed): bool
    {
        return $this->key->unprotect('laravel.url', $url, self::text($prefixed), true) !== null;
    }

    /** Returns the hash of a password's hash, under the key of URLs, as SessionGuard::hashPasswordForCookie has it. */
    public function hashPassword(#[\SensitiveParameter] string $hash, bool $prefixed): string
    {
        return substr($this->signURL($hash, $prefixed), -64);
    }

    /** Returns the token if mac is the hash of a password's hash, or else null. */
    public function hashedPassword(#[\SensitiveParameter] string $hash, #[\SensitiveParameter] string $mac, bool $prefixed): ?Token
    {
        return $this->key->unprotect('laravel.url', $hash.(str_contains($hash, '?') ? '&' : '?').'signature='.$mac, self::text($prefixed), true);
    }

    /** Returns the signature of a closure that was serialised. */
    public function signClosure(#[\SensitiveParameter] string $serialized): string
    {
        return $this->key->protect('laravel.closure', '', ['over' => $serialized]);
    }

    public function signedClosure(#[\SensitiveParameter] string $serialized, string $hash): bool
    {
        return $this->key->unprotect('laravel.closure', $hash, ['over' => $serialized]) !== null;
    }

    /** @throws Error always: the key is in custody */
    public function getKey()
    {
        throw new Error(
            'unsupported',
            'APP_KEY is in custody, and something asked for its bytes',
            'let EncryptCookies extend Claviger\Laravel\EncryptCookies; give a package that signs by itself a key of its own',
        );
    }

    /** As getKey, which Laravel 11 asks by this name. */
    public function getAllKeys()
    {
        $this->getKey();
    }

    /** As getKey, which Laravel 11 asks by this name. */
    public function getPreviousKeys()
    {
        $this->getKey();
    }

    private function open(#[\SensitiveParameter] mixed $payload, array $params = []): ?Token
    {
        // Cookies of others come with every request. What Laravel made begins
        // as {"iv": does in base64; nothing else needs to be asked about.
        return is_string($payload) && str_starts_with($payload, 'eyJpdiI6')
            ? $this->key->unprotect('laravel.encrypted', $payload, $this->cipher + $params)
            : null;
    }

    /** The key of URLs is the text of APP_KEY, which has the prefix base64: or not. */
    private static function text(bool $prefixed): array
    {
        return $prefixed ? [] : ['encoding' => 'raw'];
    }
}
