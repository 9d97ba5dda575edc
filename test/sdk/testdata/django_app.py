"""A Django application. It signs with a secret that it reads from standard input
(local), or not at all (custody).

Usage: django_app.py local|custody DATABASE SESSION_ENGINE [KEY SOCKET]
"""

import sys

import django
from django.conf import settings
from django.http import HttpResponse
from django.urls import path

MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]


def configure(mode, database, engine, rest, secret=None):
    apps = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "django.contrib.messages"]
    options = {}
    if mode == "local":
        options["SECRET_KEY"] = secret or sys.stdin.readline().strip()
    else:
        from claviger.django import random_secret

        apps.insert(0, "claviger.django")
        options.update(SECRET_KEY=random_secret(), CLAVIGER={"KEY": rest[0], "SOCKET": rest[1]})
    settings.configure(
        ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], MIDDLEWARE=MIDDLEWARE, INSTALLED_APPS=apps, USE_TZ=True,
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": database}},
        SESSION_ENGINE=engine, MESSAGE_STORAGE="django.contrib.messages.storage.cookie.CookieStorage",
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "OPTIONS": {"context_processors": [
            "django.template.context_processors.request", "django.contrib.auth.context_processors.auth",
            "django.contrib.messages.context_processors.messages"]}}],
        LOGGING={"version": 1, "disable_existing_loggers": False, "handlers": {"all": {"class": "logging.StreamHandler"}}, "root": {"handlers": ["all"], "level": "ERROR"}},
        DEFAULT_AUTO_FIELD="django.db.models.AutoField", **options,
    )
    django.setup()


def alice():
    from django.contrib.auth.models import User

    user, created = User.objects.get_or_create(username="alice", defaults={"email": "alice@example.com"})
    if created:
        user.set_password("correct horse")
        user.save()
    return user


def login(request):
    from django.contrib import auth

    auth.login(request, alice())
    request.session["cart"] = "three apples"
    return HttpResponse("in")


def again(request):
    from django.contrib.auth import login as by_name

    by_name(request, alice())
    return HttpResponse(request.session.get("cart", "-"))


def me(request):
    return HttpResponse(f"{request.user.username or '-'} {request.session.get('cart', '-')}")


def cookie(request):
    response = HttpResponse("set")
    response.set_signed_cookie("pref", "dark", salt="ui")
    return response


def pref(request):
    return HttpResponse(request.get_signed_cookie("pref", default="-", salt="ui"))


def say(request):
    from django.contrib import messages

    messages.info(request, "saved")
    return HttpResponse("said")


def said(request):
    from django.contrib import messages

    return HttpResponse(",".join(str(m) for m in messages.get_messages(request)) or "-")


def sign(request):
    from django.contrib.auth.tokens import default_token_generator
    from django.core import signing
    from django.utils.crypto import salted_hmac

    return HttpResponse("\n".join([
        signing.Signer(salt="shop").sign("forty-two"),
        signing.TimestampSigner().sign("größe"),
        signing.dumps({"id": 5}, salt="mail"),
        signing.dumps(["x"] * 100, salt="mail", compress=True),
        default_token_generator.make_token(alice()),
        salted_hmac("app.etag", "v", algorithm="sha256").hexdigest(),
    ]))


def check(request):
    """Says of each token whether it is taken."""
    from django.contrib.auth.tokens import default_token_generator
    from django.core import signing

    def taken(what, *args, **kwargs):
        try:
            return what(*args, **kwargs)
        except signing.BadSignature:
            return None

    signer, stamped, mail, compressed, reset, _ = request.META["HTTP_X_TOKENS"].encode("latin-1").decode().split(" ")
    return HttpResponse(" ".join("yes" if ok else "no" for ok in [
        taken(signing.Signer(salt="shop").unsign, signer) == "forty-two",
        taken(signing.TimestampSigner().unsign, stamped, max_age=3600) == "größe",
        taken(signing.loads, mail, salt="mail", max_age=3600) == {"id": 5},
        taken(signing.loads, compressed, salt="mail") == ["x"] * 100,
        default_token_generator.check_token(alice(), reset),
    ]))


def csrf(request):
    from django.middleware.csrf import get_token

    return HttpResponse(get_token(request) if request.method == "GET" else "posted")


def page(request):
    """A page such as applications have: a session, a user, and some markup."""
    from django.contrib.auth.models import Group
    from django.template import engines

    if not _page:
        _page.append(engines["django"].from_string(
            "<h1>{{ user.username }}</h1>{% for m in messages %}<p>{{ m }}</p>{% endfor %}<ul>"
            "{% for n in rows %}<li class=\"{% cycle 'a' 'b' %}\">{{ n }}: {{ user.email|upper }}</li>{% endfor %}</ul>{{ groups }}"))
    return HttpResponse(_page[0].render({"rows": range(25), "groups": Group.objects.count()}, request))


_page = []
urlpatterns = [path(view.__name__, view) for view in (login, again, me, cookie, pref, say, said, sign, check, csrf, page)]


def main():
    mode, database, engine, *rest = sys.argv[1:]
    configure(mode, database, engine, rest)
    from django.core.handlers.wsgi import WSGIHandler
    from django.core.management import call_command
    from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler

    call_command("migrate", verbosity=0)
    server = ThreadedWSGIServer(("127.0.0.1", 0), WSGIRequestHandler)
    server.daemon_threads = True
    server.set_app(WSGIHandler())
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
