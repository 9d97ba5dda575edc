"""A Flask application. It signs with a secret that it reads from standard input
(local), or not at all (custody).

Usage: flask_app.py local|custody [KEY SOCKET]
"""

import os
import sys

from flask import Flask, request, session
from itsdangerous import BadSignature, Signer, URLSafeTimedSerializer
from werkzeug.serving import make_server

app = Flask(__name__)
made = {}  # what makes serializers


@app.get("/login")
def login():
    session["user"] = "alice"
    return "in"


@app.get("/me")
def me():
    return session.get("user", "-")


@app.get("/sign")
def sign():
    return made["timed"]().dumps({"id": 5}) + "\n" + made["signer"]().sign("forty-two").decode()


@app.get("/check")
def check():
    timed, signed = request.headers["X-Tokens"].split(" ")
    answers = []
    for what, token, want in ((made["timed"]().loads, timed, {"id": 5}), (made["signer"]().unsign, signed, b"forty-two")):
        try:
            answers.append("yes" if what(token) == want else "no")
        except BadSignature:
            answers.append("no")
    return " ".join(answers)


def main():
    if sys.argv[1] == "local":
        app.secret_key = sys.stdin.readline().strip()
        made["timed"] = lambda: URLSafeTimedSerializer(app.secret_key, salt="activate")
        made["signer"] = lambda: Signer(app.secret_key)
    else:
        import claviger
        import claviger.flask
        from claviger.itsdangerous import signer

        key = claviger.Key(*sys.argv[2:4])
        claviger.flask.install(app, key)
        made["timed"] = lambda: URLSafeTimedSerializer("", salt="activate", signer=signer(key))
        made["signer"] = lambda: signer(key, timed=False)("")
    server = make_server("127.0.0.1", int(os.environ.get("PORT", 0)), app, threaded=True)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
