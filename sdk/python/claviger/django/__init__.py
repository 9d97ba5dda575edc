"""Django without its SECRET_KEY. In settings.py:

    from claviger.django import random_secret

    SECRET_KEY = random_secret()
    CLAVIGER = {"KEY": "prod/shop/django"}
    INSTALLED_APPS = ["claviger.django", ...]

CLAVIGER also takes SOCKET, the path of the server's local socket, and TIMEOUT,
the seconds that one call may take.
"""

import secrets


class RandomSecret(str):
    """A secret of this process alone, which nothing outside it depends on."""

    __slots__ = ()


def random_secret():
    """Returns a SECRET_KEY for a start of the application. Whatever signs with it
    and is not covered makes tokens that no other process takes."""
    return RandomSecret(secrets.token_urlsafe(64))
