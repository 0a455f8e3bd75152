"""One section per fault; each works on a worker of its own, or on the shared one when it leaves nothing behind."""
import base64, json, os, random, re, shutil, signal, socket, sqlite3, subprocess, sys, tempfile, threading, time
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "support"))
import loomtest
from loomtest import LOOM, ROOT, Bank, Project, Worker, check, free_port, until

CANARY = "c4n4ry/+%&<\\secret>=" + "".join(random.Random(7).choices("abcdefghijkmnpqrstuvwxyz23456789", k=20))

def refused(answer, status, code, words):
    """A problem with this status and code whose detail has these words."""
    problem = answer.json if answer.body.startswith("{") else {}
    return answer.status == status and problem.get("code") == code and all(w in problem.get("detail", "") for w in words)

# ---- odd JSON ----

def fault_26_odd_json(w):
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

def fault_30_hostile_names(w):
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

def fault_22_bad_modules(w):
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

def fault_10_and_bad_starts(w):
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

def fault_32_secret(w, bank):
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

def fault_07_and_08_damaged_and_restored(w):
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

def fault_07_other_programs(w):
    """What a killed worker left in the WAL another program may bring into the file; what it changes there is not taken for Loom's."""
    call = lambda id: w.post("/v1/actors/tally/shell/call", {"id": id}, Idempotency_Key=id).json["count"]
    call("before")
    time.sleep(1.1)  # what was seen is noted once a second
    call("seen")
    w.kill()
    check(os.path.getsize(f"{w.store}/loom.db-wal") > 0, "a killed worker leaves a WAL")
    wal = open(f"{w.store}/loom.db-wal", "rb").read()
    open(f"{w.store}/loom.db-wal", "wb").write(wal[:200] + bytes([wal[200] ^ 1]) + wal[201:])
    check(not serves(w) and "--accept-restored" in w.tail().splitlines()[-1], "one that is damaged is refused, for it ends too early", w.tail())
    check(os.path.getsize(f"{w.store}/loom.db-wal") == len(wal), "and stays as it is")
    open(f"{w.store}/loom.db-wal", "wb").write(wal)
    def shell(*statements):
        db = sqlite3.connect(f"{w.store}/loom.db", isolation_level=None)
        rows = [db.execute(s).fetchall() for s in statements]
        db.close()
        return rows
    check(shell("SELECT count(*) FROM actor WHERE key LIKE '%shell'")[0] == [(1,)] and not os.path.exists(f"{w.store}/loom.db-wal"), "another program reads it, and brings it into the file")
    w.start()
    check(call("before") == 1 and call("after") == 3, "which a worker goes on with")
    w.stop()
    shell("DELETE FROM rows WHERE kind = 6 AND instr(key, CAST('before' AS BLOB))")
    refused = not serves(w) or w.post("/v1/actors/tally/shell/call", {"id": "before"}, Idempotency_Key="before").status in (500, 503)
    check(refused and "page " in w.tail(), "a row that another program took away is not taken for one that never was", w.tail())
    w.kill()
    shell("VACUUM")
    w.start()
    check(call("next") == 4, "with VACUUM the other program's change counts")

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

def stops_well(w):
    check(w.stop() is not None, "the worker has lived through all of it and stops well", w.tail())

# ---- a full disk ----

def fault_04_full_disk(project, bank, disk):
    """A small tmpfs that another file fills; where mount is refused, a disk that says so."""
    folder = tempfile.mkdtemp(prefix="loom-disk-")
    mounted = not subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], capture_output=True).returncode
    w = Worker(project, store=f"{folder}/store")
    def fill(full):
        if not mounted:
            disk.set("full" if full else "")
        elif not full:
            os.unlink(f"{folder}/filler")
        else:
            with open(f"{folder}/filler", "wb") as f:
                try:
                    while True:
                        f.write(b"x" * 65536)
                        f.flush()
                except OSError:
                    pass
    try:
        print(f"# the full disk is {'a tmpfs' if mounted else 'test/preload/disk.c: mount is refused here'}", flush=True)
        if not mounted:
            disk.set()
            disk.before(w)
        w.start()
        w.deploy()
        fill_disk(w, fill, bank)
    finally:
        w.kill()
        if mounted:
            subprocess.run(["umount", "-l", folder])
        shutil.rmtree(folder, True)

