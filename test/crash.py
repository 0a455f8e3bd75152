"""Clients call, send, signal and start runs while their worker is killed and started again on the same store. A client repeats what
was not answered under the same key until it is. At the end each id must stand in the state exactly once, the bank must have seen one
input per idempotency key, no journal entry that was ever shown may have changed, and each journal must be dense and linked.
"""
import json, os, random, subprocess, sys, threading, time, zlib
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "support"))
import loomtest
from loomtest import LOOM, Bank, Project, Worker, broken_chains, check, until

CYCLES = int(os.environ.get("LOOM_CRASH_CYCLES", "200"))
SEED = int(os.environ.get("LOOM_SEED", str(random.randrange(1 << 30))))
CLIENTS, ACTORS = 6, 12

def refused(id):
    """The bank refuses a third of the orders' second payments: those runs fail and pay the first one back."""
    return id.endswith("-ship") and zlib.crc32(id.encode()) % 3 == 0

class Load:
    """What the clients have asked for and what they were told."""
    def __init__(self, worker):
        self.worker, self.lock, self.stop = worker, threading.Lock(), threading.Event()
        self.replies, self.heard, self.runs, self.odd, self.repeats = {}, [], [], [], 0
        self.threads = [threading.Thread(target=self.client, args=(i,)) for i in range(CLIENTS)]
        for t in self.threads:
            t.start()

    def ask(self, path, body, key):
        """Repeats the request until it is answered for good."""
        while True:
            try:
                answer = self.worker.post(path, body, timeout=20, Idempotency_Key=key)
                if answer.status != 503:
                    return answer
            except OSError:
                pass
            self.repeats += 1
            time.sleep(0.02)

    def client(self, number):
        dice, n = random.Random(SEED + number), 0
        while not self.stop.is_set():
            n += 1
            kind, id = dice.random(), f"c{number}-{n}"
            if kind < 0.10:
                self.event(id)
            elif kind < 0.14:
                self.run(id)
            else:
                self.message(dice, id)

    def message(self, dice, id):
        actor = f"tally/t{dice.randrange(ACTORS)}"
        how = dice.choice(["", "", "", "charge", "nap", "ask"])
        verb = dice.choice(["call", "call", "call", "send"])
        answer = self.ask(f"/v1/actors/{actor}/{verb}", {"id": id, "how": how}, id)
        while verb == "call" and answer.status == 202:
            answer = self.ask(f"/v1/actors/{actor}/{verb}", {"id": id, "how": how}, id)
        if answer.status != (200 if verb == "call" else 202):
            self.odd.append((id, how, verb, answer))
        with self.lock:
            self.replies[id] = (actor, how, verb, answer.body)

    def event(self, id):
        answer = self.ask("/v1/actors/ear/e/events/tick", id, id)
        self.odd += [] if answer.status == 202 else [(id, "event", answer)]
        with self.lock:
            self.heard.append(id)

    def run(self, id):
        answer = self.ask(f"/v1/workflows/order/runs?key={id}", {"id": id}, f"run-{id}")
        self.odd += [] if answer.status == 202 else [(id, "run", answer)]
        answer = self.ask(f"/v1/actors/workflow.order/{id}/events/approved", {"by": id}, f"ok-{id}")
        self.odd += [] if answer.status == 202 else [(id, "approval", answer)]
        with self.lock:
            self.runs.append(id)

    def end(self):
        self.stop.set()
        for t in self.threads:
            t.join()

def remember(worker, actors, seen, changed):
    """What a journal has once shown it shows for ever."""
    for actor in actors:
        entries = worker.journal(actor)
        before = seen.get(actor, [])
        if entries[:len(before)] != before:
            changed.append(actor)
        seen[actor] = entries

def finished(worker, load):
    """Names what is not finished."""
    open_runs = [id for id in load.runs if worker.get(f"/v1/workflows/order/runs/{id}").json["status"] not in ("completed", "failed")]
    waiting = [a["id"] for a in worker.get("/v1/actors?type=tally&limit=1000").json["actors"] if a["status"] != "idle"]
    return open_runs + waiting

