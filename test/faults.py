"""One section per fault; each works on a worker of its own, or on the shared one when it leaves nothing behind."""
import base64, json, os, random, re, shutil, socket, sqlite3, subprocess, sys, tempfile, threading, time
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "support"))
import loomtest
from loomtest import LOOM, ROOT, Bank, Project, Worker, check, free_port, skip, until

CANARY = "c4n4ry/+%&<\\secret>=" + "".join(random.Random(7).choices("abcdefghijkmnpqrstuvwxyz23456789", k=20))

def refused(answer, status, code, words):
    """A problem with this status and code whose detail has these words."""
    problem = answer.json if answer.body.startswith("{") else {}
    return answer.status == status and problem.get("code") == code and all(w in problem.get("detail", "") for w in words)

# ---- odd JSON ----

def odd_json(w):
    def call(body, **headers):
        return w.post("/v1/actors/tally/odd/call", body, **headers)
    bad = {
        "bytes that are not UTF-8": b'{"id":"\xff"}', "an overlong encoding": b'{"id":"\xc0\xaf"}', "a surrogate in UTF-8": b'{"id":"\xed\xa0\x80"}',
        "a lone surrogate": rb'{"id":"\ud800"}', "surrogates in the wrong order": rb'{"id":"\udc00\ud800"}',
        "a name twice": b'{"id":"a","id":"b"}', "a name twice, escaped once": rb'{"id":"a","\u0069d":"b"}', "a name twice, deep inside": b'{"id":"a","x":[{"y":1,"y":2}]}',
        "a number beyond double": b'{"id":"a","n":1e400}', "NaN": b'{"id":"a","n":NaN}', "a comma too much": b'{"id":"a",}', "text after the value": b'{"id":"a"} x',
        "100,000 brackets": b"[" * 100000, "a depth of 101": b'{"id":"a","x":' + b"[" * 100 + b"]" * 100 + b"}",
        "a control character": b'{"id":"\x01"}', "a leading zero": b'{"id":"a","n":01}',
    }
    for what, body in bad.items():
        answer = call(body)
        check(refused(answer, 400, "invalid_json", []), f"{what}: refused at the door", answer)
    check(refused(call(b""), 400, "invalid_argument", ["empty"]), "no body: refused at the door")
    good = {"a NUL in a string": rb'{"id":"a\u0000b"}', "a noncharacter": '{"id":"\uffff\U0010ffff"}'.encode(), "a surrogate pair": rb'{"id":"\ud83d\ude00"}',
            "an integer beyond 64 bits": b'{"id":"big","n":123456789012345678901234567890}', "a depth of 100": b'{"id":"deep","x":' + b"[" * 99 + b"]" * 99 + b"}",
            "an empty name": b'{"id":"e","":{"":0}}', "a negative zero": b'{"id":"z","n":-0.0}'}
    for what, body in good.items():
        answer = call(body)
        check(answer.status == 200 and answer.json["id"] == json.loads(body)["id"], f"{what}: accepted, and the same comes back", answer)
    check("123456789012345678901234567890" in w.get("/v1/actors/tally/odd/journal").body, "the integer beyond 64 bits stands in the journal as it was written")
    check(sorted(w.get("/v1/actors/tally/odd/state").json["ids"]) == sorted(json.loads(b)["id"] for b in good.values()), "the state has the good ones only, unchanged")
    big = call(b'{"id":"' + b"x" * (2 << 20) + b'"}')
    check(refused(big, 413, "too_large", []), "a body above 2 MB is refused", big)
    large = "y" * (1 << 20)
    check(call({"id": large}).json["id"] == large, "one of 1 MB comes back whole")
    for id in ["x" * 257, "a\tb"]:
        answer = call(b'{"id":"m"}', Idempotency_Key=id)
        check(answer.status == 400, "a message id that is too long or has control characters is refused", answer)
    first, other = call({"id": "once"}, Idempotency_Key="k1"), call({"id": "twice"}, Idempotency_Key="k1")
    check(first.status == 200 and refused(other, 409, "idempotency_conflict", ["k1"]), "a key with another input is refused by name", other)
    schema = call({"id": 7})
    check(refused(schema, 400, "invalid_input", ["id"]), "an input against the schema is refused, naming the field", schema)

