"""What `loom debug` finds in a store that is whole, and in copies of it that are damaged one way each."""
import fnmatch, hashlib, json, os, random, shutil, sqlite3, subprocess, sys, threading, time
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "support"))
import loomtest
from loomtest import LOOM, Bank, Project, Worker, check, hash64, until

ACTOR, JOURNAL, MAILBOX, TIMER, OUTBOX, INBOX, MODULE, LEASE, REGISTRY = range(1, 10)  # enum row_kind

def debug(*args, input=None, env=None):
    done = subprocess.run([LOOM, "debug", *args], capture_output=True, text=True, input=input, timeout=120, env=dict(os.environ) | (env or {}))
    return done.returncode, done.stdout, done.stderr

def report(*args):
    code, out, err = debug(*args, "--json")
    return json.loads(out) | {"code": code} if out else {"code": code, "faults": [err]}

class Store:
    """A copy of a store's folder whose rows are changed with checksums that fit."""
    def __init__(self, source, folder):
        self.dir = shutil.copytree(source, folder)
        self.db = sqlite3.connect(f"{folder}/loom.db", isolation_level=None)

    def rows(self, kind, like="*"):
        """Rows whose key fits, with _ for NUL."""
        rows = self.db.execute("SELECT key, CAST(value AS BLOB) FROM rows WHERE kind = ? ORDER BY key", (kind,)).fetchall()
        return [(k, v) for k, v in rows if fnmatch.fnmatchcase(k.decode().replace("\0", "_"), like)]

    def put(self, kind, key, value):
        total = hash64(value, hash64(key, kind))
        self.db.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, CAST(? AS TEXT), ?)", (kind, key, value, total - (1 << 64) if total >> 63 else total))

    def change(self, kind, like, old, new):
        changed = [(k, v.replace(old, new)) for k, v in self.rows(kind, like) if old in v]
        for key, value in changed:
            self.put(kind, key, value)
        return len(changed)

    def delete(self, kind, like, first=0, count=None):
        found = self.rows(kind, like)[first:][:count]
        for key, _ in found:
            self.db.execute("DELETE FROM rows WHERE kind = ? AND key = ?", (kind, key))
        return len(found)

    def close(self):
        self.db.execute("VACUUM")  # or its pages do not match their checksums
        self.db.close()

def fill(w):
    """Actors at rest, one with a part of its journal, a workflow that waits for a person, a timer, buffered events, delayed mail, a large state and a failed run."""
    for n, how in enumerate(["", "charge", "nap", "ask", ""]):
        check(w.post("/v1/actors/tally/a/call", {"id": f"a{n}", "how": how}, Idempotency_Key=f"a{n}").status == 200, f"a call is answered ({how or 'plain'})")
    w.post("/v1/actors/tally/large/call", {"id": "x" * 300000}, Idempotency_Key="large")
    w.post("/v1/actors/tally/large/call", {"id": "y"}, Idempotency_Key="large2")
    brief = {"actorType": "brief", "version": "1", "wasmBlobUrl": "module:actor.tally@1.0.0", "defaultState": {"ids": []}, "journalRetention": 3}
    check(w.request("PUT", "/v1/actor-types/brief/1", brief).status == 201, "a type that keeps few entries is deployed")
    for n in range(8):
        w.post("/v1/actors/brief/b/call", {"id": f"b{n}", "how": ["", "nap"][n % 2]}, Idempotency_Key=f"b{n}")
    entries = w.get("/v1/actors/brief/b/journal").json["entries"]
    check(len(entries) < 14 < entries[0]["cursor"], "and its journal begins late", entries)
    w.post("/v1/actors/ear/e/send", None, Idempotency_Key="listen")
    for n in range(3):
        w.post("/v1/actors/ear/e/events/tick", n, Idempotency_Key=f"tick{n}")
    w.post("/v1/actors/tally/late/send?delayMs=3600000", {"id": "late"}, Idempotency_Key="late")
    w.post("/v1/workflows/order/runs?key=o1", {"id": "o1"}, Idempotency_Key="o1")
    w.post("/v1/workflows/sleepy/runs?key=s1", {}, Idempotency_Key="s1")
    w.post("/v1/workflows/parent/runs?key=p1", {}, Idempotency_Key="p1")
    w.post("/v1/actors/workflow.sleepy/s1/fork", {"key": "s2"}, Idempotency_Key="s2")
    until(10, lambda: all(w.get(f"/v1/actors/{a}").json["status"] == "suspended" for a in ("ear/e", "workflow.order/o1", "workflow.sleepy/s1", "workflow.sleepy/s2", "workflow.parent/p1")))

