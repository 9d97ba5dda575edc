<?php

return [
    'driver' => 'file',
    'files' => DATA,
    'lifetime' => 120,
    'expire_on_close' => false,
    'encrypt' => !getenv('SESSION_PLAIN'),
    'lottery' => [0, 100],
    'cookie' => 'laravel_session',
    'path' => '/',
    'domain' => null,
    'secure' => false,
    'same_site' => 'lax',
];
