<?php

namespace Claviger\Laravel;

use Claviger\Error;
use Illuminate\Auth\Recaller;
use Illuminate\Auth\SessionGuard as Base;
use Symfony\Component\HttpFoundation\Request;

/**
 * The guard of versions of Laravel (12.45 and later) that keep, in sessions and in
 * the cookie of "remember me", a hash of the password's hash under APP_KEY. Custody
 * makes and checks it. One of an older version of the key is replaced before
 * Laravel compares it with the newest one's, so that nobody is logged out.
 */
final class SessionGuard extends Base
{
    private Encrypter $encrypter;
    private bool $prefixed;
    private bool $looked = false; // at what the session of this request has

    /** @var array<string, string> what the newest version makes, by the password's hash */
    private array $newest = [];

    /**
     * Takes the place of Laravel's own, with all that was set there.
     *
     * @param bool $prefixed whether APP_KEY has the prefix base64:
     */
    public static function instead(Base $base, $app, bool $prefixed): self
    {
        if ($base::class !== Base::class) {
            throw new Error('unsupported', 'sessions are guarded by '.$base::class, 'let the driver session be that of Laravel');
        }
        $self = (new \ReflectionClass(self::class))->newInstanceWithoutConstructor();
        // In the class's own scope: some of it can be set from nowhere else.
        (function () use ($base) {
            foreach (get_object_vars($base) as $name => $value) {
                $this->$name = $value;
            }
        })->bindTo($self, Base::class)();
        [$self->encrypter, $self->prefixed] = [$app['encrypter'], $prefixed];
        $self->setRequest($app->refresh('request', $self, 'setRequest'));

        return $self;
    }

    public function setRequest(Request $request)
    {
        [$this->looked, $this->newest] = [false, []];

        return parent::setRequest($request);
    }

    // The names have the class in them, and what is out has Laravel's.

    public function getName()
    {
        return 'login_'.$this->name.'_'.sha1(Base::class);
    }

    public function getRecallerName()
    {
        return 'remember_'.$this->name.'_'.sha1(Base::class);
    }

    public function hashPasswordForCookie(#[\SensitiveParameter] $passwordHash)
    {
        $hash = (string) $passwordHash;

        return $this->newest[$hash] ??= $this->encrypter->hashPassword($hash, $this->prefixed);
    }

    public function user()
    {
        $user = parent::user();
        if ($user !== null && !$this->looked) {
            $this->looked = true;
            $stored = $this->session->get("password_hash_$this->name");
            $newest = $this->taken($user, $stored);
            if ($newest !== null && $newest !== $stored) {
                $this->session->put("password_hash_$this->name", $newest);
            }
        }

        return $user;
    }

    protected function userFromRecaller(#[\SensitiveParameter] $recaller)
    {
        if ($recaller->valid() && !$this->recallAttempted) {
            $newest = $this->taken($this->provider->retrieveByToken($recaller->id(), $recaller->token()), $recaller->hash());
            if ($newest !== null && $newest !== $recaller->hash()) {
                $value = $recaller->id().'|'.$recaller->token().'|'.$newest;
                $this->request->cookies->set($this->getRecallerName(), $value);
                $this->getCookieJar()->queue($this->createRecaller($value));
                $recaller = new Recaller($value);
            }
        }

        return parent::userFromRecaller($recaller);
    }

    /** Returns what the newest version makes for a user, if stored is by any version, or else null. */
    private function taken($user, #[\SensitiveParameter] mixed $stored): ?string
    {
        // The password's hash itself, as older versions of Laravel kept it, is for Laravel to compare.
        if ($user === null || !is_string($stored) || !preg_match('/^[0-9a-f]{64}$/D', $stored)) {
            return null;
        }
        $hash = (string) $user->getAuthPassword();
        if (($this->newest[$hash] ?? '') === $stored) {
            return $stored;
        }
        $token = $this->encrypter->hashedPassword($hash, $stored, $this->prefixed);
        if ($token !== null && !$token->renew) {
            $this->newest[$hash] = $stored;
        }

        return $token === null ? null : $this->hashPasswordForCookie($hash);
    }
}