def fill_disk(w, fill, bank):
    call = lambda id, **h: w.post("/v1/actors/tally/d/call", {"id": id, "how": h.pop("how", "")}, Idempotency_Key=id.split(":")[0], **h)
    acknowledged = [id for id in ("first", "second") if call(id).status == 200]
    nap = w.post("/v1/actors/tally/nap/send?delayMs=1500", {"id": "nap", "how": "nap"}, Idempotency_Key="nap")
    bank.delay, bank.inputs, bank.attempts = 2, {}, 0
    slow = w.post("/v1/actors/tally/slow/send", {"id": "slow", "how": "charge"}, Idempotency_Key="slow")
    until(5, lambda: bank.attempts)
    fill(True)
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
    fill(False)
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

def fault_16_poison():
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

# ---- a failing disk: test/preload/disk.c ----

class Disk:
    """Stands between a worker and its store's files."""
    def __init__(self, folder):
        self.library, self.knob = f"{folder}/disk.so", f"{folder}/knob"
        subprocess.run(["gcc", "-D_GNU_SOURCE", "-shared", "-fPIC", "-o", self.library, f"{ROOT}/test/preload/disk.c", "-ldl"], check=True)

    def before(self, worker):
        worker.env = {"LD_PRELOAD": self.library, "LOOM_DISK": self.knob, "LOOM_DISK_DIR": worker.store}
        return worker

    def set(self, text=""):
        with open(f"{self.knob}.new", "w") as f:
            f.write(text)
        os.rename(f"{self.knob}.new", self.knob)

def serves(w):
    """Starts it; False: it ended before it served."""
    w.spawn()
    def ready():
        try:
            return w.process.poll() is not None or w.get("/readyz").status == 200
        except OSError:
            return False
    until(30, ready, 0.01)
    return w.process.poll() is None

def examined(w, *what):
    done = subprocess.run([LOOM, "debug", *what, "--json", "--store", w.store], capture_output=True, text=True)
    return json.loads(done.stdout)["faults"] if done.stdout else [done.stderr]

CALLS = [("a", "first", ""), ("a", "pay", "charge"), ("b", "rest", "nap"), ("b", "other", "ask"), ("a", "last", ""), ("c", "z" * 300000, "")]

def scenario(w, revive):
    """One of each: calls with and without effects, an event, a run; each is repeated until it is answered. Answers the replies."""
    replies = {}
    def ask(path, body, key):
        while True:
            try:
                answer = w.post(path, body, Idempotency_Key=key)
                if answer.status not in (503, 202) or (answer.status == 202 and not path.endswith("/call")):
                    return answer
            except OSError:
                if w.process.poll() is not None:
                    revive()
    for actor, id, how in CALLS:
        replies[id] = ask(f"/v1/actors/tally/{actor}/call", {"id": id, "how": how}, id[:9]).body
    ask("/v1/actors/ear/e/send", None, "listen")
    ask("/v1/actors/ear/e/events/tick", 1, "tick")
    ask("/v1/workflows/order/runs?key=o", {"id": "o"}, "o")
    ask("/v1/actors/workflow.order/o/events/approved", {}, "approved")
    return replies

def told(w, bank, replies):
    """What is not as it must be after the scenario."""
    state = lambda actor: w.get(f"/v1/actors/tally/{actor}/state").json.get("ids", [])
    wrong = [] if until(20, lambda: w.get("/v1/actors/workflow.order/o").json.get("status") == "completed") else ["the run does not end"]
    wrong += [] if until(20, lambda: w.get("/v1/actors/ear/e/state").json.get("heard") == [1]) else ["the event is not heard once"]
    for actor in "abc":
        wrong += [] if state(actor) == [id for a, id, _ in CALLS if a == actor] else [(actor, state(actor))]
    for actor, id, how in CALLS:
        again = w.post(f"/v1/actors/tally/{actor}/call", {"id": id, "how": how}, Idempotency_Key=id[:9])
        wrong += [] if again.status == 200 and again.body == replies[id] else [(id[:9], again)]
    wrong += [(k, v) for k, v in bank.inputs.items() if len(v) != 1]
    wrong += [] if len(bank.inputs) == 3 else [("charges", list(bank.inputs.values()))]
    return wrong

