"""Makes and checks tokens with a machine key that is in custody.

A Key speaks to the server's local socket; the kernel tells the server which
uid calls. No key material ever reaches this process. Every way in which custody
can be away is an Error, never a token that counts as wrong: a framework that
takes it for a bad signature would log its users out.
"""

import base64
import contextlib
import contextvars
import json
import os
import socket
import threading
import time

SOCKET = "/run/claviger/claviger.sock"

_MAX_ANSWER = 8 << 20  # bytes; a token has at most 1 MiB
_seen = contextvars.ContextVar("claviger_seen", default=None)


class Error(Exception):
    """Custody refused the call or could not do it. code is one of the API's."""

    def __init__(self, code, message, hint=""):
        super().__init__(f"{message}: {hint}" if hint else message)
        self.code, self.message, self.hint = code, message, hint


class Unavailable(Error):
    """Custody is away, or cannot answer now. Nothing was signed or checked."""


class Token:
    """A token that is valid: its payload, the version of the key that made it,
    and whether it should be made again because a newer version makes them now."""

    __slots__ = ("payload", "renew", "version")

    def __init__(self, payload, version, renew):
        self.payload, self.version, self.renew = payload, version, renew


class Seen:
    """What happened to the calls within watching()."""

    error = None  # the last Error, even when a framework swallowed it
    renew = False  # a token by an older version was taken


@contextlib.contextmanager
def watching():
    """Notes in a Seen what the calls made within meet. Once the block is left,
    an Error that was swallowed inside is raised again."""
    seen = Seen()
    before = _seen.set(seen)
    try:
        yield seen
    finally:
        _seen.reset(before)
    if seen.error is not None:
        raise seen.error


class Key:
    """A machine key by its name. Safe for threads and across fork: each thread
    of each process has one connection of its own, which is kept open."""

    def __init__(self, name, path=SOCKET, timeout=2.0):
        """path is that of the server's local socket; timeout, in seconds, bounds
        one call with everything in it."""
        self.name, self.path, self.timeout = name, str(path), timeout
        self._local = threading.local()

    def protect(self, format, payload, **params):
        """Returns the token of a payload, both bytes. The parameters are those of
        the format, as the API names them; issued is in seconds since 1970."""
        body = self._body(format, params)
        body["payloads"] = [_b64(payload)]
        return self._call("Protect", body, lambda answer: base64.b64decode(answer["tokens"][0]))

    def unprotect(self, format, token, **params):
        """Returns the Token, or None when it is not valid, for whatever reason."""
        body = self._body(format, params)
        body["tokens"] = [_b64(token)]
        found = self._call("Unprotect", body, _token)
        seen = _seen.get()
        if seen is not None and found is not None and found.renew:
            seen.renew = True
        return found

    def _body(self, format, params):
        values = {name: _json(name, value) for name, value in params.items()}
        return {"key": self.name, "format": format, "params": values}

    def _call(self, method, body, read):
        try:
            status, headers, text = self._exchange(method, json.dumps(body).encode())
            try:
                answer = json.loads(text)
                if status == 200:
                    return read(answer)
                code = headers.get("claviger-code") or answer.get("code") or "internal"
                message = f"custody answered for {self.name}: {answer.get('message') or code}"
            except (ValueError, LookupError, TypeError, AttributeError):
                raise Unavailable("unavailable", f"what answers at {self.path} is not Claviger") from None
            kind = Unavailable if code in ("unavailable", "stale", "deadline") else Error
            raise kind(code, message, headers.get("claviger-hint", ""))
        except Error as error:
            seen = _seen.get()
            if seen is not None:
                seen.error = error
            raise

    def _exchange(self, method, body):
        deadline = time.monotonic() + self.timeout
        request = b"".join((
            b"POST /claviger.v1.StateService/", method.encode(), b" HTTP/1.1\r\nHost: claviger\r\n",
            b"Content-Type: application/json\r\nContent-Length: ", str(len(body)).encode(), b"\r\n\r\n", body,
        ))
        while True:
            connection = self._connection()
            reused = connection is not None
            try:
                if not reused:
                    connection = _Connection(self.path, deadline)
                    self._local.mine = (os.getpid(), connection)
                status, headers, answer = connection.exchange(request, deadline)
                if headers.get("connection") == "close":
                    self._drop()
                return status, headers, answer
            except (OSError, ValueError, LookupError) as error:
                self._drop()
                # The server closes connections that are idle: a kept one may be
                # gone, a new one not. A call may be sent twice without harm.
                if reused and time.monotonic() < deadline:
                    continue
                raise Unavailable(
                    "unavailable", f"custody does not answer at {self.path} ({error})",
                    "start claviger, or see that this process may reach its socket; nothing was signed or checked",
                ) from error
            except BaseException:  # an answer may still come: never read it as the next one's
                self._drop()
                raise

    def _connection(self):
        pid, connection = getattr(self._local, "mine", (0, None))
        # A fork's copy: the parent goes on with it. Or it has something to say that nobody asked for.
        if connection is not None and (pid != os.getpid() or not connection.quiet()):
            self._drop()
            return None
        return connection

    def _drop(self):
        _, connection = getattr(self._local, "mine", (0, None))
        if connection is not None:
            connection.socket.close()
        self._local.mine = (0, None)


class _Connection:
    """HTTP/1.1 over one socket. http.client does the same at three times the
    cost, most of it for headers that nobody reads."""

    def __init__(self, path, deadline):
        self.buffer = b""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._wait(deadline)
            self.socket.connect(path)
        except BaseException:
            self.socket.close()
            raise

    def __del__(self):  # a thread that ends leaves its connection
        self.socket.close()

    def exchange(self, request, deadline):
        self._wait(deadline)
        self.socket.sendall(request)
        lines = self._until(b"\r\n\r\n", deadline).decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ", 2)[1])
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if headers.get("transfer-encoding") != "chunked":
            return status, headers, self._take(int(headers.get("content-length", "")), deadline)
        answer = b""
        while True:
            size = int(self._until(b"\r\n", deadline).partition(b";")[0], 16)
            if len(answer) + size > _MAX_ANSWER:
                raise ValueError("the answer is too long")
            answer += self._take(size, deadline)
            self._until(b"\r\n", deadline)
            if size == 0:
                return status, headers, answer

    def quiet(self):
        """Whether nothing came that nobody asked for: the next answer would begin with it."""
        if self.buffer:
            return False
        self.socket.setblocking(False)
        try:
            self.socket.recv(1)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def _wait(self, deadline):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("it took too long")
        self.socket.settimeout(left)

    def _more(self, deadline):
        self._wait(deadline)
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionResetError("the connection was closed")
        self.buffer += data
        if len(self.buffer) > _MAX_ANSWER:
            raise ValueError("the answer is too long")

    def _until(self, end, deadline):
        while end not in self.buffer:
            self._more(deadline)
        head, _, self.buffer = self.buffer.partition(end)
        return head

    def _take(self, size, deadline):
        if not 0 <= size <= _MAX_ANSWER:
            raise ValueError("the answer is too long")
        while len(self.buffer) < size:
            self._more(deadline)
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data


def _token(answer):
    item = answer["items"][0]
    if not item.get("ok"):
        return None
    return Token(base64.b64decode(item.get("payload", "")), item["version"], item.get("renew", False))


def _b64(data):
    return base64.b64encode(data).decode()


def _json(name, value):
    if isinstance(value, bytes):
        return _b64(value)
    if isinstance(value, (list, tuple)):
        return [_json("", v) for v in value]
    if name in ("issued", "expires"):
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(value))
    return value
