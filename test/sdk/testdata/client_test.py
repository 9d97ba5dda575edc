"""Tests of the client: client_test.py SOCKET"""

import os
import socket
import sys
import tempfile
import threading
import time
import unittest

import claviger

SERVER = sys.argv.pop()


class Fake:
    """A server that answers each connection in a given way."""

    def __init__(self, *answers):
        self.path = os.path.join(tempfile.mkdtemp(), "s")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.held = []
        threading.Thread(target=self.serve, args=(answers,), daemon=True).start()

    def serve(self, answers):
        for answer in answers:
            connection, _ = self.listener.accept()
            self.held.append(connection)
            for part in answer:
                connection.recv(65536)
                if part is None:
                    connection.shutdown(socket.SHUT_RDWR)
                else:
                    connection.sendall(part)

    def close(self):
        self.listener.close()
        for connection in self.held:
            connection.close()


def answer(body, *headers):
    head = [b"HTTP/1.1 200 OK", *headers]
    if not headers:
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(head) + b"\r\n\r\n" + body


NOT_VALID = b'{"items":[{}]}'


class TestKey(unittest.TestCase):
    def fake(self, *answers, timeout=2.0):
        fake = Fake(*answers)
        self.addCleanup(fake.close)
        return claviger.Key("k", fake.path, timeout)

    def test_tokens(self):
        key = claviger.Key("dev/shop/django", SERVER)
        token = key.protect("django.timestamp", "größe".encode(), issued=1760000000)
        found = key.unprotect("django.timestamp", token)
        self.assertEqual((found.payload.decode(), found.version, found.renew), ("größe", 1, False))
        self.assertIsNone(key.unprotect("django.timestamp", token, salt="other"))
        large = b"x" * 100_000
        self.assertEqual(key.unprotect("django.signer", key.protect("django.signer", large)).payload, large)

    def test_refusals(self):
        for name, format, code in (("dev/no/key", "django.signer", "not_found"), ("dev/shop/django", "rails.verifier", "unsupported")):
            with self.assertRaises(claviger.Error) as caught:
                claviger.Key(name, SERVER).protect(format, b"x")
            self.assertEqual(caught.exception.code, code)
            self.assertNotIsInstance(caught.exception, claviger.Unavailable)
            self.assertTrue(caught.exception.hint)

    def test_threads_and_forks(self):
        key = claviger.Key("dev/shop/django", SERVER)
        failures = []

        def work(n):
            try:
                for i in range(20):
                    payload = b"%d-%d" % (n, i)
                    found = key.unprotect("django.signer", key.protect("django.signer", payload))
                    if found.payload != payload:
                        failures.append(found.payload)
            except Exception as error:
                failures.append(error)

        key.protect("django.signer", b"before")
        children = []
        for n in range(3):
            pid = os.fork()
            if pid == 0:
                work(n)
                os._exit(1 if failures else 0)
            children.append(pid)
        work(10)
        self.assertEqual([os.waitpid(pid, 0)[1] for pid in children], [0, 0, 0])
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])

    def test_deadline(self):
        key = self.fake([b"HTTP/1.1 200 OK\r\n"], timeout=0.1)
        began = time.monotonic()
        with self.assertRaises(claviger.Unavailable):
            key.unprotect("f", b"t")
        self.assertLess(time.monotonic() - began, 1.5)

    def test_kept_connection_that_is_gone(self):
        key = self.fake([answer(NOT_VALID), None], [answer(NOT_VALID)])
        for _ in range(2):
            self.assertIsNone(key.unprotect("f", b"t"))

    def test_more_than_was_asked_for(self):
        key = self.fake([answer(NOT_VALID) * 2], [answer(b'{"items":[{"ok":true,"version":2}]}')])
        self.assertIsNone(key.unprotect("f", b"t"))
        self.assertEqual(key.unprotect("f", b"t").version, 2)

    def test_new_connection_that_is_gone(self):
        with self.assertRaises(claviger.Unavailable):
            self.fake([None], [answer(NOT_VALID)]).unprotect("f", b"t")

    def test_chunked(self):
        chunks = b"5\r\n" + NOT_VALID[:5] + b"\r\n%x;x=y\r\n" % (len(NOT_VALID) - 5) + NOT_VALID[5:] + b"\r\n0\r\n\r\n"
        key = self.fake([answer(chunks, b"Transfer-Encoding: chunked"), answer(NOT_VALID, b"Content-Length: 14", b"Connection: close")], [answer(NOT_VALID)])
        for _ in range(3):
            self.assertIsNone(key.unprotect("f", b"t"))

    def test_strange_answers(self):
        for text in (
            b"\r\n\r\n", b"220 smtp ready\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", answer(b"not json"), answer(b"[]"), answer(b"{}"), answer(b'{"items":[]}'),
            answer(b'{"items":[{"ok":true}]}'), answer(b"", b"Content-Length: -1"), answer(b"", b"Content-Length: 99999999999"),
            answer(b"fffffff\r\n", b"Transfer-Encoding: chunked"), answer(b"-5\r\n", b"Transfer-Encoding: chunked"),
        ):
            with self.subTest(text), self.assertRaises(claviger.Unavailable):
                self.fake([text]).unprotect("f", b"t")

    def test_an_error_that_is_swallowed_comes_out(self):
        key = claviger.Key("k", "/nowhere")
        with self.assertRaises(claviger.Unavailable), claviger.watching():
            try:
                key.unprotect("f", b"t")
            except Exception:
                pass


unittest.main(argv=sys.argv)