STRIDE = int(os.environ.get("LOOM_KILL_STRIDE", "6"))

class Killed:
    """The scenario on a copy of a store, in a process that the disk kills."""
    def __init__(self, project, bank, disk):
        self.project, self.bank, self.disk = project, bank, disk
        w = Worker(project, store=f"{project.dir}/template").start()
        w.deploy()
        w.stop()
        self.worker = disk.before(Worker(project, store=f"{project.dir}/killed"))

    def run(self, knobs):
        """Each process of the run gets the next knob, the last ones none. Answers how many were killed, and what is wrong."""
        w, knobs, deaths = self.worker, list(knobs), 0
        shutil.rmtree(w.store, True)
        shutil.copytree(f"{self.project.dir}/template", w.store)
        self.bank.inputs = {}
        def revive():
            nonlocal deaths
            while True:
                self.disk.set(knobs.pop(0) if knobs else "")
                if serves(w):
                    return
                deaths += 1
        revive()
        def again():
            nonlocal deaths
            deaths += 1
            revive()
        replies, wrong = scenario(w, again), None
        while wrong is None:
            try:
                wrong = told(w, self.bank, replies)
            except OSError:  # killed by a write that the scenario did not wait for
                again()
        w.kill()
        wrong += examined(w, "verify") + examined(w, "replay", "--all")
        return deaths, wrong