def workflow(w, name, *steps):
    answer = w.request("PUT", f"/v1/workflows/{name}/1", {"name": name, "version": "1", "steps": list(steps)})
    check(answer.status == 201, f"the workflow {name} is deployed", answer)

def whole(w, folder):
    """A live store, the stopped one and one restored from its dump are the same, and whole."""
    os.environ["LOOM_URL"] = f"http://127.0.0.1:{w.port}"
    live = report("digest")
    check(live["code"] == 0 and live["kinds"]["actor"]["rows"] >= 8, "digest of a worker's store", live)
    beside = report("digest", "--store", w.store)
    check(beside["digest"] == live["digest"], "its folder has the same one, beside the worker", beside)
    for verb in (["verify"], ["replay", "--all"], ["replay", "tally/a"]):
        found = report(*verb)
        check(found["code"] == 0 and not found["faults"], f"{' '.join(verb)} finds nothing wrong with a live store", found)
    check(report("replay", "tally/nobody")["faults"] == ["there is no actor default/tally/nobody"], "an actor that there is not is named")
    code, text, err = debug("dump")
    w.stop()
    check(report("digest", "--store", w.store)["digest"] == live["digest"], "stopped, it has the same digest")
    check(code == 0 and len(debug("dump", "--store", w.store)[1].splitlines()) == len(text.splitlines()), "and its dump the same rows", err)
    open(f"{folder}/dump", "w").write(text)
    code, out, err = debug("restore", f"{folder}/dump", "--store", f"{folder}/restored")
    check(code == 0 and report("digest", "--store", f"{folder}/restored")["digest"] == live["digest"], "restored from its dump, too", out + err)
    code, _, err = debug("restore", f"{folder}/dump", "--store", f"{folder}/restored")
    check(code == 1 and "exists" in err, "restore overwrites nothing", err)
    found = report("verify", "--store", f"{folder}/restored")
    check(found["code"] == 0 and found["checked"]["open turns"] >= 4 and found["checked"]["timers"] >= 2, "the restored store is whole", found)
    other = Store(f"{folder}/restored", f"{folder}/other")
    check(other.change(ACTOR, "*/tally/a", b'"a0"', b'"b0"') == 1, "a copy differs in one byte")
    other.close()
    check(report("digest", "--store", other.dir)["digest"] != live["digest"], "and has another digest")

def older(folder):
    """A store of format 2, whose pages have no checksums, is refused, read by `dump` and becomes ours by `restore`."""
    os.mkdir(f"{folder}/old")
    shutil.copytree(f"{folder}/restored/blobs", f"{folder}/old/blobs")
    whole, db = sqlite3.connect(f"{folder}/restored/loom.db"), sqlite3.connect(f"{folder}/old/loom.db")
    db.executescript("".join(f"{line}\n" for line in whole.iterdump()) + "PRAGMA user_version = 2")
    whole.close()
    db.close()
    check(open(f"{folder}/old/loom.db", "rb").read(21)[20] == 0, "a store of format 2 has no room for checksums of pages")
    done = subprocess.run([LOOM, "worker", folder, "--store", f"{folder}/old", "--listen", "127.0.0.1:0"], capture_output=True, text=True)
    check(done.returncode == 1 and "format 2" in done.stderr and "loom debug restore - --store NEW" in done.stderr, "it is refused, with what brings it over", done.stderr)
    check(report("verify", "--store", f"{folder}/old")["faults"] == [], "verify finds nothing wrong with it")
    code, _, err = debug("restore", "-", "--store", f"{folder}/new", input=debug("dump", "--store", f"{folder}/old")[1])
    digest = lambda store: report("digest", "--store", f"{folder}/{store}")["digest"]
    check(code == 0 and digest("new") == digest("old") == digest("restored"), "and brought over it holds the same", err)
    check(open(f"{folder}/new/loom.db", "rb").read(21)[20] == 8, "in pages with checksums")

