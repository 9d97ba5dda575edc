<?php

/**
 * Makes the installed Laravel keep the password's hash as 12.45 and later do, which
 * cannot be had here: hashed under app.key, in sessions and in the cookie of
 * "remember me", which is held to it too. Its classes are changed as they are loaded.
 */
(function () {
    $change = function (string $class, array $changes) {
        $source = file_get_contents(stream_resolve_include_path(strtr($class, '\\', '/').'.php'));
        foreach ($changes as $pattern => $text) {
            $source = preg_replace_callback($pattern, fn ($found) => str_replace('$0', $found[0], $text), $source, -1, $count);
            if ($count !== 1) {
                throw new Exception("$class has $pattern $count times");
            }
        }
        eval(substr($source, strlen('<?php')));
    };
    $hashed = '$this->hashPasswordForCookie($user->getAuthPassword())';
    $change('Illuminate\Auth\SessionGuard', [
        '~\$user->getRememberToken\(\)\s*\.\s*\'\|\'\s*\.\s*\K\$user->getAuthPassword\(\)~' => $hashed,
        '~function userFromRecaller\(.*?\K(?=return \$user;)~s' => "if (\$user && ! hash_equals($hashed, \$recaller->hash())) {
            \$this->viaRemember = false;

            return null;
        }
",
        '~\}\s*$~D' => '    protected $hashKey;

    public function setHashKey($key)
    {
        $this->hashKey = $key;
    }

    public function hashPasswordForCookie($passwordHash)
    {
        return hash_hmac("sha256", $passwordHash, $this->hashKey);
    }
$0',
    ]);
    $change('Illuminate\Auth\AuthManager', [
        '~\$guard = new SessionGuard\(.*?\);~s' => '$0 $guard->setHashKey($this->app["config"]["app.key"]);',
    ]);
    $now = '$this->auth->hashPasswordForCookie($request->user()->getAuthPassword())';
    $change('Illuminate\Session\Middleware\AuthenticateSession', [
        '~\$passwordHash != \K\$request->user\(\)->getAuthPassword\(\)~' => $now,
        '~!== \K\$request->user\(\)->getAuthPassword\(\)~' => $now,
        '~=> \K\$request->user\(\)->getAuthPassword\(\)~' => $now,
    ]);
})();
