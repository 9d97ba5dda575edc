"""Replaces what Django signs and checks with SECRET_KEY by calls to custody.

Django checks some hashes by making them again and comparing. Made again after a
rotation they would be another version's, and each would be recorded as a token
that was made. So within such a check (_expected) a hash is checked instead: the
expected one comes out when custody says that it is right, a random one otherwise.
"""

import contextlib
import contextvars
import functools
import hashlib
import secrets
import sys
import threading
import time

from django.conf import settings
from django.contrib.sessions.backends import base, signed_cookies
from django.core import signing
from django.utils import crypto
from django.utils.encoding import force_bytes
from django.utils.http import int_to_base36

from claviger import Error, watching

_COOKIES = b"django.http.cookies"
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_EPOCH = 978307200  # 2001-01-01, where the time of password-reset tokens begins
_LENGTHS = {"sha1": 27, "sha256": 43, "sha384": 64, "sha512": 86}

_expected = contextvars.ContextVar("claviger_expected", default=None)
_reset_time = contextvars.ContextVar("claviger_reset_time", default=None)


class _Known:
    """Hashes of passwords in sessions that custody found right a moment ago, so
    that a request has one check and not two. The session that has the hash is
    checked at each request all the same; one by an older version empties this, so
    that the hash in it is made again too."""

    seconds, most = 30, 4096

    def __init__(self):
        self._lock, self._until = threading.Lock(), {}

    def has(self, about):
        return self._until.get(hashlib.sha256(about).digest(), 0) > time.monotonic()

    def add(self, about):
        with self._lock:
            while len(self._until) >= self.most:
                del self._until[next(iter(self._until))]
            self._until[hashlib.sha256(about).digest()] = time.monotonic() + self.seconds

    def clear(self):
        with self._lock:
            self._until.clear()


_known = _Known()


@contextlib.contextmanager
def _during(variable, value):
    before = variable.set(value)
    try:
        yield
    finally:
        variable.reset(before)


def install(key):
    """Patches Django, once, at its start."""
    _patch_signer(key)
    _patch_salted_hmac(key)
    for store, method in ((base.SessionBase, "decode"), (signed_cookies.SessionStore, "load")):
        _patch_session(store, method)
    if "django.contrib.auth" in settings.INSTALLED_APPS:
        _patch_auth()


def _replace(original, replacement):
    """Puts a function in the place of another, also where a module has imported
    it by its name."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        if names.get(original.__name__) is original:
            setattr(module, original.__name__, replacement)


def _is_secret(value):
    return force_bytes(value) == force_bytes(settings.SECRET_KEY)


def _seconds(text):
    """Reads base62, or returns 0."""
    seconds = 0
    for c in text[:12]:
        if c not in _BASE62:
            return 0
        seconds = seconds * 62 + _BASE62.index(c)
    return seconds


def _role(signer):
    """Says what a signer signs with: the secret, the secret of cookies, or a key
    of the application's own, which stays its own."""
    if _is_secret(signer.key):
        return "plain"
    if force_bytes(signer.key) == _COOKIES + force_bytes(settings.SECRET_KEY):
        return "cookie"
    return None


def _form(signer, value, digest):
    """Returns the format for a signer and a value, its parameters, the payload,
    and the time at the value's end or 0."""
    params = {"separator": signer.sep, "digest": digest}
    payload, _, stamp = value.rpartition(signer.sep)
    seconds = _seconds(stamp) if isinstance(signer, signing.TimestampSigner) else 0
    if _role(signer) == "cookie":
        return "django.cookie", {**params, "name": signer.salt}, payload, seconds
    params["salt"] = signer.salt
    if seconds:
        return "django.timestamp", params, payload, seconds
    return "django.signer", params, value, 0


def _patch_signer(key):
    local_signature, local_unsign = signing.Signer.signature, signing.Signer.unsign

    def signature(self, value, *args, **kwargs):
        if args or kwargs or _role(self) is None:
            return local_signature(self, value, *args, **kwargs)
        format, params, payload, seconds = _form(self, value, self.algorithm)
        if seconds:
            params["issued"] = seconds
        elif format == "django.cookie":
            raise Error("unsupported", "a cookie is to be signed without its time", "SIGNING_BACKEND has to be a TimestampSigner")
        signed, _, tag = key.protect(format, payload.encode(), **params).decode().rpartition(self.sep)
        if signed != value:
            raise Error("unsupported", "custody signed another text", "a TimestampSigner has to write its time as Django does")
        return tag

    def unsign(self, signed_value, *args, **kwargs):
        if _role(self) is None:
            return local_unsign(self, signed_value, *args, **kwargs)
        if self.sep not in signed_value:
            raise signing.BadSignature('No "%s" found in value' % self.sep)
        value, tag = signed_value.rsplit(self.sep, 1)
        # Django 3 takes SHA-1 too; the length says which one it can be.
        for digest in (self.algorithm, getattr(self, "legacy_algorithm", None)):
            if len(tag) == _LENGTHS.get(digest):
                format, params, _, _ = _form(self, value, digest)
                found = key.unprotect(format, signed_value.encode(), **params)
                if found:
                    if found.renew:
                        _known.clear()
                    return value
                break
        raise signing.BadSignature('Signature "%s" does not match' % tag)

    signing.Signer.signature, signing.Signer.unsign = signature, unsign


