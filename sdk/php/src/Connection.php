<?php

namespace Claviger;

/**
 * HTTP/1.1 over one local socket, which is kept open. After an exchange that did
 * not end, it must not be used again: the answer may still come.
 *
 * @internal
 */
final class Connection
{
    private const MAX_ANSWER = 8 << 20; // bytes; a token has at most 1 MiB

    /** @var resource */
    private $stream;
    private string $buffer = '';

    /**
     * @param int $deadline of hrtime(), in nanoseconds
     *
     * @throws Unanswered
     */
    public function __construct(string $path, int $deadline)
    {
        $stream = @stream_socket_client("unix://$path", $code, $why, self::left($deadline) / 1e9);
        if ($stream === false) {
            throw new Unanswered($why !== '' ? $why : 'it does not connect');
        }
        stream_set_blocking($stream, false);
        stream_set_read_buffer($stream, 0);
        $this->stream = $stream;
    }

    /**
     * Sends a request and returns the status, the headers by their names in
     * lower case, and the body.
     *
     * @return array{int, array<string, string>, string}
     *
     * @throws Unanswered
     */
    public function exchange(#[\SensitiveParameter] string $request, int $deadline): array
    {
        $this->send($request, $deadline);
        $lines = explode("\r\n", $this->until("\r\n\r\n", $deadline));
        if (!preg_match('~^HTTP/1\.1 (\d{3}) ~', $lines[0].' ', $found)) {
            throw new Unanswered('it does not speak HTTP');
        }
        $headers = [];
        foreach (array_slice($lines, 1) as $line) {
            [$name, $value] = explode(':', $line, 2) + [1 => ''];
            $headers[strtolower($name)] = trim($value);
        }

        return [(int) $found[1], $headers, $this->body($headers, $deadline)];
    }

    /** Whether nothing came that nobody asked for: the next request's answer would begin with it. */
    public function isQuiet(): bool
    {
        [$in, $out, $except] = [[$this->stream], [], []];

        return $this->buffer === '' && @stream_select($in, $out, $except, 0) === 0;
    }

    private function body(array $headers, int $deadline): string
    {
        if (($headers['transfer-encoding'] ?? '') !== 'chunked') {
            return $this->take($headers['content-length'] ?? '', 10, $deadline);
        }
        $body = '';
        do {
            $size = explode(';', $this->until("\r\n", $deadline))[0];
            $chunk = $this->take($size, 16, $deadline);
            $this->until("\r\n", $deadline);
            $body .= $chunk;
            $this->bound(strlen($body));
        } while ($chunk !== '');

        return $body;
    }

    private function send(#[\SensitiveParameter] string $data, int $deadline): void
    {
        while ($data !== '') {
            $n = @fwrite($this->stream, $data);
            if ($n === false) {
                throw new Unanswered('the connection was closed');
            }
            $data = substr($data, $n);
            if ($data !== '') {
                $this->wait(false, $deadline);
            }
        }
    }

    private function until(string $end, int $deadline): string
    {
        while (($at = strpos($this->buffer, $end)) === false) {
            $this->more($deadline);
        }
        $head = substr($this->buffer, 0, $at);
        $this->buffer = substr($this->buffer, $at + strlen($end));

        return $head;
    }

    private function take(string $size, int $base, int $deadline): string
    {
        if (!preg_match($base === 16 ? '/^[0-9a-fA-F]{1,7}$/' : '/^[0-9]{1,7}$/', $size)) {
            throw new Unanswered('the length of the answer is wrong');
        }
        $size = intval($size, $base);
        $this->bound($size);
        while (strlen($this->buffer) < $size) {
            $this->more($deadline);
        }
        $data = substr($this->buffer, 0, $size);
        $this->buffer = substr($this->buffer, $size);

        return $data;
    }

    private function more(int $deadline): void
    {
        $this->wait(true, $deadline);
        $data = @fread($this->stream, 65536);
        if ($data === false || $data === '' && feof($this->stream)) {
            throw new Unanswered('the connection was closed');
        }
        $this->buffer .= $data;
        $this->bound(strlen($this->buffer));
    }

    private function bound(int $size): void
    {
        if ($size > self::MAX_ANSWER) {
            throw new Unanswered('the answer is too long');
        }
    }

    private function wait(bool $read, int $deadline): void
    {
        $left = intdiv(self::left($deadline), 1000);
        [$in, $out, $except] = [$read ? [$this->stream] : [], $read ? [] : [$this->stream], []];
        // A signal ends the wait early; whoever called tries again, until the deadline.
        @stream_select($in, $out, $except, intdiv($left, 1_000_000), $left % 1_000_000);
    }

    /** @return int nanoseconds */
    private static function left(int $deadline): int
    {
        $left = $deadline - hrtime(true);

        return $left > 0 ? $left : throw new Unanswered('it took too long');
    }
}
