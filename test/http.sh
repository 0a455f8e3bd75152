#!/bin/bash
# The worker's HTTP door with real clients: curl, raw sockets that misbehave, hundreds of connections, SIGTERM.
set -uo pipefail
LOOM=${LOOM:-$PWD/build/loom}
dir=$(mktemp -d)
cleanup() {
    [ -n "${worker:-}" ] && kill -9 "$worker" 2>/dev/null
    rm -rf "$dir"
}
trap cleanup EXIT

n=0
check() { # NAME COMMAND...
    local name=$1 output
    shift
    n=$((n + 1))
    if output=$("$@" 2>&1); then echo "ok $n - $name"; else echo "not ok $n - $name"; sed 's/^/# /' <<<"$output"; fi
}
answers() { # PATTERN CURL-ARGUMENTS...: head and body of the answer match the extended regular expression
    local pattern=$1 output
    shift
    output=$(curl -sSi --max-time 20 "$@" | tr -d '\r')
    grep -qE -- "$pattern" <<<"$output" || { echo "expected $pattern in:"; echo "$output"; return 1; }
}
json=(-H 'Content-Type: application/json')

echo '{"name": "http-test"}' >"$dir/loom.json"
"$LOOM" worker "$dir" --listen 127.0.0.1:0 --store memory 2>"$dir/log" >"$dir/out" &
worker=$!
for _ in {1..200}; do
    port=$(sed -n 's/.*"port":\([0-9]*\).*/\1/p' "$dir/log")
    [ -n "$port" ] && break
    sleep 0.05
done
url=http://127.0.0.1:$port

check "it lives" answers '"alive":true' "$url/healthz"
check "it is ready" answers '"ready":true' "$url/readyz"
check "metrics are Prometheus text" answers '^loom_messages_total ' "$url/metrics"
check "the dashboard has a policy" answers "^Content-Security-Policy: default-src 'none'" "$url/"
check "an unknown route is named" answers 'There is no route GET /v1/nothing' "$url/v1/nothing"
check "a wrong method lists the right ones" answers '^Allow: GET$' -X DELETE "$url/v1/actors"
check "an unknown actor type is 404" answers '^HTTP/1.1 404 ' "${json[@]}" -d '{}' "$url/v1/actors/nobody/1/call"
check "broken JSON is 400" answers '"code":"invalid_json"' "${json[@]}" -d '{"a":' "$url/v1/actors/nobody/1/call"
deep=$(printf '[%.0s' {1..100000})
check "100,000 brackets are 400" answers '"code":"invalid_json"' "${json[@]}" -d @- "$url/v1/actors/nobody/1/call" <<<"$deep"
check "another content type is 415" answers '^HTTP/1.1 415 ' -d x=1 "$url/v1/actors/nobody/1/call"
check "a name outside the pattern is 400" answers '"code":"invalid_argument"' "$url/v1/actors/No%20Body/1"
check "a path that climbs is refused" answers '^HTTP/1.1 400 ' --path-as-is "$url/v1/modules/..%2f..%2fetc/passwd" -T /dev/null
head -c 1000000 /dev/urandom >"$dir/junk"
check "a module that is none is 400" answers '"code":"invalid_module"' -H 'Content-Type: application/wasm' -T "$dir/junk" "$url/v1/modules/junk/1"
truncate -s 40M "$dir/huge"
check "40 MB are 413" answers '"code":"too_large"' -H 'Content-Type: application/wasm' -T "$dir/huge" "$url/v1/modules/huge/1"
check "so they are in chunks" answers '"code":"too_large"' -H 'Content-Type: application/wasm' -H 'Transfer-Encoding: chunked' -T "$dir/huge" "$url/v1/modules/huge/1"
echo '{"name": "w", "version": "1", "steps": [{"type": "wait", "duration": 1}]}' >"$dir/w.json"
check "a workflow is deployed" answers '^HTTP/1.1 201 ' "${json[@]}" -T "$dir/w.json" "$url/v1/workflows/w/1"
for time in first second; do
    check "a run asked for with an Idempotency-Key is one run, the $time time" answers '"actorId":"workflow.w/order-7"' \
        "${json[@]}" -H 'Idempotency-Key: order-7' -d '{}' "$url/v1/workflows/w/runs"
done
check "a stream begins" answers '^Content-Type: text/event-stream' -m 1 "$url/v1/stream"
check "the description is JSON" python3 -c "import json,sys,urllib.request; assert json.load(urllib.request.urlopen('$url/openapi.json'))['openapi'] == '3.1.0'"

check "hundreds of bad connections harm nobody" python3 - "$port" <<'PYTHON'
import http.client, random, socket, struct, sys
port = int(sys.argv[1])
random.seed(1)
def raw(data):
    s = socket.create_connection(("127.0.0.1", port), timeout=20)
    try:
        s.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        pass
    return s
good = b"POST /v1/actors/nobody/1/call HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
held = [raw(good[:random.randrange(1, len(good))]) for _ in range(150)]                      # half a head
held += [raw(good + b"Content-Length: 999\r\n\r\n{") for _ in range(150)]                    # half a body
held += [raw(b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n") for _ in range(50)]      # never read
for _ in range(300):                                                                         # gone at once, some with RST
    s = raw(good + b"Content-Length: 2\r\n\r\n{}" if random.random() < .5 else random.randbytes(500))
    if random.random() < .5:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()
client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)                           # one connection for all
for _ in range(500):
    client.request("GET", "/readyz")
    answer = client.getresponse()
    assert answer.status == 200 and answer.read() == b'{"ready":true}', answer.status
for s in held:
    s.close()
PYTHON

kill -TERM "$worker"
wait "$worker"
check "SIGTERM ends it cleanly" test $? = 0
worker=
check "beyond this machine it wants keys" bash -c "! '$LOOM' worker '$dir' --listen 0.0.0.0:0 --store memory 2>&1 | grep -q serving"
echo "1..$n"