def faults(folder):
    """Each damage is found, by name, and nothing else is."""
    def drop_blob(s):
        found = [os.path.join(d, f) for d, _, names in os.walk(f"{s.dir}/blobs") for f in names]
        target = next(f for f in found if not open(f, "rb").read(4) == b"\0asm")
        os.unlink(target)
    def spoil_module(s):
        sha = json.loads(s.rows(MODULE, "*actor.tally*")[0][1])["sha256"]
        open(f"{s.dir}/blobs/{sha[:2]}/{sha[2:]}", "r+b").write(b"\0asn")
    cases = {
        "a wrong checksum": (lambda s: s.db.execute("UPDATE rows SET sum = sum + 1 WHERE kind = ? AND CAST(key AS TEXT) LIKE '%/tally/a'", (ACTOR,)), "tally/a"),
        "a lost journal row": (lambda s: s.delete(JOURNAL, "default/tally/a_*", 1, 1), "is missing"),
        "a journal that begins too late": (lambda s: s.delete(JOURNAL, "default/brief/b_*", 0, 1), "it begins with entry"),
        "a changed entry": (lambda s: s.change(JOURNAL, "default/tally/a_*", b'"a1"', b'"a7"'), "link"),
        "a row that is not JSON": (lambda s: s.put(OUTBOX, b"default/tally/a", b"{"), "not JSON"),
        "a lost timer": (lambda s: s.delete(TIMER, "*sleepy*"), "no timer will wake it"),
        "a lost timer of a message": (lambda s: s.delete(TIMER, "*late*"), "no timer will deliver it"),
        "a lost message": (lambda s: s.delete(MAILBOX, "mdefault/tally/late*"), "is nowhere"),
        "a message with a reply": (lambda s: s.change(INBOX, "late*", b'"}', b'","status":"completed"}'), "waits still"),
        "a message of nobody": (lambda s: s.delete(ACTOR, "*/tally/late"), "which there is not"),
        "a journal of nobody": (lambda s: s.delete(ACTOR, "default/tally/asked"), "belong to no actor"),
        "a lost state": (lambda s: s.delete(ACTOR, "default/tally/large_s"), "state of default/tally/large is missing"),
        "an actor that is idle within a turn": (lambda s: s.change(ACTOR, "*/ear/e", b'"suspended"', b'"idle"'), "an open turn"),
        "an actor that runs and is not in the outbox": (lambda s: s.change(ACTOR, "*/ear/e", b'"suspended"', b'"running"'), "not in the outbox"),
        "a child that is gone": (lambda s: s.delete(ACTOR, "*/ear/c1") and s.delete(JOURNAL, "*/ear/c1*"), "will not answer"),
        "a lost blob": (drop_blob, "there is no blob"),
        "a module with other bytes": (spoil_module, "does not match its name"),
        "a definition with another text": (lambda s: s.change(REGISTRY, "actor-type/*tally*", b"tally", b"tolly"), "definition"),
    }
    for n, (what, (damage, words)) in enumerate(cases.items()):
        s = Store(f"{folder}/restored", f"{folder}/fault{n}")
        damage(s)
        s.close()
        found = report("verify", "--store", s.dir)
        check(found["code"] == 1 and any(words in f for f in found["faults"]) and len(found["faults"]) <= 4, f"verify finds {what}", found)
        shutil.rmtree(s.dir)

