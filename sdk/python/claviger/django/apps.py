from django.apps import AppConfig
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from claviger import SOCKET, Key
from claviger.django import RandomSecret


class Custody(AppConfig):
    """Has every signing path of Django answered by custody."""

    name = "claviger.django"
    label = "claviger"

    def ready(self):
        from claviger.django import signing

        options = dict(getattr(settings, "CLAVIGER", {}))
        try:
            key = Key(options.pop("KEY"), options.pop("SOCKET", SOCKET), options.pop("TIMEOUT", 2.0))
        except KeyError:
            raise ImproperlyConfigured('CLAVIGER names no key: set it to {"KEY": "ENVIRONMENT/APPLICATION/NAME"}') from None
        if options:
            raise ImproperlyConfigured(f"CLAVIGER does not take {', '.join(sorted(options))}: it takes KEY, SOCKET and TIMEOUT")
        if not isinstance(settings.SECRET_KEY, RandomSecret):
            raise ImproperlyConfigured("SECRET_KEY is in the settings still: set it to claviger.django.random_secret()")
        if getattr(settings, "SECRET_KEY_FALLBACKS", None):
            raise ImproperlyConfigured("SECRET_KEY_FALLBACKS is set: adopt those secrets as versions of the key, the oldest first, and remove it")
        signing.install(key)
