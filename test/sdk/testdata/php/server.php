<?php

/**
 * One process that answers requests one after the other until it is ended, as
 * the workers of application servers do. It writes its port first.
 */

use Symfony\Component\HttpFoundation\Request;
use Symfony\Component\HttpFoundation\Response;

// The adapters, where they are installed.
spl_autoload_register(function (string $class) {
    $file = getenv('ADAPTERS').'/'.strtr(substr($class, strlen('Claviger\\')), '\\', '/').'.php';
    if (str_starts_with($class, 'Claviger\\') && is_file($file)) {
        require $file;
    }
});

/** @param callable(Request): Response $answer */
function serve(callable $answer): void
{
    $listener = stream_socket_server('tcp://127.0.0.1:0');
    echo substr(strrchr(stream_socket_get_name($listener, false), ':'), 1), "\n";
    while ($connection = stream_socket_accept($listener, -1)) {
        if (($line = fgets($connection)) === false) {
            continue;
        }
        [$method, $target] = explode(' ', $line);
        // One name for whatever port, so that signed URLs are good at each.
        $server = ['REQUEST_METHOD' => $method, 'REQUEST_URI' => $target, 'HTTP_HOST' => 'shop.test', 'REMOTE_ADDR' => '127.0.0.1',
            'SERVER_PORT' => 80, 'SCRIPT_NAME' => '/index.php', 'QUERY_STRING' => parse_url($target, PHP_URL_QUERY) ?? ''];
        while (($header = rtrim(fgets($connection))) !== '') {
            [$name, $value] = explode(': ', $header, 2);
            $server += ['HTTP_'.strtoupper(strtr($name, '-', '_')) => $value];
        }
        $body = ($size = (int) ($server['HTTP_CONTENT_LENGTH'] ?? 0)) > 0 ? stream_get_contents($connection, $size) : '';
        parse_str($server['QUERY_STRING'], $query);
        parse_str($body, $post);
        parse_str(strtr($server['HTTP_COOKIE'] ?? '', ['&' => '%26', '; ' => '&', '+' => '%2B']), $cookies);
        $response = $answer(new Request($query, $post, [], $cookies, [], $server, $body));
        $response->headers->set('Connection', 'close');
        $response->headers->set('Content-Length', (string) strlen($response->getContent()));
        fwrite($connection, (string) $response);
        fclose($connection);
    }
}
