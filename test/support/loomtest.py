"""What the tests of real processes share: a project made from test/guests, a worker that can be killed and started again on the
same store, a bank for its activities, and TAP lines.
"""
import atexit, http.client, http.server, json, os, shutil, signal, socket, sqlite3, subprocess, sys, tempfile, threading, time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
LOOM = os.environ.get("LOOM", os.path.join(ROOT, "build", "loom"))
failed = False

def check(good, sentence, detail=""):
    global failed
    failed = failed or not good
    print(("ok - " if good else "not ok - ") + sentence, flush=True)
    if not good and str(detail):
        print("    " + str(detail)[:4000].replace("\n", "\n    "), flush=True)
    return good

def until(seconds, question, pause=0.05):
    """Asks until the answer is true; answers it, or the last one."""
    end = time.monotonic() + seconds
    while not (answer := question()) and time.monotonic() < end:
        time.sleep(pause)
    return answer

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

class Bank(http.server.ThreadingHTTPServer):
    """Notes the inputs of each idempotency key, and writes another receipt at each attempt: a recorded one must never change.
    trouble: the status of the n-th answer, to this body; 0: none."""
    daemon_threads = True

    def __init__(self, trouble=lambda n, body: 200):
        super().__init__(("127.0.0.1", 0), BankRequest)
        self.trouble, self.lock = trouble, threading.Lock()
        self.inputs, self.attempts, self.seen, self.delay, self.raw = {}, 0, [], 0, None
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, address):
        pass  # the worker was killed in the middle of a request

class BankRequest(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        bank, body = self.server, self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        key = self.headers.get("Idempotency-Key")
        with bank.lock:
            bank.attempts += 1
            status, receipt = bank.trouble(bank.attempts, body), bank.attempts
            bank.inputs.setdefault(key, set()).add(body)
            bank.seen.append(dict(self.headers))
        time.sleep(bank.delay)
        if not status:  # it took the money and hangs up
            self.close_connection = True
            return
        answer = {"receipt": receipt}
        if self.path == "/echo":
            answer = {"headers": dict(self.headers), "text": str(self.headers), "body": body}
        text = bank.raw or json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("X-Echo", self.headers.get("Authorization", ""))
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
        except OSError:
            pass  # the worker was killed

    def log_message(self, *_):
        pass

class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.body[:600]!r}"

class Project:
    """A copy of test/guests in a folder of its own, built once."""
    def __init__(self, config=None):
        self.dir = tempfile.mkdtemp(prefix="loom-test-")
        atexit.register(shutil.rmtree, self.dir, True)
        shutil.copytree(os.path.join(ROOT, "test", "guests"), self.dir, dirs_exist_ok=True)
        with open(f"{self.dir}/loom.json", "w") as f:
            json.dump({"name": "faults"} | (config or {}), f)
        done = subprocess.run([LOOM, "build", self.dir], capture_output=True, text=True)
        if done.returncode:
            check(False, "the guests of the tests build", done.stdout + done.stderr)
            sys.exit(1)

class Worker:
    def __init__(self, project, store=None, env=None, program=None):
        self.project, self.store = project.dir, store or f"{project.dir}/store"
        self.env, self.log, self.port = env, f"{project.dir}/log", free_port()
        self.program = program or [LOOM, "worker", self.project]
        self.process = None
        atexit.register(self.kill)

    def spawn(self):
        self.process = subprocess.Popen([*self.program, "--store", self.store, "--listen", f"127.0.0.1:{self.port}"],
                                        stdin=subprocess.DEVNULL, stdout=open(self.log, "a"), stderr=subprocess.STDOUT,
                                        env=dict(os.environ) | (self.env or {}))

    def start(self):
        self.spawn()
        if not until(30, self.answers, 0.01):
            check(False, "the worker starts", self.tail())
            sys.exit(1)
        return self

    def answers(self):
        try:
            return self.process.poll() is not None and sys.exit(self.died()) or self.get("/readyz").status == 200
        except OSError:
            return False

    def died(self):
        check(False, f"the worker lives (it ended with {self.process.returncode})", self.tail())
        return 1

    def tail(self):
        with open(self.log, errors="replace") as f:
            return "".join(f.readlines()[-15:])

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()

    def stop(self):
        """SIGTERM; how long it took, or None when it did not end well."""
        begin = time.monotonic()
        self.process.terminate()
        try:
            code = self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            return None
        return time.monotonic() - begin if code == 0 else None

    def deploy(self):
        done = subprocess.run([LOOM, "deploy", self.project, "--url", f"http://127.0.0.1:{self.port}"], capture_output=True, text=True)
        return check(done.returncode == 0, "the guests are deployed", done.stdout + done.stderr)

    def request(self, method, path, body=None, timeout=60, connection=None, **headers):
        headers = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        c = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            c.request(method, path, body if isinstance(body, (bytes, type(None))) else json.dumps(body), headers)
            r = c.getresponse()
            return Answer(r.status, r.headers, r.read().decode(errors="replace"))
        except http.client.HTTPException as e:
            raise ConnectionError(str(e)) from e
        finally:
            if not connection:
                c.close()

    def get(self, path, **more):
        return self.request("GET", path, **more)

    def post(self, path, body=None, **more):
        return self.request("POST", path, body, **more)

    def journal(self, actor):
        entries, at = [], 0
        while at is not None:
            page = self.get(f"/v1/actors/{actor}/journal?from={at}&limit=5000").json
            entries, at = entries + page["entries"], page["next"]
        return entries

# ---- the store from outside ----

def hash64(data, seed=0):
    """base/hash.c's hash64, so that the chain is checked by other code than what wrote it."""
    mask, k0, k1, k2 = (1 << 64) - 1, 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03, 0xABC98388FB8FAC03
    def fold(a, b):
        product = a * b
        return (product & mask) ^ (product >> 64)
    word = lambda b: int.from_bytes(b, "little")
    h, at = fold(seed ^ k0, len(data) ^ k1), 0
    while len(data) - at > 16:
        h = fold(word(data[at:at + 8]) ^ k1, word(data[at + 8:at + 16]) ^ h)
        at += 16
    return fold(k2 ^ fold(word(data[at:at + 8]) ^ k1, word(data[at + 8:at + 16]) ^ h), h ^ k0)

JOURNAL = 2  # enum row_kind

def broken_chains(store):
    """Journals in the store whose rows are not dense or not linked, each with the reason."""
    db = sqlite3.connect(f"file:{store}/loom.db?mode=ro", uri=True)
    wrong, actor, expected, chain, count = [], None, 0, None, 0
    for key, value in db.execute("SELECT key, value FROM rows WHERE kind = ? ORDER BY key", (JOURNAL,)):
        name, number = key[:-17].decode(), int(key[-16:], 16)
        text = value if isinstance(value, bytes) else value.encode()
        row = json.loads(text)
        if name != actor:
            actor, expected, chain = name, 1, None
        if number != expected:
            wrong.append(f"{name}: entry {expected} is missing, {number} follows")
        if chain is not None and int(row["prev"], 16) != chain:
            wrong.append(f"{name}: the row at {number} does not link to the one before it")
        expected, chain, count = number + len(row["entries"]), hash64(text), count + 1
    db.close()
    return wrong, count

def end():
    sys.exit(1 if failed else 0)