def replays(folder):
    """What a journal does not bear out is found."""
    def relink(s, actor):
        """Journal rows chained anew, and the document after them."""
        chain = 0
        for key, value in s.rows(JOURNAL, f"{actor}_*"):
            row = json.loads(value)
            text = value.replace(row["prev"].encode(), f"{chain:016x}".encode(), 1) if chain else value
            s.put(JOURNAL, key, text)
            chain = hash64(text)
        for key, value in s.rows(ACTOR, actor):
            old = json.loads(value)["journal"]["chain"]
            s.put(ACTOR, key, value.replace(f'"chain":{old}'.encode(), f'"chain":{chain - (1 << 64) if chain >> 63 else chain}'.encode()))
    cases = {
        "another state": (lambda s: s.change(ACTOR, "default/tally/a", b'"a0"', b'"b0"'), "the stored state of default/tally/a is"),
        "another reply": (lambda s: s.change(JOURNAL, "default/tally/a_*", b'"result":{"id":"a0","count":1}', b'"result":{"id":"a0","count":2}'), "ended with"),
        "another op": (lambda s: s.change(JOURNAL, "default/tally/a_*", b'"delayMs":20', b'"delayMs":21'), "replay_mismatch"),
        "another input": (lambda s: s.change(JOURNAL, "default/tally/a_*", b'"input":{"id":"a0"', b'"input":{"id":"q0"'), "replay_mismatch"),
    }
    for n, (what, (change, words)) in enumerate(cases.items()):
        s = Store(f"{folder}/restored", f"{folder}/replay{n}")
        changed = change(s)
        relink(s, "default/tally/a")
        s.close()
        found = report("replay", "--all", "--store", s.dir)
        check(changed and found["code"] == 1 and any(words in f for f in found["faults"]) and all("tally/a" in f for f in found["faults"]),
              f"replay finds {what}", (changed, found))
        found = report("verify", "--store", s.dir)
        check(what == "another state" or found["code"] == 0, "which verify cannot see", found)

