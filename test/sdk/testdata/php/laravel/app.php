<?php

/**
 * A Laravel application, made anew for each request. Its APP_KEY is read from
 * standard input (local), or is in custody.
 *
 * Usage: app.php local|custody CIPHER DATA
 */

use Illuminate\Auth\GenericUser;
use Illuminate\Contracts\Auth\Authenticatable;
use Illuminate\Contracts\Auth\UserProvider;
use Illuminate\Contracts\Encryption\DecryptException;
use Illuminate\Cookie\Middleware\EncryptCookies;
use Illuminate\Foundation\Application;
use Illuminate\Http\Request;
use Illuminate\Http\Response;
use Illuminate\Queue\CallQueuedClosure;
use Illuminate\Support\Facades\Auth;
use Illuminate\Support\Facades\Crypt;
use Illuminate\Support\Facades\Facade;
use Illuminate\Support\Facades\Route;
use Illuminate\Support\Facades\URL;
use Laravel\SerializableClosure\Exceptions\InvalidSignatureException;

require 'Illuminate/autoload.php';
require __DIR__.'/../server.php';
if (getenv('HASHED')) {
    require __DIR__.'/hashed.php';
}

define('APP_KEY', $argv[1] === 'local' ? trim(fgets(STDIN)) : null);
define('CIPHER', $argv[2]);
define('DATA', $argv[3]);

// What an application of Laravel 10 and before changes: the parent of its own middleware.
class_alias(APP_KEY === null ? Claviger\Laravel\EncryptCookies::class : EncryptCookies::class, 'CookiesParent');

class Cookies extends CookiesParent
{
    protected $except = ['plain'];
}

class Forgotten extends EncryptCookies
{
}

class Kernel extends Illuminate\Foundation\Http\Kernel
{
    protected $middlewareGroups = [
        'web' => [
            Cookies::class,
            Illuminate\Cookie\Middleware\AddQueuedCookiesToResponse::class,
            Illuminate\Session\Middleware\StartSession::class,
            Illuminate\Session\Middleware\AuthenticateSession::class,
            Illuminate\Foundation\Http\Middleware\VerifyCsrfToken::class,
        ],
        'framework' => [EncryptCookies::class], // as Laravel 11 and later have it
        'forgotten' => [Forgotten::class],
    ];
    protected $routeMiddleware = ['signed' => Illuminate\Routing\Middleware\ValidateSignature::class];
}

class Handler extends Illuminate\Foundation\Exceptions\Handler
{
    public function render($request, Throwable $e)
    {
        $e = $this->prepareException($e);

        return new Response($e::class, method_exists($e, 'getStatusCode') ? $e->getStatusCode() : 500);
    }
}

class Users implements UserProvider
{
    public function retrieveById($id)
    {
        return new GenericUser(['id' => $id, 'name' => 'alice', 'password' => '$2y$10$hash', 'remember_token' => 'r-token']);
    }

    public function retrieveByToken($id, $token)
    {
        return $token === 'r-token' ? $this->retrieveById($id) : null;
    }

    public function updateRememberToken(Authenticatable $user, $token)
    {
    }

    public function retrieveByCredentials(array $credentials)
    {
    }

    public function validateCredentials(Authenticatable $user, array $credentials)
    {
        return false;
    }
}

class Pages
{
    public function login()
    {
        Auth::loginUsingId(1, true);
        session(['cart' => 'three apples']);

        return 'in';
    }

    public function me()
    {
        return (Auth::user()->name ?? '-').' '.session('cart', '-');
    }

    public function cookie()
    {
        return (new Response('set'))->cookie('pref', 'dark', 60)->cookie('plain', 'light', 60);
    }

    public function pref(Request $request)
    {
        return ($request->cookie('pref') ?? '-').' '.($request->cookie('plain') ?? '-');
    }

    public function sign()
    {
        $number = 42;

        return implode("\n", [
            Crypt::encryptString('forty-two'),
            encrypt(['id' => 5]),
            URL::signedRoute('open', ['user' => 5, 'tags' => ['a b', 'c/d']]),
            URL::temporarySignedRoute('open', 3600, ['user' => 6]),
            URL::signedRoute('relative', ['user' => 7], null, false),
            base64_encode(serialize(CallQueuedClosure::create(fn () => $number))),
        ]);
    }

    public function check(Request $request)
    {
        [$string, $value, $url, $timed, $relative, $closure] = explode(' ', $request->header('X-Tokens'));

        return implode(' ', array_map(fn (Closure $good) => $this->try($good), [
            fn () => Crypt::decryptString($string) === 'forty-two',
            fn () => decrypt($value) === ['id' => 5],
            fn () => Request::create($url)->hasValidSignature(),
            fn () => Request::create($timed)->hasValidSignature(),
            fn () => Request::create($relative)->hasValidSignature(false),
            fn () => unserialize(base64_decode($closure))->closure->getClosure()() === 42,
        ]));
    }

    private function try(Closure $good): string
    {
        try {
            return $good() ? 'yes' : 'no';
        } catch (DecryptException|InvalidSignatureException) {
            return 'no';
        }
    }
}

/** Answers one request with an application of its own. */
function answer(Symfony\Component\HttpFoundation\Request $base)
{
    Facade::clearResolvedInstances();
    $app = new Application(__DIR__);
    $app->singleton(Illuminate\Contracts\Http\Kernel::class, Kernel::class);
    $app->singleton(Illuminate\Contracts\Debug\ExceptionHandler::class, Handler::class);
    $app->useStoragePath(DATA);
    $app->booted(function () {
        Auth::provider('fixed', fn () => new Users());
        Route::middleware('web')->group(function () {
            foreach (['login', 'me', 'cookie', 'pref', 'sign', 'check'] as $page) {
                Route::get("/$page", [Pages::class, $page]);
            }
            Route::post('/form', fn () => 'sent');
            Route::get('/open/{user}', fn ($user) => "open $user")->middleware('signed')->name('open');
            Route::get('/relative/{user}', fn ($user) => "open $user")->middleware('signed:relative')->name('relative');
            Route::get('/passport', fn () => Crypt::getKey());
        });
        Route::getRoutes()->refreshNameLookups();
        Route::get('/framework', fn (Request $request) => $request->cookie('pref', '-'))->middleware('framework');
        Route::get('/forgotten', fn () => 'open')->middleware('forgotten');
    });

    return $app->make(Illuminate\Contracts\Http\Kernel::class)->handle(Request::createFromBase($base));
}

serve('answer');
