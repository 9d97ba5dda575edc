"""Measures what a request to Django costs with its signing in custody, next to
local signing, in one run: /usr/bin/python3 test/sdk/bench_django.py [--bin bin]

Two processes, one of each kind, answer Django's test client in turns, so that
both meet the same machine. It prints the median request of each, the 10th
percentile, which a busy machine disturbs least, and the ratios.
"""

import argparse
import multiprocessing
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "testdata"), os.path.join(HERE, "..", "..", "sdk", "python")]

KEY = "dev/shop/django"
ENGINES = {"database": "django.contrib.sessions.backends.db", "signed cookie": "django.contrib.sessions.backends.signed_cookies"}


def serve(pipe, mode, database, engine, socket, secret):
    import django_app

    django_app.configure(mode, database, engine, [KEY, socket], secret)
    from django.core.management import call_command
    from django.test import Client

    call_command("migrate", verbosity=0)
    client = Client()
    assert client.get("/login").content == b"in"
    while True:
        path, rounds = pipe.recv()
        if not rounds:
            return
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            response = client.get(path)
            times.append(time.perf_counter() - began)
            assert response.status_code == 200, response
        pipe.send(times)


def compare(name, engine, path, directory, socket, secret, rounds):
    pipes, children = {}, []
    for mode in ("local", "custody"):
        pipes[mode], other = multiprocessing.Pipe()
        database = os.path.join(directory, f"{mode}-{name}.sqlite3")
        child = multiprocessing.get_context("spawn").Process(target=serve, args=(other, mode, database, engine, socket, secret), daemon=True)
        child.start()
        children.append(child)
    times = {"local": [], "custody": []}
    for i in range(rounds + 1):
        for mode in times:
            pipes[mode].send((path, 10))
            got = pipes[mode].recv()
            if i:  # the first round warms up
                times[mode] += got
    for mode, child in zip(pipes, children):
        pipes[mode].send((path, 0))
        child.join()
    for title, nth in (("median", 4), ("10th percentile", 0)):
        local, custody = (statistics.quantiles(t, n=10)[nth] * 1e6 for t in times.values())
        print(f"{name:<14} {title:<16} {local:>9.0f} {custody:>11.0f} {custody / local:>7.2f}", flush=True)


def check_time(socket):
    import claviger

    key = claviger.Key(KEY, socket)
    token, times = key.protect("django.signer", b"x"), []
    for _ in range(500):
        began = time.perf_counter()
        assert key.unprotect("django.signer", token)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", default=os.path.join(HERE, "..", "..", "bin"), help="directory of the programs")
    parser.add_argument("--rounds", type=int, default=60, help="rounds of 10 requests")
    flags = parser.parse_args()
    claviger = os.path.join(flags.bin, "claviger")
    with tempfile.TemporaryDirectory() as directory:
        server = subprocess.Popen([claviger, "dev", "--dir", directory, "--listen", "", "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            socket = server.stdout.readline().strip().removeprefix("export CLAVIGER_ADDR=unix://")
            secret = secrets.token_urlsafe(40)
            with open(os.path.join(directory, "identity")) as f:
                pin = f.read().strip()
            subprocess.run([claviger, "--address", "unix://" + socket, "state", "adopt", KEY, "--set", "django", "--pin", pin],
                           input=secret, text=True, check=True, stdout=subprocess.DEVNULL)
            print(f"{'sessions':<14} {'of a request':<16} {'local us':>9} {'custody us':>11} {'ratio':>7}")
            for name, engine in ENGINES.items():
                compare(name, engine, "/page", directory, socket, secret, flags.rounds)
            print(f"one check over the socket: {check_time(socket):.0f} us; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