# ---- names ----

def files_of(root):
    return {os.path.join(d, f) for d, _, names in os.walk(root) for f in names}

def hostile_names(w):
    before = {f for f in files_of(w.project) if not f.startswith(w.store)}
    climbing = ["..", "../../etc/passwd", "/etc/passwd", "a/../../b", "..\\..\\b", "a\0b", "%2e%2e", ".hidden", "A", "ä", "x" * 65, "a b", "a\nb"]
    quoted = lambda s: "".join(f"%{b:02x}" for b in s.encode())
    wrong = []
    for name in climbing:
        q = quoted(name)
        for method, path in [("PUT", f"/v1/modules/{q}/1"), ("PUT", f"/v1/modules/m/{q}%2f"), ("PUT", f"/v1/activities/{q}/1"), ("PUT", f"/v1/actor-types/{q}/1"),
                             ("PUT", f"/v1/workflows/{q}/1"), ("POST", f"/v1/actors/{q}/k/call"), ("GET", f"/v1/actors/{q}/k")]:
            kind = "application/wasm" if "modules" in path else "application/json"
            answer = w.request(method, path, b"{}", Content_Type=kind)
            if answer.status not in (400, 404):
                wrong.append((method, path, answer))
        answer = w.request("POST", "/v1/actors/tally/k/call", b'{"id":"x"}', Loom_Namespace=quoted(name))
        wrong += [] if answer.status in (400, 403) else [("namespace", name, answer)]
    check(not wrong, "names that climb or leave the pattern are refused on every route", wrong[:3])
    for key in ["a/b", "a\0b", "k\x7f", "x" * 257, "\n"]:
        answer = w.post(f"/v1/actors/tally/{quoted(key)}/call", {"id": "x"})
        wrong += [] if answer.status == 400 else [(key, answer)]
    check(not wrong, "keys with slashes or control characters are refused", wrong[:3])
    odd = w.post(f"/v1/actors/tally/{quoted('../..; DROP TABLE rows ü%')}".replace("%2f", "."), {"id": "x"})
    ok = w.post(f"/v1/actors/tally/{quoted('.. ;DROP ü%')}/call", {"id": "x"})
    check(ok.status == 200 and odd.status in (404, 405), "a key is data: any other text is one", ok)
    after = {f for f in files_of(w.project) if not f.startswith(w.store)}
    check(after - before <= {w.log}, "no file has appeared outside the store", after - before)

# ---- modules ----

