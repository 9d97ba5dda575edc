"""Signers of itsdangerous whose key is in custody:

    URLSafeTimedSerializer("", salt="activate", signer=claviger.itsdangerous.signer(key))

The secret that a serializer is given is not used.
"""

from itsdangerous import HMACAlgorithm, TimestampSigner
from itsdangerous import Signer as LocalSigner
from itsdangerous.encoding import base64_decode, base64_encode, bytes_to_int, want_bytes

from claviger import Error

_SIZES = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}


class Custody:
    """Makes and checks the signature of an itsdangerous.Signer in custody. A
    class that has it before a Signer sets key, a claviger.Key."""

    key = None

    def get_signature(self, value):
        value = want_bytes(value)
        format, payload, params = self._form(value)
        token = self.key.protect(format, payload, **params)
        signed, _, tag = token.rpartition(self.sep)
        if signed != value:
            raise Error("unsupported", "custody signed another text", "a TimestampSigner has to write its time as itsdangerous does")
        return tag

    def verify_signature(self, value, sig):
        value, sig = want_bytes(value), want_bytes(sig)
        format, _, params = self._form(value)
        try:
            if len(base64_decode(sig)) != _SIZES.get(params["digest"]):
                return False
        except Exception:  # whatever is no base64 is no signature
            return False
        params.pop("issued", None)
        return self.key.unprotect(format, value + self.sep + sig, **params) is not None

    def derive_key(self, secret_key=None):
        raise Error("unsupported", "the key is in custody", "sign with this signer, not with a key derived from it")

    def _form(self, value):
        """Returns the format of a value, its payload and the parameters."""
        digest = self.digest_method()
        if type(self.algorithm) is not HMACAlgorithm or self.algorithm.digest_method().name != digest.name or self.key_derivation == "none":
            raise Error("unsupported", "custody does not make this kind of signature", "use HMAC and the key derivation django-concat, concat or hmac")
        params = {"salt": self.salt.decode(), "derivation": self.key_derivation, "digest": digest.name, "separator": self.sep.decode()}
        if isinstance(self, TimestampSigner):
            payload, _, stamp = value.rpartition(self.sep)
            try:
                seconds = bytes_to_int(base64_decode(stamp))
            except Exception:  # a value without a time
                seconds = 0
            if 0 < seconds < 1 << 36 and base64_encode(seconds.to_bytes((seconds.bit_length() + 7) // 8, "big")) == stamp:
                return "itsdangerous.timestamp", payload, {**params, "issued": seconds}
        return "itsdangerous.signer", value, params


class Signer(Custody, LocalSigner):
    """A subclass sets key."""


class TimedSigner(Custody, TimestampSigner):
    """A subclass sets key."""


def signer(key, timed=True):
    """Returns the class of signer to give to a serializer: a timed one for
    TimedSerializer and URLSafeTimedSerializer."""
    return type("CustodySigner", (TimedSigner if timed else Signer,), {"key": key})
