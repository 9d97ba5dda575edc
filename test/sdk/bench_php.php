<?php

/**
 * Measures what a request to Laravel costs with its APP_KEY in custody, next to
 * a local one, in one run: php test/sdk/bench_php.php [BIN [ROUNDS]]
 *
 * Two processes, one of each kind, are asked in turns for a page of a user who is
 * logged in, so that both meet the same machine. It prints the median request of
 * each, the 10th percentile, which a busy machine disturbs least, and the ratios.
 */

$bin = realpath($argv[1] ?? 'bin');
$rounds = (int) ($argv[2] ?? 40); // of 10 requests
$sessions = ['plain' => ['SESSION_PLAIN' => '1'], 'encrypted' => []];
$adapters = realpath(__DIR__.'/../../sdk/php/src');
putenv("ADAPTERS=$adapters");
require __DIR__.'/testdata/php/server.php';

function start(array $command, array $environment, string $stdin): array
{
    $process = proc_open($command, [['pipe', 'r'], ['pipe', 'w'], ['file', '/dev/null', 'w']], $pipes, null, $environment + getenv());
    fwrite($pipes[0], $stdin);
    fclose($pipes[0]);

    return [$process, trim(fgets($pipes[1])), $pipes[1]];
}

function get(string $port, string $path, array &$cookies): string
{
    $connection = stream_socket_client("tcp://127.0.0.1:$port");
    $sent = implode('; ', array_map(fn ($name, $value) => "$name=$value", array_keys($cookies), $cookies));
    fwrite($connection, "GET $path HTTP/1.1\r\nHost: shop.test\r\nCookie: _ga=GA1.1.1; $sent\r\n\r\n");
    [$head, $body] = explode("\r\n\r\n", stream_get_contents($connection), 2);
    preg_match_all('/^Set-Cookie:\s+([^=]+)=([^;]*)/m', $head, $found, PREG_SET_ORDER);
    foreach ($found as [, $name, $value]) {
        $cookies[$name] = $value;
    }

    return $body;
}

function compare(string $name, array $ports, int $rounds): void
{
    $jars = array_map(fn () => [], $ports);
    foreach ($ports as $mode => $port) {
        get($port, '/login', $jars[$mode]);
    }
    $times = [];
    for ($i = 0; $i <= $rounds; $i++) {
        foreach ($ports as $mode => $port) {
            for ($j = 0; $j < 10; $j++) {
                $began = hrtime(true);
                $body = get($port, '/me', $jars[$mode]);
                if ($i > 0) { // the first round warms up
                    $times[$mode][] = (hrtime(true) - $began) / 1000;
                }
                $body === 'alice three apples' || exit("$mode answers $body\n");
            }
        }
    }
    array_walk($times, fn (&$list) => sort($list));
    foreach (['median' => 2, '10th percentile' => 10] as $title => $part) {
        [$local, $custody] = array_map(fn ($list) => $list[intdiv(count($list), $part)], array_values($times));
        printf("%-12s %-16s %9.0f %11.0f %7.2f\n", $name, $title, $local, $custody, $custody / $local);
    }
}

function checkTime(string $socket): float
{
    $key = new Claviger\Key('dev/shop/laravel', $socket);
    $token = $key->protect('laravel.encrypted', 'x');
    $times = [];
    for ($i = 0; $i < 500; $i++) {
        $began = hrtime(true);
        $key->unprotect('laravel.encrypted', $token) ?? exit("a token is not taken\n");
        $times[] = (hrtime(true) - $began) / 1000;
    }
    sort($times);

    return $times[250];
}

$dir = sys_get_temp_dir().'/bench-php-'.bin2hex(random_bytes(4));
mkdir("$dir/data", 0700, true);
$running = [];
register_shutdown_function(function () use ($dir, &$running) {
    array_map('proc_terminate', $running);
    array_map('proc_close', $running);
    exec('rm -rf '.escapeshellarg($dir));
});
[$running[], $ready, $held] = start(["$bin/claviger", 'dev', '--dir', "$dir/custody", '--listen', '', '--quiet'], [], '');
$socket = str_replace('export CLAVIGER_ADDR=unix://', '', $ready);
$secret = 'base64:'.base64_encode(random_bytes(32));
[$adopt, , $output] = start(["$bin/claviger", '--address', "unix://$socket", 'state', 'adopt', 'dev/shop/laravel', '--set', 'laravel', '--encoding', 'base64',
    '--pin', trim(file_get_contents("$dir/custody/identity"))], [], "$secret\n");
stream_get_contents($output); // to its end: whoever writes must find a reader
proc_close($adopt) === 0 || exit("the key was not adopted\n");

exec('cp -r '.escapeshellarg(__DIR__.'/testdata/php').' '.escapeshellarg("$dir/apps"));
mkdir("$dir/apps/laravel/bootstrap/cache", 0700, true);
printf("%-12s %-16s %9s %11s %7s\n", 'sessions', 'of a request', 'local us', 'custody us', 'ratio');
foreach ($sessions as $name => $environment) {
    $ports = [];
    foreach (['local' => "$secret\n", 'custody' => ''] as $mode => $stdin) {
        [$running[], $ports[$mode]] = start([PHP_BINARY, "$dir/apps/laravel/app.php", $mode, 'AES-256-CBC', "$dir/data"],
            $environment + ['CLAVIGER_KEY' => 'dev/shop/laravel', 'CLAVIGER_SOCKET' => $socket], $stdin);
    }
    compare($name, $ports, $rounds);
}
printf("one check over the socket: %.0f us; load %.1f\n", checkTime($socket), sys_getloadavg()[0]);
