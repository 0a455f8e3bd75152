#!/usr/bin/env python3
"""The outside world of this example: api.example.com over HTTPS and a mail server, both real, both on loopback.

usage: service.py [--dir DIR] [--https PORT] [--smtp PORT]          (port 0: any free one)

DIR (default: .loom/service) holds
  ca.pem       this service's own certificate authority, made at the first start; loom.json names it as caFile
  ports.json   {"https", "smtp"}: written once both listen
  log.jsonl    what the service did, one JSON line each, synced before the answer leaves: the proof of the example
  hold         while it exists and holds a path ("/accounts"), the service does what it is asked there but keeps the answer back
  refuse       while it exists, requests to the path in it are refused with 403

A request that repeats an Idempotency-Key is not executed again: it gets the first answer, and the log says `replayed`.
A mail with a Message-ID seen before likewise. Nothing else is remembered: accounts live as long as the process.
"""
import argparse
import email
import email.policy
import itertools
import json
import os
import signal
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

lock = threading.RLock()
answers = {}   # idempotency key -> (request, status, answer)
accounts = {}  # userId -> account
numbers = itertools.count(1)
mails = set()  # message ids delivered
place = None   # DIR


def path(name):
    return os.path.join(place, name)


def log(**fields):
    """One synced line. Callers hold the lock where order matters."""
    with lock, open(path("log.jsonl"), "a") as f:
        f.write(json.dumps({"time": round(time.time(), 3), **fields}) + "\n")
        f.flush()
        os.fsync(f.fileno())


def told(name, target):
    """Does the file DIR/name ask for something special at this path?"""
    try:
        with open(path(name)) as f:
            return target.startswith(f.read().strip() or "/")
    except FileNotFoundError:
        return False


def signup(_body):
    return 200, {"email": "ada@example.com", "name": "Ada Lovelace", "plan": "pro"}


def create_account(body):
    user = {"userId": f"u-{next(numbers)}", "email": body["email"], "name": body.get("name", "")}
    accounts[user["userId"]] = user
    return 201, user


def delete_account(user_id):
    if accounts.pop(user_id, None) is None:
        return 404, {"error": f"no account {user_id}"}
    return 200, {"userId": user_id, "deleted": True}


def route(method, target, body):
    if (method, target) == ("POST", "/forms/signup"):
        return signup(body)
    if (method, target) == ("POST", "/accounts"):
        return create_account(body)
    if method == "DELETE" and target.startswith("/accounts/"):
        return delete_account(target.removeprefix("/accounts/"))
    if (method, target) == ("POST", "/events"):
        return 202, {"accepted": body.get("event")}
    return 404, {"error": f"no route {method} {target}"}


def execute(method, target, body, key):
    """(status, answer, executed): each idempotency key executes once; the log line is on disk before the answer leaves."""
    line = {"kind": "http", "method": method, "path": target, "key": key}
    with lock:
        if told("refuse", target):
            log(**line, result="refused", status=403)
            return 403, {"error": "refused on demand"}, False
        if key in answers:
            request, status, answer = answers[key]
            if request != (method, target, body):
                log(**line, result="conflict", status=422)
                return 422, {"error": "this key was used with another request"}, False
            log(**line, result="replayed", status=status, answer=answer)
            return status, answer, False
        status, answer = route(method, target, body)
        if key:
            answers[key] = (method, target, body), status, answer
        log(**line, result="executed", status=status, answer=answer)
        return status, answer, True


class Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def setup(self):
        self.request.do_handshake()
        super().setup()

    def handle_any(self):
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            body = json.loads(raw) if raw else {}
            status, answer, executed = execute(self.command, self.path, body, self.headers.get("Idempotency-Key"))
        except (ValueError, KeyError, AttributeError) as e:
            status, answer, executed = 400, {"error": f"bad request: {e}"}, False
        while executed and told("hold", self.path):
            time.sleep(0.05)
        out = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)

    do_GET = do_POST = do_PUT = do_DELETE = handle_any

    def log_message(self, *_):
        """The default log goes to stderr; ours is log.jsonl."""