def fault_01_and_03_killed_at_each_write(project, bank, disk):
    killed, wrong, n, deaths = Killed(project, bank, disk), [], 1, 1
    count = again = 0
    while deaths:
        deaths, found = killed.run([f"{'tear' if n % 2 else 'kill'} {n}"])
        wrong += [(n, found)] if found else []
        count, n = count + deaths, n + STRIDE - (STRIDE % 2 == 0) * (count % 2)
    check(not wrong and count > 5, f"killed before or within its n-th write to the disk ({count} of {n}), it goes on as if nothing had been", wrong[:3])
    wrong, last = [], n
    for n in (last // 4, last // 2, last * 3 // 4):
        m, deaths = 1, 2
        while deaths == 2:
            deaths, found = killed.run([f"kill {n}", f"kill {m}"])
            wrong += [(n, m, found)] if found else []
            again, m = again + (deaths == 2), m + 2 * STRIDE
    check(not wrong and again > 3, f"and killed again while it recovers ({again} times)", wrong[:3])

def fault_05_and_06_failed_sync(project, disk):
    w = disk.before(Worker(project, store=f"{project.dir}/unsynced"))
    disk.set()
    w.start()
    w.deploy()
    call = lambda id: w.post("/v1/actors/tally/s/call", {"id": id}, Idempotency_Key=id)
    acknowledged = [id for id in ("one", "two") if call(id).status == 200]
    disk.set("sync")
    try:
        call("three")
        answered = True
    except OSError:
        answered = False
    check(not answered and until(10, lambda: w.process.poll() is not None) and w.process.returncode == 70, "after a failed fsync nothing is acknowledged: the worker ends", w.tail())
    disk.set()
    w.start()
    check(call("three").json["count"] == 3 and w.get("/v1/actors/tally/s/state").json["ids"] == [*acknowledged, "three"],
          "the next start rewrites the store, and what was acknowledged is there once")
    check(w.stop() is not None and not examined(w, "verify"), "which is whole")

def fault_07_flipped_and_cut(project, bank):
    """Every so many bytes of a store's file: verify finds it or it does not matter, a worker refuses the file or gives no wrong value."""
    source, copy = f"{project.dir}/whole", f"{project.dir}/flipped"
    w = Worker(project, store=source).start()
    w.deploy()
    bank.inputs = {}
    replies = scenario(w, lambda: None)
    until(10, lambda: w.get("/v1/actors/workflow.order/o").json["status"] == "completed")
    good = {a: w.get(f"/v1/actors/{a}/state").json for a in ("tally/a", "tally/b", "ear/e", "workflow.order/o")}
    w.stop()
    size, whole = os.path.getsize(f"{source}/loom.db"), report_of("dump", source)
    steps, dice, wrong, counts = int(os.environ.get("LOOM_FLIPS", "120")), random.Random(5), [], {"found": 0, "harmless": 0, "refused": 0, "served": 0}
    for i in range(steps):
        at, cut = size * i // steps + dice.randrange(size // steps), i % 6 == 0
        shutil.rmtree(copy, True)
        shutil.copytree(source, copy)
        with open(f"{copy}/loom.db", "r+b") as f:
            if cut:
                f.truncate(at)
            else:
                f.seek(at)
                byte = f.read(1)[0]
                f.seek(at)
                f.write(bytes([byte ^ (1 << dice.randrange(8))]))
        what = ("cut" if cut else "flipped", at)
        code, out, err = debug_of("verify", copy)
        same = report_of("dump", copy) == whole
        counts["found" if code else "harmless"] += 1
        wrong += [] if code == 1 or (code == 0 and same) else [(*what, code, out[-500:], err)]
        if i % 4:
            continue
        v = Worker(project, store=copy)
        if not serves(v):
            counts["refused"] += 1
            why = v.tail().splitlines()[-1]
            named = "loom.db" in why if cut or at < 4096 else f"page {at // 4096 + 1}" in why or " row " in why
            wrong += [] if v.process.returncode == 1 and named else [(*what, v.process.returncode, why)]
            continue
        counts["served"] += 1
        for actor, state in good.items():
            answer = v.get(f"/v1/actors/{actor}/state")
            wrong += [] if (answer.status == 200 and answer.json == state) or answer.status in (500, 503) else [(*what, actor, answer)]
        for actor, id, how in CALLS[:3]:
            answer = v.post(f"/v1/actors/tally/{actor}/call", {"id": id, "how": how}, Idempotency_Key=id[:9])
            wrong += [] if (answer.status == 200 and answer.body == replies[id]) or answer.status in (500, 503) else [(*what, id, answer)]
        v.kill()
    check(not wrong, f"a store with a byte flipped, or cut, at {steps} places: {counts}, and never a wrong value", wrong[:3])

def debug_of(verb, store):
    done = subprocess.run([LOOM, "debug", verb, "--store", store], capture_output=True, text=True, errors="replace")
    return done.returncode, done.stdout, done.stderr

def report_of(verb, store):
    """The rows of a dump, without what says whose they are."""
    return sorted(line for line in debug_of(verb, store)[1].splitlines() if line.startswith('{"kind"') and '"lease"' not in line)

def fault_09_slow_disk(project, disk):
    w = disk.before(Worker(project, store=f"{project.dir}/slow"))
    disk.set()
    w.start()
    w.deploy()
    disk.set("slow 4000")
    first, last, reads = [], [], []
    def ask(n):
        body = {"id": f"{n}:" + "w" * 60000}
        while True:
            answer = w.post(f"/v1/actors/tally/s{n}/call", body, Idempotency_Key=f"s{n}")
            first.append(answer) if answer.status == 503 else last.append(answer)
            if answer.status != 503:
                return
            time.sleep(int(answer.headers["Retry-After"]))
    threads = [threading.Thread(target=lambda: reads.append(w.get("/v1/actors/tally/s0/state").status))]
    threads[0].start()
    while not first and len(threads) < 2000:  # a lone one holds up the loop for one sync; then two batches, of whatever has come meanwhile, and a full one are the end
        wave = [threading.Thread(target=ask, args=(n,)) for n in range(len(threads), len(threads) + 100)]
        for t in wave:
            t.start()
        threads += wave
        time.sleep(0.5)
    disk.set()
    for t in threads:
        t.join()
    check(first and all(refused(a, 503, "busy", ["disk"]) and a.headers["Retry-After"] for a in first), f"with a slow disk, {len(first)} requests are told to come again later", first[:1])
    check(len(last) == len(threads) - 1 and all(a.status == 200 and a.json["count"] == 1 for a in last) and reads[0] in (200, 404), "and all are done once when it is faster", [a for a in last if a.status != 200][:1])
    w.stop()

def fault_12_stopped_and_continued(project, bank):
    """A worker that stands still for longer than its clients and timers wait."""
    w = Worker(project, store=f"{project.dir}/stopped").start()
    w.deploy()
    w.request("PUT", "/v1/workflows/patient/1", {"name": "patient", "version": "1", "steps": [{"id": "w", "type": "wait", "event": "never", "timeout": 1000}]})
    bank.delay, bank.inputs, bank.attempts, replies = 1, {}, 0, {}
    def ask(n, how):
        while n not in replies:
            try:
                answer = w.post(f"/v1/actors/tally/p{n}/call", {"id": f"p{n}", "how": how}, timeout=1.2, Idempotency_Key=f"p{n}")
                if answer.status == 200:
                    replies[n] = answer.json["count"]
            except OSError:
                pass
    w.post("/v1/workflows/patient/runs?key=p", {})
    threads = [threading.Thread(target=ask, args=(n, how)) for n, how in enumerate(["", "nap", "charge", "ask"] * 4)]
    for t in threads:
        t.start()
    until(5, lambda: bank.attempts >= 1)
    w.process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    w.process.send_signal(signal.SIGCONT)
    for t in threads:
        t.join()
    until(10, lambda: w.get("/v1/actors/workflow.patient/p").json["status"] == "failed")
    timers = {f"tally/p{n}": [e["type"] for e in w.journal(f"tally/p{n}")].count("timer_fired") for n in range(1, 16, 4)}
    timed_out = [e["type"] for e in w.journal("workflow.patient/p")].count("event_timed_out")
    check(len(replies) == 16 and set(replies.values()) == {1}, "after SIGSTOP for longer than its clients wait, and SIGCONT, each request is done once", replies)
    check(set(timers.values()) == {1} and timed_out == 1, "each timer has fired once", (timers, timed_out))
    check(len(bank.inputs) == 4 and all(len(v) == 1 for v in bank.inputs.values()), "and each payment has one key", bank.inputs)
    bank.delay = 0
    check(w.stop() is not None and not examined(w, "verify"), "the store is whole")

def fault_17_worker_dies(project):
    """Another worker waits for the store and goes on with what the first one had open."""
    first = Worker(project, store=f"{project.dir}/taken").start()
    first.deploy()
    first.post("/v1/workflows/order/runs?key=t", {"id": "t"}, Idempotency_Key="t")
    until(10, lambda: first.get("/v1/actors/workflow.order/t").json["status"] == "suspended")
    second = Worker(project, store=first.store)
    check(not serves(second) and second.process.returncode == 1, "while the first worker lives, another one does not get its store", second.tail())
    second.spawn()  # it tries for two seconds
    time.sleep(0.2)
    first.kill()
    check(until(30, lambda: second.process.poll() is None and alive(second), 0.02), "when it dies, the one that waits takes over", second.tail())
    second.post("/v1/actors/workflow.order/t/events/approved", {}, Idempotency_Key="ok")
    check(until(10, lambda: second.get("/v1/actors/workflow.order/t").json["status"] == "completed"), "and what was open goes on to its end")
    second.stop()

def alive(w):
    try:
        return w.get("/readyz").status == 200
    except OSError:
        return False

# ---- every door ----

def fault_25_and_26_at_every_door(w):
    bodies = {"100,000 brackets": b"[" * 100000, "bytes that are not UTF-8": b'{"a":"\xff"}', "a lone surrogate": rb'{"a":"\ud800"}', "a name twice": b'{"a":1,"a":2}', "a number beyond double": b"[1e400]"}
    doors = [("POST", f"/v1/actors/tally/door/{verb}") for verb in ("call", "send", "events/e", "cancel", "resume", "fork")]
    doors += [("POST", "/v1/workflows/order/runs"), ("PUT", "/v1/activities/door/1"), ("PUT", "/v1/actor-types/door/1"), ("PUT", "/v1/workflows/door/1")]
    w.post("/v1/actors/tally/door/call", {"id": "there"})
    for what, body in bodies.items():
        wrong = [(d, a) for d in doors if not refused(a := w.request(*d, body), 400, "invalid_json", [])]
        check(not wrong, f"{what}: refused at each of {len(doors)} routes that take JSON", wrong[:2])
        with tempfile.TemporaryDirectory() as d:
            open(f"{d}/body.json", "wb").write(body)
            done = subprocess.run([LOOM, "send", "tally/door", f"@{d}/body.json", "--url", f"http://127.0.0.1:{w.port}"], capture_output=True, text=True)
            check(done.returncode == 1 and "body.json" in done.stderr, f"{what}: refused by the command line, naming the file", done.stderr)
            open(f"{d}/loom.json", "wb").write(body)
            done = subprocess.run([LOOM, "build", d], capture_output=True, text=True, errors="replace")
            check(done.returncode == 1 and "loom.json" in done.stderr, f"{what}: refused in loom.json, by name", done.stderr)
    check(w.get("/v1/actors/tally/door/state").json["ids"] == ["there"], "nothing of it has arrived")

def fault_26_odd_answers(w, bank):
    """What a remote side answers against the rules is a string to the guest, which charge's outputSchema does not take, and the journal stays JSON."""
    for n, raw in enumerate([b"[" * 101, b'{"a":1,"a":2}', b"[1e400]", rb'"\ud800"']):
        bank.raw = raw
        answer = w.post(f"/v1/actors/tally/odd{n}/call", {"id": f"odd{n}", "how": "charge"}, Idempotency_Key=f"odd{n}")
        ends = [e["type"] for e in w.journal(f"tally/odd{n}")][-2:]
        check(refused(answer, 422, "invalid_output", ["is not of type"]) and ends[-1] == "turn_failed", f"the answer {raw[:20]} comes as the text that it is", (answer, ends))
    bank.raw = None

def main():
    bank = Bank()
    config = {"network": {"connectTo": {"bank.test:80": f"127.0.0.1:{bank.port}"}},
              "secrets": {"BANK_KEY": {"env": "LOOM_TEST_CANARY", "hosts": ["bank.test"], "headers": ["authorization"]}}}
    os.environ["LOOM_TEST_CANARY"] = CANARY
    project = Project(config)
    w = Worker(project).start()
    w.deploy()
    disk = Disk(project.dir)
    sections = [  # shared worker first; what damages it, or needs one of its own, follows
        (fault_26_odd_json, w), (fault_25_and_26_at_every_door, w), (fault_26_odd_answers, w, bank), (fault_30_hostile_names, w), (fault_22_bad_modules, w),
        (bad_documents, w), (fault_10_and_bad_starts, w), (fault_32_secret, w, bank), (graceful, w, bank), (fault_07_and_08_damaged_and_restored, w), (fault_07_other_programs, w), (stops_well, w),
        (fault_01_and_03_killed_at_each_write, project, bank, disk), (fault_04_full_disk, project, bank, disk), (fault_05_and_06_failed_sync, project, disk),
        (fault_07_flipped_and_cut, project, bank), (fault_09_slow_disk, project, disk), (fault_12_stopped_and_continued, project, bank), (fault_16_poison,),
        (fault_17_worker_dies, project)]
    for section, *arguments in sections:
        if len(sys.argv) == 1 or sys.argv[1] in section.__name__:
            began = time.monotonic()
            section(*arguments)
            print(f"# {section.__name__}: {time.monotonic() - began:.1f} s", flush=True)
    loomtest.end()

main()
