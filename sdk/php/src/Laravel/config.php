<?php

return [
    // The name of the machine key in custody.
    'key' => env('CLAVIGER_KEY'),

    // The server's local socket.
    'socket' => env('CLAVIGER_SOCKET', Claviger\Key::SOCKET),

    // In seconds, of one call to custody.
    'timeout' => env('CLAVIGER_TIMEOUT', 2.0),

    // Whether APP_KEY had the prefix base64:. Signed URLs have it in their key.
    'prefixed' => env('CLAVIGER_PREFIXED', true),
];
