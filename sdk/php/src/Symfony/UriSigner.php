<?php

namespace Claviger\Symfony;

use Claviger\Error;
use Claviger\Key;
use Symfony\Component\HttpFoundation\Exception\ExpiredSignedUriException;
use Symfony\Component\HttpFoundation\Exception\UnsignedUriException;
use Symfony\Component\HttpFoundation\Exception\UnverifiedSignedUriException;
use Symfony\Component\HttpFoundation\Request;
use Symfony\Component\HttpFoundation\UriSigner as Since64;
use Symfony\Component\HttpKernel\UriSigner as Until63;

class_alias(class_exists(Since64::class) ? Since64::class : Until63::class, __NAMESPACE__.'\BaseUriSigner');

/** Symfony's signer of URIs with its hashes made and checked in custody. */
class UriSigner extends BaseUriSigner
{
    private Key $key;

    /** @param string $secret of this start alone */
    public function __construct(
        #[\SensitiveParameter] string $secret,
        private readonly string $parameterOfHash = '_hash',
        private readonly string $parameterOfExpiration = '_expiration',
        private readonly ?object $now = null, // a clock, since Symfony 7.3
    ) {
        parent::__construct($secret, ...array_slice(func_get_args(), 1));
    }

    public function setKey(Key $key): void
    {
        $this->key = $key;
    }

    public function sign(string $uri, \DateTimeInterface|\DateInterval|int|null $expiration = null): string
    {
        // The parent signs with the secret of this start: what it was that it
        // signed, and how it spells a hash, is told by what it makes.
        [$url, $params] = self::split(parent::sign($uri, $expiration));
        $safe = strlen($params[$this->parameterOfHash]) === 43;
        unset($params[$this->parameterOfHash]);
        $params[$this->parameterOfHash] = $this->key->protect('symfony.uri-hash', '', [
            'over' => self::build($url, $params),
            'encoding' => $safe ? 'base64url' : 'base64',
        ]);

        return self::build($url, $params);
    }

    public function check(string $uri): bool
    {
        return $this->fault($uri) === '';
    }

    public function checkRequest(Request $request): bool
    {
        return $this->check(self::text($request));
    }

    /** As Symfony has it since 7.3. */
    public function verify(Request|string $uri): void
    {
        match ($this->fault($uri instanceof Request ? self::text($uri) : $uri)) {
            '' => null,
            'expired' => throw new ExpiredSignedUriException(),
            'unsigned' => throw new UnsignedUriException(),
            'wrong' => throw new UnverifiedSignedUriException(),
        };
    }

    private function fault(string $uri): string
    {
        [$url, $params] = self::split($uri);
        $hash = $params[$this->parameterOfHash] ?? '';
        if (!is_string($hash) || $hash === '') {
            return 'unsigned';
        }
        unset($params[$this->parameterOfHash]);
        $hash = strtr(rtrim($hash, '='), '-_', '+/').'='; // one spelling for those of all versions
        if (!preg_match('~^[A-Za-z0-9+/]{43}=$~D', $hash) || !$this->key->unprotect('symfony.uri-hash', $hash, ['over' => self::build($url, $params)])) {
            return 'wrong';
        }
        $end = $params[$this->parameterOfExpiration] ?? null;
        if ($end === null || (new \ReflectionMethod(BaseUriSigner::class, 'sign'))->getNumberOfParameters() === 1) {
            return ''; // no version before 7.1 knows what expiration is
        }

        return ($this->now?->now()->getTimestamp() ?? time()) < $end ? '' : 'expired';
    }

    private static function text(Request $request): string
    {
        $query = (string) $request->server->get('QUERY_STRING');

        return $request->getSchemeAndHttpHost().$request->getBaseUrl().$request->getPathInfo().($query === '' ? '' : "?$query");
    }

    /** @return array{array, array} the parts of a URI, and its parameters as PHP reads them */
    private static function split(string $uri): array
    {
        $url = parse_url($uri);
        if ($url === false) {
            throw new Error('invalid', 'the URI cannot be read', 'give one with a scheme and a host, or a path');
        }
        parse_str($url['query'] ?? '', $params);

        return [$url, $params];
    }

    /** Puts a URI together as Symfony signs it: its parameters in order. */
    private static function build(array $url, array $params): string
    {
        ksort($params, SORT_STRING);
        $query = http_build_query($params, '', '&');
        $user = ($url['user'] ?? '').(isset($url['pass']) ? ":{$url['pass']}" : '');

        return (isset($url['scheme']) ? "{$url['scheme']}://" : '')
            .($user === '' ? '' : "$user@").($url['host'] ?? '').(isset($url['port']) ? ":{$url['port']}" : '')
            .($url['path'] ?? '').($query === '' ? '' : "?$query").(isset($url['fragment']) ? "#{$url['fragment']}" : '');
    }
}
