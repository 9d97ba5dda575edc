<?php

/**
 * What the client makes of what answers it.
 *
 * Usage: client.php check SOCKET TIMEOUT CALLS | client.php use SOCKET
 */

use Claviger\Error;
use Claviger\Key;

require __DIR__.'/server.php';
set_error_handler(fn ($level, $text, $file, $line) => error_reporting() & $level ? throw new ErrorException($text, 0, $level, $file, $line) : false);

[, $mode, $socket] = $argv;

function check(Key $key): string
{
    try {
        $found = $key->unprotect('f', 't');

        return $found === null ? 'not valid' : "$found->payload $found->version ".json_encode($found->renew);
    } catch (Error $e) {
        return $e::class.' '.$e->reason;
    }
}

function work(Key $key, int $n): bool
{
    foreach (range(1, 20) as $i) {
        if ($key->unprotect('laravel.encrypted', $key->protect('laravel.encrypted', "$n-$i"))?->payload !== "$n-$i") {
            return false;
        }
    }

    return true;
}

if ($mode === 'check') {
    $key = new Key('k', $socket, (float) $argv[3]);
    for ($i = 0; $i < (int) $argv[4]; $i++) {
        echo check($key), "\n";
    }
    exit;
}

$key = new Key('dev/shop/laravel', $socket);
$token = $key->protect('laravel.encrypted', "gr\xf6\xdfe", ['name' => 'größe']);
$found = $key->unprotect('laravel.encrypted', $token, ['name' => 'größe']);
echo bin2hex($found->payload), " $found->version ", json_encode($found->renew), "\n";
var_dump($key->unprotect('laravel.encrypted', $token, ['name' => 'other']));
$large = str_repeat('x', 500_000);
var_dump($key->unprotect('laravel.encrypted', $key->protect('laravel.encrypted', $large))->payload === $large);
foreach ([['dev/no/key', 'laravel.encrypted', []], ['dev/shop/laravel', 'rails.verifier', []], ['dev/shop/laravel', 'laravel.encrypted', ['name' => "\xff"]]] as [$name, $format, $params]) {
    try {
        (new Key($name, $socket))->protect($format, 'x', $params);
    } catch (Error $e) {
        echo $e::class, " $e->reason\n";
    }
}
$children = [];
foreach (range(1, 3) as $n) {
    if (($pid = pcntl_fork()) === 0) {
        exit(work($key, $n) ? 0 : 1);
    }
    $children[] = $pid;
}
var_dump(work($key, 0));
foreach ($children as $pid) {
    pcntl_waitpid($pid, $status);
    var_dump($status);
}