def examine(worker, load, bank, seen, changed):
    left = None
    until(30, lambda: not (left := finished(worker, load)), 0.2)
    left = finished(worker, load)
    check(not left, f"all {len(load.runs)} runs end, all actors come to rest", [(id, worker.get(f"/v1/actors/{'workflow.order/' if '/' not in id else ''}{id}")) for id in left[:3]])
    check(not load.odd, "every request ends in the answer that it would have had without kills", load.odd[:5])

    counted = {a: worker.get(f"/v1/actors/tally/{a}/state").json["ids"] for a in [f"t{i}" for i in range(ACTORS)] + ["asked"]}
    where = {}
    for actor, ids in counted.items():
        for id in ids:
            where.setdefault((actor, id), 0)
            where[actor, id] += 1
    expected = {(actor.split("/")[1], id) for id, (actor, how, *_) in load.replies.items()}
    expected |= {("asked", id) for id, (actor, how, *_) in load.replies.items() if how == "ask"}
    check(not expected - where.keys(), f"each of {len(load.replies)} acknowledged messages is in the state", sorted(expected - where.keys())[:5])
    check(all(n == 1 for n in where.values()), "none is there twice", [k for k, n in where.items() if n > 1][:5])
    check(not where.keys() - expected, "nothing is there that nobody asked for", sorted(where.keys() - expected)[:5])

    sample = random.Random(SEED).sample(sorted(load.replies), min(300, len(load.replies)))
    wrong = [id for id in sample for actor, how, verb, reply in [load.replies[id]] if verb == "call"
             and worker.post(f"/v1/actors/{actor}/call", {"id": id, "how": how}, Idempotency_Key=id).body != reply]
    check(not wrong, "a repeated message gets the reply that it had before", wrong[:5])

    heard = worker.get("/v1/actors/ear/e/state").json["heard"]
    check(sorted(heard) == sorted(load.heard), f"each of {len(load.heard)} acknowledged events is heard once",
          (set(load.heard) ^ set(heard), len(heard), len(load.heard)))

    states = {id: worker.get(f"/v1/workflows/order/runs/{id}").json["status"] for id in load.runs}
    paid = {json.loads(body)["id"] for bodies in bank.inputs.values() for body in bodies}
    wrong = {id: s for id, s in states.items() if (s == "failed") != refused(f"{id}-ship") or (s == "failed") != (f"{id}-refund" in paid)}
    check(not wrong, f"{list(states.values()).count('failed')} runs fail, as they must, and only those are compensated", list(wrong.items())[:5])

    mixed = {k: v for k, v in bank.inputs.items() if k is None or len(v) != 1}
    check(not mixed, f"the bank saw one input for each of {len(bank.inputs)} idempotency keys in {bank.attempts} attempts", mixed)
    keys = {}
    for key, bodies in bank.inputs.items():
        for body in bodies:
            keys.setdefault(body, []).append(key)
    check(all(len(k) == 1 for k in keys.values()), "and one key for each charge", [i for i in keys.items() if len(i[1]) > 1][:3])

    actors = [f"tally/{a}" for a in counted] + ["ear/e"] + [f"workflow.order/{id}" for id in load.runs]
    remember(worker, actors, seen, changed)
    check(not changed, "no entry of a journal that was shown has ever changed", changed)
    check(all([e["cursor"] for e in seen[a]] == list(range(1, len(seen[a]) + 1)) for a in actors), "each journal is dense")
    results = [(a, e["activityId"], turn) for a in actors for turn, e in with_turn(seen[a]) if e["type"] in ("activity_completed", "activity_failed")]
    check(len(results) == len(set(results)) > 0, f"each of {len(results)} activity results is recorded once")

def with_turn(entries):
    turn = 0
    for e in entries:
        turn = e["turn"] if e["type"] == "turn_started" else turn
        yield turn, e

def examined(worker, broken, *what):
    done = subprocess.run([LOOM, "debug", *what, "--store", worker.store], capture_output=True, text=True)
    if done.returncode:
        broken.append((what, done.stdout[-2000:], done.stderr))

def killed_deploys(project, dice):
    """What a killed deploy left behind does not hinder the next one, and what it said is stored is there."""
    worker, stored, lost = Worker(project, store=f"{project.dir}/deploys"), set(), set()
    for _ in range(max(CYCLES // 8, 4)):
        worker.start()
        lost |= stored - {d["name"] for kind in ("activities", "actor-types", "workflows") for d in worker.get(f"/v1/{kind}").json["definitions"]}
        deploy = subprocess.Popen([LOOM, "deploy", project.dir, "--url", f"http://127.0.0.1:{worker.port}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        time.sleep(dice.random() * 0.06)
        worker.kill()
        stored |= {line.split()[2] for line in deploy.communicate()[0].splitlines() if line.split()[:1] in (["deploy"], ["same"])}
    check(not lost, f"what a deploy said is stored is there after a kill -9 ({len(stored)} definitions)", lost)
    worker.start()
    worker.deploy()
    check(worker.post("/v1/actors/tally/x/call", {"id": "x"}).status == 200 and worker.stop() is not None, "and what is deployed works")

def main():
    print(f"# seed {SEED}, {CYCLES} cycles", flush=True)
    dice, seen, changed = random.Random(SEED), {}, []
    bank = Bank(lambda n, body: 500 if n % 17 == 0 else 0 if n % 23 == 0 else 402 if refused(json.loads(body)["id"]) else 200)
    project = Project({"network": {"connectTo": {"bank.test:80": f"127.0.0.1:{bank.port}"}}})
    worker = Worker(project).start()
    worker.deploy()
    worker.post("/v1/actors/ear/e/send", None, Idempotency_Key="listen")
    load = Load(worker)
    starts, broken = [], []
    for cycle in range(CYCLES):
        time.sleep(dice.choice([0.01, 0.05, 0.1, 0.3]))
        worker.kill()
        if cycle % 20 == 10:
            examined(worker, broken, "verify")
        begin = time.monotonic()
        worker.start()
        starts.append(time.monotonic() - begin)
        if cycle % 20 == 0:
            remember(worker, [f"tally/t{i}" for i in range(ACTORS)] if cycle else [], seen, changed)
    check(True, f"killed {CYCLES} times under load; the longest restart took {max(starts) * 1000:.0f} ms")
    stops = []
    for _ in range(3):
        time.sleep(0.5)
        stops.append(worker.stop())
        worker.start()
    check(all(s is not None and s < 5 for s in stops), f"SIGTERM under load ends the worker well, the longest in {max(s or 99 for s in stops) * 1000:.0f} ms", stops)
    time.sleep(0.5)
    load.end()
    examine(worker, load, bank, seen, changed)
    check(worker.stop() is not None, "it stops")
    wrong, rows = broken_chains(worker.store)
    check(not wrong, f"{rows} rows of journal in the store are dense and linked", wrong[:5])
    for what in (["verify"], ["replay", "--all"]):
        examined(worker, broken, *what)
    check(not broken, "loom debug verify finds nothing wrong with what a kill leaves, and replay leads to the same states and replies", broken[:3])
    print(f"# {load.repeats} requests repeated", flush=True)
    killed_deploys(project, dice)
    loomtest.end()

main()