class Mail(socketserver.StreamRequestHandler):
    timeout = 60

    def say(self, text):
        self.wfile.write(text.encode() + b"\r\n")

    def handle(self):
        self.say("220 mail.example.com ready")
        rcpt = []
        while line := self.rfile.readline(4096):
            verb = line[:4].upper().strip()
            if verb == b"QUIT":
                return self.say("221 bye")
            if verb == b"DATA":
                self.say("354 end with a line of one dot")
                self.deliver(rcpt)
                rcpt = []
            elif verb == b"RCPT":
                rcpt.append(line.split(b":", 1)[-1].split(b">")[0].strip(b" <\r\n").decode())
                self.say("250 ok")
            elif verb in (b"EHLO", b"HELO", b"MAIL", b"RSET", b"NOOP"):
                self.say("250 mail.example.com")
            else:
                self.say("502 unknown command")

    def deliver(self, rcpt):
        lines = []
        while (line := self.rfile.readline(65536)) not in (b".\r\n", b""):
            lines.append(line[1:] if line.startswith(b".") else line)
        if not line:
            return  # cut off in the middle: not a mail
        m = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
        key = m["Message-ID"]
        with lock:
            result = "replayed" if key in mails else "executed"
            if key:
                mails.add(key)
            log(kind="mail", to=rcpt, subject=m["Subject"], key=key, result=result, text=m.get_body(("plain",)).get_content().strip())
        self.say("250 delivered")


class MailServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


class ApiServer(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Broken connections are what this example is about; the log tells what counts."""


def openssl(*args):
    subprocess.run(["openssl", *args], check=True, cwd=place, stderr=subprocess.PIPE)


def make_certificates():
    """A CA of our own and a certificate for api.example.com under it. The CA's key is thrown away."""
    if os.path.exists(path("cert.pem")):
        return
    ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *ec, "-days", "365", "-subj", "/CN=Loom example CA", "-keyout", "ca.key", "-out", "ca.pem",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl("req", *ec, "-subj", "/CN=api.example.com", "-keyout", "key.pem", "-out", "cert.csr")
    with open(path("cert.ext"), "w") as f:
        f.write("subjectAltName=DNS:api.example.com\nextendedKeyUsage=serverAuth\n")
    openssl("x509", "-req", "-in", "cert.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "365",
            "-extfile", "cert.ext", "-out", "cert.pem")
    for name in ("ca.key", "ca.srl", "cert.csr", "cert.ext"):
        os.remove(path(name))


def main():
    global place
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--dir", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.loom/service"))
    args.add_argument("--https", type=int, default=7443)
    args.add_argument("--smtp", type=int, default=7025)
    o = args.parse_args()
    place = os.path.abspath(o.dir)
    os.makedirs(place, exist_ok=True)
    make_certificates()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(path("cert.pem"), path("key.pem"))
    try:
        api = ApiServer(("127.0.0.1", o.https), Api)
        mail = MailServer(("127.0.0.1", o.smtp), Mail)
    except OSError as e:
        sys.exit(f"service.py: cannot listen on 127.0.0.1 ports {o.https} and {o.smtp}: {e.strerror}; choose others with --https and --smtp")
    # The handshake is done by each connection's own thread, so that a silent client holds up nobody.
    api.socket = tls.wrap_socket(api.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=mail.serve_forever, daemon=True).start()
    ports = {"https": api.server_address[1], "smtp": mail.server_address[1]}
    with open(path("ports.json.new"), "w") as f:
        json.dump(ports, f)
    os.replace(path("ports.json.new"), path("ports.json"))
    print(f"api.example.com on 127.0.0.1:{ports['https']} (HTTPS), mail on 127.0.0.1:{ports['smtp']}, log in {path('log.jsonl')}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    api.serve_forever()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
