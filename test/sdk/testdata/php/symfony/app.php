<?php

/**
 * A Symfony application. Its secret is read from standard input (local), or is
 * in custody.
 *
 * Usage: app.php local|custody VAR
 */

use Claviger\Symfony\ClavigerBundle;
use Symfony\Bundle\FrameworkBundle\FrameworkBundle;
use Symfony\Bundle\FrameworkBundle\Kernel\MicroKernelTrait;
use Symfony\Bundle\SecurityBundle\SecurityBundle;
use Symfony\Component\DependencyInjection\Loader\Configurator\ContainerConfigurator;
use Symfony\Component\HttpFoundation\Request;
use Symfony\Component\HttpFoundation\Response;
use Symfony\Component\HttpKernel\Controller\ControllerReference;
use Symfony\Component\HttpKernel\Fragment\FragmentUriGeneratorInterface;
use Symfony\Component\HttpKernel\Kernel as BaseKernel;
use Symfony\Component\HttpKernel\Log\Logger;
use Symfony\Component\HttpKernel\UriSigner;
use Symfony\Component\Routing\Loader\Configurator\RoutingConfigurator;
use Symfony\Component\Security\Core\Authentication\Token\TokenInterface;
use Symfony\Component\Security\Core\Exception\AuthenticationException;
use Symfony\Component\Security\Core\User\InMemoryUser;
use Symfony\Component\Security\Core\User\UserInterface;
use Symfony\Component\Security\Http\Authentication\AuthenticationSuccessHandlerInterface;
use Symfony\Component\Security\Http\Authenticator\AbstractAuthenticator;
use Symfony\Component\Security\Http\Authenticator\Passport\Badge\RememberMeBadge;
use Symfony\Component\Security\Http\Authenticator\Passport\Badge\UserBadge;
use Symfony\Component\Security\Http\Authenticator\Passport\Passport;
use Symfony\Component\Security\Http\Authenticator\Passport\SelfValidatingPassport;
use Symfony\Component\Security\Http\LoginLink\LoginLinkHandlerInterface;

use function Symfony\Component\DependencyInjection\Loader\Configurator\service;

require __DIR__.'/installed.php';
require 'Symfony/Bundle/FrameworkBundle/autoload.php';
require 'Symfony/Bundle/SecurityBundle/autoload.php';
require __DIR__.'/../server.php';

[, $mode, $var] = $argv;
if ($mode === 'local') {
    $_ENV['APP_SECRET'] = trim(fgets(STDIN));
}

class Kernel extends BaseKernel
{
    use MicroKernelTrait;

    public string $var;

    public function registerBundles(): iterable
    {
        yield new FrameworkBundle();
        yield new SecurityBundle();
        if ($this->environment === 'custody') {
            yield new ClavigerBundle();
        }
    }

    public function getProjectDir(): string
    {
        return __DIR__;
    }

    public function getCacheDir(): string
    {
        return "$this->var/$this->environment";
    }

    public function getLogDir(): string
    {
        return $this->var;
    }

    protected function configureContainer(ContainerConfigurator $container): void
    {
        $custody = $this->environment === 'custody';
        $container->extension('framework', [
            'secret' => getenv('CONFIGURED') ?: ($custody ? '%env(claviger_random:APP_SECRET)%' : '%env(APP_SECRET)%'),
            'fragments' => true,
            'http_method_override' => false,
            'router' => ['utf8' => true],
        ]);
        $container->extension('security', [
            'enable_authenticator_manager' => true,
            'providers' => ['users' => ['memory' => ['users' => ['alice' => ['password' => '$2y$13$hash']]]]],
            'firewalls' => ['main' => [
                'stateless' => true,
                'custom_authenticators' => [Door::class],
                'remember_me' => ['signature_properties' => ['password']],
                'login_link' => ['check_route' => 'login_check', 'signature_properties' => ['password'], 'success_handler' => Door::class],
            ]],
        ]);
        if ($custody) {
            $container->parameters()->set('claviger.key', '%env(CLAVIGER_KEY)%')->set('claviger.socket', '%env(CLAVIGER_SOCKET)%');
        }
        $services = $container->services();
        $services->set('logger', Logger::class)->args(['error', 'php://stderr']);
        $services->set(Door::class, Door::class);
        $services->set(Pages::class, Pages::class)->autowire()->arg('$own', service('own'))->tag('controller.service_arguments');
        $services->set('own', UriSigner::class)->args(['a secret of its own']);
    }

    protected function configureRoutes(RoutingConfigurator $routes): void
    {
        foreach (['login', 'me', 'link', 'sign', 'check', 'own'] as $page) {
            $routes->add($page, "/$page")->controller([Pages::class, $page]);
        }
        $routes->add('login_check', '/login_check');
    }
}

/** Lets alice in at /login. */
class Door extends AbstractAuthenticator implements AuthenticationSuccessHandlerInterface
{
    public function supports(Request $request): ?bool
    {
        return $request->getPathInfo() === '/login';
    }

    public function authenticate(Request $request): Passport
    {
        return new SelfValidatingPassport(new UserBadge('alice'), [(new RememberMeBadge())->enable()]);
    }

    public function onAuthenticationSuccess(Request $request, TokenInterface $token, ?string $firewallName = null): ?Response
    {
        return new Response('in');
    }

    public function onAuthenticationFailure(Request $request, AuthenticationException $exception): ?Response
    {
        return new Response('out', 403);
    }
}

class Pages
{
    public function __construct(private UriSigner $signer, private UriSigner $own)
    {
    }

    public function me(?UserInterface $user)
    {
        return new Response($user?->getUserIdentifier() ?? '-');
    }

    public function link(LoginLinkHandlerInterface $links, Request $request)
    {
        return new Response($links->createLoginLink(new InMemoryUser('alice', '$2y$13$hash'), $request)->getUrl());
    }

    public function sign(FragmentUriGeneratorInterface $fragments, Request $request)
    {
        return new Response(implode("\n", [
            $this->signer->sign('http://shop.test/open?tags[]=b&tags[]=a&page.no=2&q=a+b#top'),
            $this->signer->sign('/plain'),
            'http://shop.test'.$fragments->generate(new ControllerReference(Pages::class.'::part', ['name' => 'alice']), $request),
        ]));
    }

    public function own()
    {
        return new Response($this->own->sign('/own'));
    }

    public function part(string $name)
    {
        return new Response("a part for $name");
    }

    public function check(Request $request)
    {
        $check = fn (string $uri) => $this->signer->check($uri) ? 'yes' : 'no';

        return new Response(implode(' ', array_map($check, explode(' ', $request->headers->get('X-Tokens')))));
    }
}

$kernel = new Kernel($mode, false);
$kernel->var = $var;
serve(function (Request $request) use ($kernel) {
    try {
        return $kernel->handle($request);
    } catch (Throwable $e) { // as a web server answers for what does not start
        fwrite(STDERR, $e->getMessage()."\n");

        return new Response($e::class, 500);
    }
});