def broken_file(folder):
    """A file with damaged pages: dump saves every row that no damaged page holds, and never a wrong one."""
    good = {(r["kind"], r["key"]): r["value"] for r in map(json.loads, open(f"{folder}/dump")) if "kind" in r}
    size, page, seen = os.path.getsize(f"{folder}/restored/loom.db"), 4096, []
    for n in range(size // page):
        broken = shutil.copytree(f"{folder}/restored", f"{folder}/broken")
        with open(f"{broken}/loom.db", "r+b") as f:
            f.seek(n * page)
            f.write(bytes(random.Random(n).randbytes(page)))
        code, out, err = debug("dump", "--store", broken)
        rows = {(r["kind"], r["key"]): r["value"] for r in map(json.loads, out.splitlines()) if "value" in r}
        wrong = [k for k in rows if good.get(k) != rows[k]]
        seen.append(len(rows))
        if wrong or (code == 0 and len(rows) < len(good)) or (len(rows) < len(good) and not err):
            check(False, f"a dump with page {n + 1} damaged has no wrong row and tells what is lost", (wrong[:3], code, len(rows), err[-300:]))
        code, out, _ = debug("verify", "--store", broken)
        if code != 1:
            check(False, f"verify finds page {n + 1} damaged", out)
        shutil.rmtree(broken)
    check(max(seen) <= len(good) and sorted(seen)[len(seen) // 2] >= len(good) * 0.8,
          f"with any one of {len(seen)} pages damaged, a dump saves most rows (median {sorted(seen)[len(seen) // 2]} of {len(good)})", seen)
    code, out, err = debug("dump", "--store", f"{folder}/nowhere")
    check(code == 1 and "no store in" in err, "a folder without a store is named", err)

def goes_on(w, folder):
    """A worker on the restored store answers as the first one did, and open turns go on."""
    w.store = f"{folder}/restored"
    w.start()
    again = w.post("/v1/actors/tally/a/call", {"id": "a1", "how": "charge"}, Idempotency_Key="a1")
    check(again.status == 200 and again.json["paid"]["receipt"], "a message that was answered gets its reply from the restored store", again)
    w.post("/v1/actors/workflow.order/o1/events/approved", {"by": "me"}, Idempotency_Key="ok")
    w.post("/v1/actors/ear/c1/events/tick", "stop", Idempotency_Key="stop")
    w.post("/v1/actors/ear/e/events/tick", 3, Idempotency_Key="tick3")
    ended = lambda a: w.get(f"/v1/actors/{a}").json["status"] == "completed"
    check(until(10, lambda: ended("workflow.order/o1") and ended("workflow.parent/p1")), "open turns go on to their end")
    check(w.get("/v1/actors/ear/e/state").json["heard"] == [0, 1, 2, 3], "and events are heard")

def under_load(w):
    """verify beside a busy worker: every moment that it sees is whole."""
    stop, count = threading.Event(), []
    def client(n):
        dice = random.Random(n)
        while not stop.is_set():
            key = f"load{n}-{len(count)}-{dice.random()}"
            w.post(f"/v1/actors/tally/l{dice.randrange(5)}/call", {"id": key, "how": dice.choice(["", "charge", "nap", "ask"])}, Idempotency_Key=key)
            count.append(key)
    threads = [threading.Thread(target=client, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    found = [report("verify") for _ in range(4)] + [report("verify", "--store", w.store) for _ in range(6)] + [report("replay", "--all", "--store", w.store)]
    stop.set()
    for t in threads:
        t.join()
    wrong = [f for f in found if f["code"]]
    check(not wrong and found[-1]["batch"] > found[0]["batch"], f"verify and replay see whole moments of a busy store ({len(count)} calls meanwhile)", wrong[:1])

def rights(project):
    """Who may examine, and which worker may be made to fail."""
    w = Worker(project, store=f"{project.dir}/rights").start()
    url = ["--url", f"http://127.0.0.1:{w.port}"]
    for verb in ("panic", "stall"):
        code, _, err = debug(verb, *url)
        check(code == 1 and "--debug" in err and w.get("/readyz").status == 200, f"a worker does not {verb} unless it was started with --debug", err)
    w.stop()
    w.program = [LOOM, "worker", project.dir, "--debug"]
    w.start()
    began = time.monotonic()
    code, out, err = debug("stall", "--delay", "500", *url)
    check(code == 0 and time.monotonic() - began >= 0.5, "with it, it stalls", out + err)
    w.deploy()
    w.post("/v1/actors/ear/r/send", None, Idempotency_Key="r")
    code, out, err = debug("panic", *url)
    check(code == 0 and until(5, lambda: w.process.poll() is not None) and w.process.returncode == -6, "and panics", (code, out, err, w.process.poll()))
    w.start()
    found = report("verify", "--store", w.store)
    check(w.get("/v1/actors/ear/r").status == 200 and found["code"] == 0, "what it had acknowledged is there, and its store is whole", found)
    w.stop()
    keys = [{"sha256": hashlib.sha256(k.encode()).hexdigest(), "role": role} | ({"namespace": ns} if ns else {}) for k, role, ns in
            [("root", "admin", ""), ("bound", "admin", "default"), ("user", "user", "")]]
    open(f"{project.dir}/keys.json", "w").write(json.dumps({"keys": keys}))
    w.program += ["--keys", f"{project.dir}/keys.json"]
    w.spawn()
    until(10, lambda: debug("digest", *url, "--key", "root")[0] == 0)
    for key, good in (("root", True), ("bound", False), ("user", False), ("", False)):
        for verb in ("digest", "dump", "panic"):
            if not (good and verb == "panic"):
                code, out, err = debug(verb, *url, env={"LOOM_API_KEY": key} if key else {})
                check((code == 0) == good, f"{verb} with {key or 'no'} key is {'answered' if good else 'refused'}", err)
    w.kill()
    w = Worker(project, store="memory").start()
    code, _, err = debug("digest", "--url", f"http://127.0.0.1:{w.port}")
    check(code == 1 and "in memory" in err, "a store in memory has nothing to examine, and that is said", err)
    w.stop()

def main():
    bank = Bank()
    project = Project({"network": {"connectTo": {"bank.test:80": f"127.0.0.1:{bank.port}"}}})
    w = Worker(project).start()
    w.deploy()
    workflow(w, "sleepy", {"id": "z", "type": "wait", "event": "never", "timeout": 3600000})
    workflow(w, "parent", {"id": "c", "type": "agent", "agentType": "ear", "key": "c1"})
    fill(w)
    folder = f"{project.dir}/copies"
    os.mkdir(folder)
    whole(w, folder)
    older(folder)
    faults(folder)
    replays(folder)
    broken_file(folder)
    goes_on(w, folder)
    under_load(w)
    check(w.stop() is not None, "the worker stops well")
    rights(project)
    loomtest.end()

main()
