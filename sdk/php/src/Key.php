<?php

namespace Claviger;

/**
 * A machine key that is in custody, by its name. It speaks to the server's local
 * socket; the kernel tells the server which uid calls. No key material ever
 * reaches this process. Every way in which custody can be away is an Error,
 * never a token that counts as wrong: a framework that takes it for a bad
 * signature would log its users out.
 */
final class Key
{
    public const SOCKET = '/run/claviger/claviger.sock';

    private const BYTES = ['over', 'header', 'modifier'];

    private ?Connection $connection = null;
    private int $pid = 0; // whose the connection is

    /**
     * @param string $path    of the server's local socket
     * @param float  $timeout in seconds, of one call with everything in it
     */
    public function __construct(
        public readonly string $name,
        private readonly string $path = self::SOCKET,
        private readonly float $timeout = 2.0,
    ) {
    }

    /**
     * Returns the token of a payload. The parameters are those of the format, as
     * the API names them; issued and expires are in seconds since 1970.
     *
     * @throws Error
     */
    public function protect(string $format, #[\SensitiveParameter] string $payload, #[\SensitiveParameter] array $params = []): string
    {
        $body = $this->body($format, $params) + ['payloads' => [base64_encode($payload)]];

        return $this->call('Protect', $body, fn (array $answer) => self::bytes($answer['tokens'][0]));
    }

    /**
     * Returns the token's payload, or null when it is not valid, for whatever
     * reason. One that has ended is not valid unless $expired is given.
     *
     * @throws Error
     */
    public function unprotect(string $format, #[\SensitiveParameter] string $token, #[\SensitiveParameter] array $params = [], bool $expired = false): ?Token
    {
        $body = $this->body($format, $params) + ['tokens' => [base64_encode($token)], 'expired' => $expired];

        return $this->call('Unprotect', $body, function (array $answer) {
            $item = $answer['items'][0] ?? null;
            if (!is_array($item)) {
                throw new \TypeError('no item');
            }

            return ($item['ok'] ?? false) === true // left out where it is false
                ? new Token(self::bytes($item['payload'] ?? ''), $item['version'], $item['renew'] ?? false)
                : null;
        });
    }

    private function body(string $format, #[\SensitiveParameter] array $params): array
    {
        foreach ($params as $name => &$value) {
            if (in_array($name, self::BYTES, true)) {
                $value = base64_encode($value);
            } elseif ($name === 'properties') {
                $value = array_map('base64_encode', $value);
            } elseif ($name === 'issued' || $name === 'expires') {
                $value = gmdate('Y-m-d\TH:i:s\Z', $value);
            }
        }

        return ['key' => $this->name, 'format' => $format, 'params' => (object) $params];
    }

    private function call(string $method, #[\SensitiveParameter] array $body, \Closure $read): string|Token|null
    {
        try {
            $text = json_encode($body, JSON_THROW_ON_ERROR | JSON_UNESCAPED_SLASHES);
        } catch (\JsonException $e) {
            throw new Error('invalid', "custody was not asked for {$this->name}: a parameter is no UTF-8", '', $e);
        }
        [$status, $headers, $text] = $this->exchange($method, $text);
        try {
            $answer = json_decode($text, true, 16, JSON_THROW_ON_ERROR);
            if ($status === 200) {
                return $read($answer);
            }
            $reason = $headers['claviger-code'] ?? $answer['code'] ?? 'internal';
            $message = "custody answered for {$this->name}: ".($answer['message'] ?? $reason);
        } catch (\JsonException|\TypeError|\ErrorException $e) { // a framework makes warnings ErrorExceptions
            throw new Unavailable('unavailable', "what answers at {$this->path} is not Claviger", '', $e);
        }
        $class = in_array($reason, ['unavailable', 'stale', 'deadline'], true) ? Unavailable::class : Error::class;
        throw new $class($reason, $message, $headers['claviger-hint'] ?? '');
    }

    /** @return array{int, array<string, string>, string} status, headers and body */
    private function exchange(string $method, #[\SensitiveParameter] string $body): array
    {
        $deadline = hrtime(true) + (int) ($this->timeout * 1e9);
        $request = "POST /claviger.v1.StateService/$method HTTP/1.1\r\nHost: claviger\r\n"
            ."Content-Type: application/json\r\nContent-Length: ".strlen($body)."\r\n\r\n".$body;
        while (true) {
            // A fork's copy is its parent's; one that has something to say was closed, or is out of step.
            $reused = $this->connection !== null && $this->pid === getmypid() && $this->connection->isQuiet();
            // Whoever calls while this call waits, in another fiber, has a connection of its own.
            [$connection, $this->connection] = [$reused ? $this->connection : null, null];
            try {
                $connection ??= new Connection($this->path, $deadline);
                $answer = $connection->exchange($request, $deadline);
                if (($answer[1]['connection'] ?? '') !== 'close') {
                    [$this->connection, $this->pid] = [$connection, getmypid()];
                }

                return $answer;
            } catch (Unanswered $e) {
                // The server closes connections that are idle: a kept one may be
                // gone, a new one not. A call may be sent twice without harm.
                if ($reused && hrtime(true) < $deadline) {
                    continue;
                }
                throw new Unavailable(
                    'unavailable',
                    "custody does not answer at {$this->path} ({$e->getMessage()})",
                    'start claviger, or see that this process may reach its socket; nothing was signed or checked',
                    $e,
                );
            }
        }
    }

    private static function bytes(#[\SensitiveParameter] string $base64): string
    {
        $bytes = base64_decode($base64, true);

        return $bytes === false ? throw new \TypeError('no base64') : $bytes;
    }
}