class _Mac:
    """What salted_hmac returns: an HMAC that is computed in custody."""

    def __init__(self, key, salt, value, algorithm):
        self._key, self._value = key, force_bytes(value)
        self._params = {"salt": force_bytes(salt).decode(), "digest": algorithm}
        self.digest_size = hashlib.new(algorithm).digest_size

    def digest(self):
        return bytes.fromhex(self.hexdigest())

    def hexdigest(self):
        expected, seconds = _expected.get(), _reset_time.get()
        if seconds is not None:
            return self._reset(expected, seconds)
        if expected is None:
            return self._key.protect("django.salted-hmac", self._value, **self._params).decode()
        if len(expected) == 2 * self.digest_size and expected.isascii():
            about = repr((self._params, self._value, expected)).encode()
            if _known.has(about):
                return expected
            found = self._key.unprotect("django.salted-hmac", expected.encode(), over=self._value, **self._params)
            if found:
                if not found.renew:
                    _known.add(about)
                return expected
        return secrets.token_hex(self.digest_size)

    def _reset(self, expected, seconds):
        """Django takes every second digit of the hash of a password-reset token,
        and no more than those come out of custody."""
        before, found, after = self._value.partition(b"%d" % seconds)
        if not found:
            raise Error("unsupported", "a token generator hashes no timestamp", "have its _make_hash_value include the timestamp, in seconds")
        params = {**self._params, "properties": [before, after]}
        if expected is None:
            token = self._key.protect("django.reset", b"", issued=seconds + _EPOCH, **params).decode()
            half = token.partition("-")[2]
        else:
            half = secrets.token_hex(self.digest_size // 2)
            token = f"{int_to_base36(seconds)}-{expected}"
            if len(expected) == self.digest_size and token.isascii() and self._key.unprotect("django.reset", token.encode(), **params):
                half = expected
        return "".join(digit + "0" for digit in half)


def _patch_salted_hmac(key):
    local = crypto.salted_hmac

    @functools.wraps(local)
    def salted_hmac(key_salt, value, secret=None, *, algorithm="sha1"):
        if secret is None or _is_secret(secret):
            return _Mac(key, key_salt, value, algorithm)
        return local(key_salt, value, secret, algorithm=algorithm)

    _replace(local, salted_hmac)


def _patch_session(store, method):
    """A session that an older version signed is saved again. Django takes every
    error of a session for an empty one: a user must not be logged out because
    custody was away, so that error comes out."""
    local = getattr(store, method)

    @functools.wraps(local)
    def read(self, *args):
        modified = self.modified
        try:
            with watching() as seen:
                session = local(self, *args)
        except Error:
            self.modified = modified
            raise
        self.modified = self.modified or seen.renew
        return session

    setattr(store, method, read)


def _patch_auth():
    from django.contrib import auth
    from django.contrib.auth.tokens import PasswordResetTokenGenerator

    local_get_user, local_login = auth.get_user, auth.login
    local_check, local_make = PasswordResetTokenGenerator.check_token, PasswordResetTokenGenerator._make_token_with_timestamp

    @functools.wraps(local_get_user)
    def get_user(request):
        stored = request.session.get(auth.HASH_SESSION_KEY)
        with watching() as seen, _during(_expected, stored or ""):
            user = local_get_user(request)
        if seen.renew and user.is_authenticated:
            request.session[auth.HASH_SESSION_KEY] = user.get_session_auth_hash()
        return user

    @functools.wraps(local_login)
    def login(request, *args, **kwargs):
        # It compares the session's hash with one made now: let it be a new one.
        if auth.HASH_SESSION_KEY in request.session:
            get_user(request)
        return local_login(request, *args, **kwargs)

    @functools.wraps(local_check)
    def check_token(self, user, token):
        with _during(_expected, (token or "").partition("-")[2]):
            return local_check(self, user, token)

    @functools.wraps(local_make)
    def make(self, user, timestamp, *args, **kwargs):
        with _during(_reset_time, timestamp):
            return local_make(self, user, timestamp, *args, **kwargs)

    _replace(local_get_user, get_user)
    _replace(local_login, login)
    PasswordResetTokenGenerator.check_token = check_token
    PasswordResetTokenGenerator._make_token_with_timestamp = make
    if hasattr(auth, "aget_user"):
        from asgiref.sync import sync_to_async

        _replace(auth.aget_user, sync_to_async(get_user))