def bad_modules(w):
    with open(f"{w.project}/actors/tally/tally.wasm", "rb") as f:
        good = f.read()
    dice, wrong, taken = random.Random(3), [], 0
    put = lambda name, data: w.request("PUT", f"/v1/modules/{name}/1", data, Content_Type="application/wasm")
    for n in sorted({0, 1, 4, 7, 8, 9} | {len(good) * i // 12 for i in range(12)} | {len(good) - 1}):
        answer = put(f"cut{n}", good[:n])
        wrong += [] if answer.status == 400 and answer.json["code"] in ("invalid_module", "invalid_argument") and len(answer.json["detail"]) > 20 else [(n, answer)]
    check(not wrong, "a module cut anywhere is refused with the reason", wrong[:3])
    for i in range(40):
        data = bytearray(good)
        for _ in range(dice.choice([1, 1, 3, 20])):
            data[dice.randrange(8, len(data))] = dice.randrange(256)
        answer = put(f"mutant{i}", bytes(data))
        taken += answer.status == 201
        wrong += [] if answer.status == 201 or (answer.status == 400 and answer.json["code"] == "invalid_module") else [(i, answer)]
    check(not wrong, f"a module with damaged bytes is refused with the reason, or still valid ({taken} of 40)", wrong[:3])
    texts = {
        "without memory": ('(module (func (export "run")))', "memory"), "without run": ('(module (memory (export "memory") 1))', "run"),
        "with a run that takes an argument": ('(module (memory (export "memory") 1) (func (export "run") (param i32)))', "run"),
        "with a foreign import": ('(module (import "env" "system" (func)) (memory (export "memory") 1) (func (export "run")))', "system"),
        "with a real WASI import": ('(module (import "wasi_snapshot_preview1" "path_open" (func (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))'
                                    ' (memory (export "memory") 1) (func (export "run")))', None),
    }
    for what, (text, word) in texts.items():
        with tempfile.TemporaryDirectory() as d:
            open(f"{d}/a.wat", "w").write(text)
            subprocess.run(["wat2wasm", f"{d}/a.wat", "-o", f"{d}/a.wasm"], check=True)
            answer = put("lacking", open(f"{d}/a.wasm", "rb").read())
        if word:
            check(refused(answer, 400, "invalid_module", [word]), f"a module {what} is refused, naming it", answer)
        else:
            check(answer.status in (201, 400), f"a module {what} gets no file system", answer)
    check(w.post("/v1/actors/tally/after/call", {"id": "x"}).status == 200, "the worker lives on")

# ---- definitions and workflows ----

def bad_documents(w):
    put = lambda path, body: w.request("PUT", path, body)
    step = lambda **s: {"name": "bad", "version": "1", "steps": [{"id": "first-step", **s}]}
    for what, doc in {"an unknown type": step(type="sing"), "no activity": step(type="activity"), "a field that there is not": step(type="wait", event="e", colour=1),
                      "a broken expression": step(type="condition", **{"if": "a ==", "then": [{"type": "wait", "event": "e"}]}),
                      "a path that starts nowhere": step(type="activity", activity="charge", input="{{ nowhere.id }}")}.items():
        answer = put("/v1/workflows/bad/1", doc)
        check(refused(answer, 400, "invalid_document", ["first-step"]), f"a workflow step with {what} is refused, naming the step", answer)
    answer = put("/v1/actor-types/lost/1", {"actorType": "lost", "version": "1", "wasmBlobUrl": "module:nothing@9"})
    check(answer.status in (400, 404) and "nothing" in answer.json["detail"], "a definition of a module that there is not is refused by name", answer)
    answer = put("/v1/activities/x/1", {"activityName": "x", "version": "1", "wasmBlobUrl": "module:actor.tally@1.0.0", "limits": {"maxMemoryMB": -1}})
    check(refused(answer, 400, "invalid_document", ["maxMemoryMB"]), "a limit that cannot be is refused by name", answer)
    answer = put("/v1/activities/x/1", {"activityName": "x", "version": "1", "wasmBlobUrl": "module:actor.tally@1.0.0", "inputSchema": {"type": 7}})
    check(refused(answer, 400, "invalid_document", ["inputSchema"]), "a schema that is none is refused by name", answer)

# ---- starting ----

def bad_starts(w):
    def start(*args, dir=None):
        done = subprocess.run([LOOM, "worker", dir or w.project, "--listen", f"127.0.0.1:{free_port()}", *args], capture_output=True, text=True, timeout=30)
        return done.returncode, done.stdout + done.stderr
    code, text = start("--store", w.store)
    check(code == 1 and str(w.process.pid) in text and w.store in text, "a second process on the store is refused, naming the first", text)
    with tempfile.TemporaryDirectory() as d:
        code, text = start("--store", f"{d}/s", "--listen", f"127.0.0.1:{w.port}")
        check(code == 1 and str(w.port) in text, "a port in use is named", text)
        os.mkdir(f"{d}/newer")
        db = sqlite3.connect(f"{d}/newer/loom.db")
        db.execute("PRAGMA user_version = 99")
        db.close()
        code, text = start("--store", f"{d}/newer")
        check(code == 1 and "99" in text and "newer" in text, "a store of a newer format is refused, naming both formats and the remedy", text)
        os.mkdir(f"{d}/junk")
        open(f"{d}/junk/loom.db", "wb").write(random.Random(1).randbytes(20000))
        code, text = start("--store", f"{d}/junk")
        check(code == 1 and "loom.db" in text, "a file that is no store is refused by name", text)
        open(f"{d}/file", "w").close()
        code, text = start("--store", f"{d}/file")
        check(code == 1 and f"{d}/file" in text, "a store that is a file is refused by name", text)
        for what, config, word in [("JSON that is broken", '{"name":', "loom.json"), ("an unknown field", '{"nmae": "x"}', "nmae"), ("a list", "[]", "object"),
                                   ("a wrong type", '{"network": {"allowPrivate": "yes"}}', "allowPrivate"), ("a port that is none", '{"network": {"connectTo": {"a:1": "b:x"}}}', "connectTo"),
                                   ("a secret without a source", '{"secrets": {"K": {}}}', "K"), ("a variable that is not set", '{"secrets": {"K": {"env": "LOOM_NOT_SET", "hosts": ["a.test"]}}}', "LOOM_NOT_SET")]:
            open(f"{d}/loom.json", "w").write(config)
            code, text = start("--store", "memory", dir=d)
            check(code == 1 and word in text, f"a loom.json with {what} is refused, naming it", text)
    check(w.get("/readyz").status == 200, "the first worker is unharmed")

# ---- secrets ----

def canary(w, bank):
    answer = w.post("/v1/workflows/leak/runs?key=spy", {})
    done = until(20, lambda: (r := w.get("/v1/workflows/leak/runs/spy")).json["status"] in ("completed", "failed") and r)
    arrived = any(h.get("Authorization") == f"Bearer {CANARY}" for h in bank.seen)
    check(answer.status == 202 and arrived, "the secret's value reaches the host it is bound to", (done, bank.seen[-1:]))
    seen = [done.body if done else "", w.get("/v1/actors/workflow.leak/spy/journal").body, w.get("/metrics").body, w.get("/v1/actors").body]
    check(done and done.json["status"] == "completed" and "{{secret:BANK_KEY}}" in seen[1], "its echo comes back as the handle", seen[1])
    w.stop()
    for f in files_of(w.store) | {w.log}:
        with open(f, "rb") as b:
            seen.append(b.read().decode("latin-1"))
    w.start()
    hits = []
    for value in (CANARY, f"Bearer {CANARY}", f"xx{CANARY}", f"x{CANARY}"):
        raw = value.encode()
        forms = [value, json.dumps(value)[1:-1], raw.hex(), raw.hex().upper(), base64.b64encode(raw).decode().rstrip("=")[4:-4], base64.urlsafe_b64encode(raw).decode().rstrip("=")[4:-4]]
        hits += [form for form in forms for text in seen if form in text]
    check(not hits, f"it stands nowhere in {len(seen)} replies, logs and files of the store, neither raw, base64 nor hex", hits[:3])

# ---- a damaged store, a restored one ----

def damaged(w):
    for actor in "abc":
        for n in range(3):
            w.post(f"/v1/actors/tally/dmg-{actor}/call", {"id": f"{actor}{n}"})
    w.stop()
    db = sqlite3.connect(f"{w.store}/loom.db")
    db.execute("UPDATE rows SET value = replace(value, 'idle', 'idlf') WHERE kind = 1 AND key = CAST('default/tally/dmg-a' AS BLOB)")
    db.execute("UPDATE rows SET value = replace(value, 'b1', 'b7') WHERE kind = 2 AND CAST(key AS TEXT) LIKE 'default/tally/dmg-b%'")
    db.commit()
    db.close()
    backup = shutil.copytree(w.store, f"{w.project}/backup")
    w.start()
    for verb, path in [("GET", "dmg-a"), ("POST", "dmg-a/call"), ("GET", "dmg-b/journal")]:
        answer = w.request(verb, f"/v1/actors/tally/{path}", {"id": "x"} if verb == "POST" else None)
        check(refused(answer, 500, "damaged", [path.split("/")[0]]), f"a damaged row is never a value, it is named ({verb} {path})", answer)
    check(w.post("/v1/actors/tally/dmg-c/call", {"id": "x"}).json["count"] == 4, "other actors run")
    time.sleep(1.1)  # what was seen is noted once a second
    w.post("/v1/actors/tally/dmg-c/call", {"id": "y"})
    w.stop()
    for f in ("loom.db", "loom.db-wal", "loom.db-shm"):
        if os.path.exists(f"{w.store}/{f}"):
            os.unlink(f"{w.store}/{f}")
    shutil.copy(f"{backup}/loom.db", f"{w.store}/loom.db")
    args = [LOOM, "worker", w.project, "--store", w.store, "--listen", "127.0.0.1:0"]
    done = subprocess.run(args, capture_output=True, text=True, timeout=30)
    check(done.returncode == 1 and "--accept-restored" in done.stderr, "a restored backup is refused, with the remedy", done)
    w.program.append("--accept-restored")
    w.start()
    w.program.pop()
    check(w.get("/v1/actors/tally/dmg-c/state").json["ids"] == ["c0", "c1", "c2"], "and taken when that is meant")

# ---- a graceful stop with everything open ----

def graceful(w, bank):
    bank.delay, bank.inputs = 20, {}
    answers = []
    ask = lambda: answers.append(w.post("/v1/actors/tally/pending/call", {"id": "p", "how": "charge"}, Idempotency_Key="p"))
    caller = threading.Thread(target=ask)
    caller.start()
    stream = socket.create_connection(("127.0.0.1", w.port))
    stream.sendall(b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
    half = socket.create_connection(("127.0.0.1", w.port))
    half.sendall(b"POST /v1/actors/tally/x/call HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
    until(5, lambda: bank.inputs)
    seconds = w.stop()
    caller.join()
    check(seconds is not None and seconds < 5, f"SIGTERM with a call, an activity, a stream and half a request open takes {(seconds or 99) * 1000:.0f} ms", w.tail())
    check(answers[0].status == 503 and answers[0].json["code"] == "stopping", "the waiting caller is told that it may ask again", answers)
    bank.delay = 0
    w.start()
    ask()
    check(answers[1].status == 200 and answers[1].json["count"] == 1, "after the restart the same key gets the reply", answers[1])
    check(len(bank.inputs) == 1, "and the activity went on under its idempotency key", bank.inputs)

# ---- a full disk ----

def disk_full(project, bank):
    disk = tempfile.mkdtemp(prefix="loom-disk-")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk], capture_output=True).returncode:
        os.rmdir(disk)
        return skip("a full disk", "mount is refused here")
    w = Worker(project, store=f"{disk}/store")
    try:
        w.start()
        w.deploy()
        fill_disk(w, disk, bank)
    finally:
        w.kill()
        subprocess.run(["umount", "-l", disk])
        os.rmdir(disk)

def fill_disk(w, disk, bank):
    call = lambda id, **h: w.post("/v1/actors/tally/d/call", {"id": id, "how": h.pop("how", "")}, Idempotency_Key=id.split(":")[0], **h)
    acknowledged = [id for id in ("first", "second") if call(id).status == 200]
    nap = w.post("/v1/actors/tally/nap/send?delayMs=1500", {"id": "nap", "how": "nap"}, Idempotency_Key="nap")
    bank.delay, bank.inputs, bank.attempts = 2, {}, 0
    slow = w.post("/v1/actors/tally/slow/send", {"id": "slow", "how": "charge"}, Idempotency_Key="slow")
    until(5, lambda: bank.attempts)
    with open(f"{disk}/filler", "wb") as f:
        try:
            while True:
                f.write(b"x" * 65536)
                f.flush()
        except OSError:
            pass
    refused_ids, answer = [], None
    for n in range(400):
        id = f"n{n}:" + "z" * 20000
        answer = call(id)
        (acknowledged if answer.status == 200 else refused_ids).append(id)
        if len(refused_ids) >= 5:
            break
    check(refused_ids and refused(answer, 507, "disk_full", []), "with the disk full a write gets 507", answer)
    blob = w.post("/v1/actors/tally/blob/call", {"id": "b" * 400000}, Idempotency_Key="blob")
    check(blob.status in (503, 507) and blob.json["retryable"], "so does a large one, and it may be repeated", blob.status)
    read = w.get("/v1/actors/tally/d/state")
    check(read.status == 200 and read.json["ids"] == acknowledged, "reads go on, and show what was acknowledged and nothing else",
          (read.status, len(read.body), len(acknowledged)))
    check(w.get("/healthz").status == 200, "the worker lives")
    time.sleep(2)
    os.unlink(f"{disk}/filler")
    back = until(10, lambda: (a := call(refused_ids[0])).status == 200 and a, 0.1)
    check(back, "when space returns, writes go on without a restart", call(refused_ids[0]))
    check(nap.status == 202 and until(10, lambda: w.get("/v1/actors/tally/nap/messages/nap").json["status"] == "completed"), "so does what fell due meanwhile",
          w.get("/v1/actors/tally/nap"))
    paid = until(10, lambda: (a := w.get("/v1/actors/tally/slow/messages/slow")).json["status"] == "completed" and a)
    check(slow.status == 202 and paid and bank.attempts == 1, "an activity's result that came meanwhile is not asked for again", (bank.attempts, paid))
    bank.delay = 0
    for id in refused_ids[1:]:
        call(id)
    large = w.post("/v1/actors/tally/blob/call", {"id": "b" * 400000}, Idempotency_Key="blob")
    ids = w.get("/v1/actors/tally/d/state").json["ids"]
    check(sorted(ids) == sorted(acknowledged + refused_ids) and large.json["count"] == 1, "every message is there once after it was repeated", (len(ids), large.status))
    w.kill()
    w.start()
    check(w.get("/v1/actors/tally/d/state").json["ids"] == ids, "and after a kill -9")

# ---- a guest that takes the worker down ----

def poison():
    library, folder = os.path.join(os.path.dirname(LOOM), "libloom.a"), tempfile.mkdtemp(prefix="loom-test-")
    try:
        deps = subprocess.run([f"{ROOT}/scripts/deps", "--path"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
        built = subprocess.run(["gcc", "-std=c11", "-D_GNU_SOURCE", f"-I{ROOT}/include", f"{ROOT}/test/guests/poison.c", library, f"{deps}/lib/libloomdeps.a", "-fuse-ld=lld",
                                "-lcurl", "-lssl", "-lcrypto", "-lpthread", "-ldl", "-lm", *os.environ.get("LOOM_TEST_CFLAGS", "").split(),
                                "-o", f"{folder}/poison"],
                               capture_output=True, text=True)
        if not check(built.returncode == 0, "a program with native guests is built on libloom.a", built.stderr):
            return
        runs = []
        while len(runs) < 16 and (not runs or runs[-1].returncode):
            runs.append(subprocess.run([f"{folder}/poison", f"{folder}/store", *([] if runs else ["send"])], capture_output=True, text=True, timeout=60))
        deaths, out = len(runs) - 1, runs[-1].stdout
        check(runs[-1].returncode == 0 and all(r.returncode == -6 for r in runs[:-1]), f"two guests that abort the process are given up after it died {deaths} times",
              [(r.returncode, r.stdout, r.stderr[-500:]) for r in runs])
        check(6 <= deaths <= 10, "each was tried three times after the death that could not be counted")
        for key in ("now", "later"):
            check(re.search(rf"^{key} bad .*poison", out, re.M), f"the message that aborts ({key}) ends as a dead letter with the reason", out)
            check(re.search(rf"^{key} good .*well", out, re.M), f"the actor's other mail goes on ({key})", out)
        check(re.search("^bystander good .*well", out, re.M), "so does that of others", out)
    finally:
        shutil.rmtree(folder, True)

def main():
    bank = Bank()
    config = {"network": {"connectTo": {"bank.test:80": f"127.0.0.1:{bank.port}"}},
              "secrets": {"BANK_KEY": {"env": "LOOM_TEST_CANARY", "hosts": ["bank.test"], "headers": ["authorization"]}}}
    os.environ["LOOM_TEST_CANARY"] = CANARY
    project = Project(config)
    w = Worker(project).start()
    w.deploy()
    for section in (odd_json, hostile_names, bad_modules, bad_documents, bad_starts):
        section(w)
    canary(w, bank)
    graceful(w, bank)
    damaged(w)
    check(w.stop() is not None, "the worker has lived through all of it and stops well", w.tail())
    disk_full(project, bank)
    poison()
    loomtest.end()

main()
