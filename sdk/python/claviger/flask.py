"""Flask without its secret_key:

    claviger.flask.install(app, claviger.Key("prod/shop/flask"))
"""

import secrets

from flask.sessions import SecureCookieSessionInterface
from itsdangerous import URLSafeTimedSerializer

from claviger import watching
from claviger.itsdangerous import signer


def install(app, key):
    """Has the sessions of an application signed by a claviger.Key, and gives it a
    random secret_key: whatever else signs with that makes tokens that no other
    process takes."""
    for name in ("SECRET_KEY", "SECRET_KEY_FALLBACKS"):
        if app.config.get(name):
            raise ValueError(f"{name} is in the configuration still: adopt it into custody, and remove it")
    app.secret_key = secrets.token_urlsafe(64)
    app.session_interface = Sessions(key)


class Sessions(SecureCookieSessionInterface):
    """Flask's own session cookie, signed in custody."""

    def __init__(self, key):
        self._signer = signer(key)

    def get_signing_serializer(self, app):
        return URLSafeTimedSerializer(
            "", salt=self.salt, serializer=self.serializer, signer=self._signer,
            signer_kwargs={"key_derivation": self.key_derivation, "digest_method": self.digest_method},
        )

    def open_session(self, app, request):
        with watching() as seen:
            session = super().open_session(app, request)
        if seen.renew and session is not None:
            session.modified = True  # so that it is signed by the version that signs now
        return session
