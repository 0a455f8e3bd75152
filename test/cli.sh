#!/bin/bash
# The loom command from outside: what it prints, its exit codes, and a project from `new` to `dev` with hot reload.
# usage: [LOOM=path/to/loom] test/cli.sh
set -uo pipefail
LOOM=${LOOM:-$(cd "$(dirname "$0")/.." && pwd)/build/loom}
tmp=$(mktemp -d)
pids=
cleanup() {
    for pid in $pids; do kill -9 "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; done
    rm -rf "$tmp"
}
trap cleanup EXIT
cd "$tmp" || exit 1
failed=0

# check SENTENCE EXIT_CODE PATTERN COMMAND… — the command ends with the code, and its output has a line that fits the pattern
check() {
    local sentence=$1 code=$2 pattern=$3 output got
    shift 3
    output=$("$@" 2>&1 </dev/null)
    got=$?
    if [ $got = "$code" ] && grep -qE -- "$pattern" <<<"$output"; then
        echo "ok - $sentence"
    else
        printf 'not ok - %s\n    exit code %s, expected %s; expected /%s/ in:\n%s\n' "$sentence" $got "$code" "$pattern" "$(sed 's/^/    /' <<<"$output")"
        failed=1
    fi
}
# within SECONDS COMMAND… — until the command succeeds
within() {
    local until=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $until ] || return 1; sleep 0.1; done
}
# start LOG ARGUMENTS… — a loom in the background on a free port; sets pid and LOOM_URL
start() {
    local log=$1
    shift
    : >"$log"
    "$LOOM" "$@" --listen "127.0.0.1:${port:-0}" >"$log" 2>&1 &
    pid=$!
    pids="$pids $pid"
    within 30 grep -qE 'http://127|"port":' "$log" || { echo "not ok - loom $1 starts"; sed 's/^/    /' "$log"; exit 1; }
    LOOM_URL=http://127.0.0.1:$(grep -oE '(127\.0\.0\.1:|"port":)[0-9]+' "$log" | grep -oE '[0-9]+$' | head -1)
    export LOOM_URL
}

# Words
check "the version is printed" 0 '^loom [0-9]+\.[0-9]+\.[0-9]+$' "$LOOM" version
check "help names every command" 0 '^  workflow ' "$LOOM" help
check "help of a command shows its options" 0 '--replace' "$LOOM" help deploy
check "an unknown command is a usage error that suggests the nearest" 2 'did you mean `journal`' "$LOOM" jurnal x/y
check "an option of another command is a usage error" 2 'takes no option --delay' "$LOOM" actors --delay 3
check "a number that is none is a usage error" 2 'needs a whole number' "$LOOM" actors --limit many
check "so is one that is out of range" 2 'needs a whole number' "$LOOM" call counter/a --priority 99999999999
check "and one below 0" 2 'from 0 on' "$LOOM" call counter/a --ttl -5
check "a missing argument is a usage error" 2 'usage: loom call TYPE/KEY' "$LOOM" call
check "an actor needs type and key" 2 'TYPE/KEY is expected' "$LOOM" call counter
check "and its key holds no slash" 2 'one slash' "$LOOM" call counter/a/b
check "an argument that is not JSON is named with the place of the fault" 1 'not JSON.* at byte' "$LOOM" call counter/a '{"add":'
check "where no Loom answers, the address and the remedy are named" 1 'no Loom answers at http://127.0.0.1:1; start one with `loom dev`' \
    "$LOOM" actors --url http://127.0.0.1:1
check "an option of all commands may stand before the command" 1 'no Loom answers at http://127.0.0.1:1' \
    "$LOOM" --url http://127.0.0.1:1 actors
check "another option may not" 2 'takes no option --limit before a command' "$LOOM" --limit 3 actors

# Projects
check "a folder without loom.json is no project" 1 'there is no .*loom.json; `loom new NAME` makes one' "$LOOM" build .
check "new makes a project" 0 'new  demo/actors/counter/counter.c' "$LOOM" new demo
check "new overwrites nothing" 1 'exists; choose another name' "$LOOM" new demo
check "a bad name is a usage error" 2 'is no name' "$LOOM" new 'Bad Name'
check "an actor without a name is a usage error, not a project called actor" 2 'NAME is missing' "$LOOM" new actor
check "a worker's folder must be there" 1 'nowhere is not a project' timeout 10 "$LOOM" worker nowhere --store memory --listen 127.0.0.1:0
check "a workflow's name outside of any project is refused with what to do" 1 'no project here that could have the workflow welcome' \
    "$LOOM" run welcome --store memory
echo '{"name": "one", "version": "1", "steps": [{"type": "activity", "activity": "echo", "input": 1}]}' >one.json
check "a workflow runs outside of any project, and leaves nothing behind" 0 '^demo one.json $' \
    eval '"$LOOM" run one.json --store memory >/dev/null && ls -A | tr "\n" " " && echo'
cd demo || exit 1
check "the new project builds and passes its tests at once" 0 '^6 passed, 0 failed' "$LOOM" test
check "new adds an actor" 0 'actors/second/second.c' "$LOOM" new actor second
check "new adds an activity" 0 'activities/send-it/send-it.c' "$LOOM" new activity send-it
check "they pass their tests at once" 0 '^12 passed, 0 failed' "$LOOM" test
check "a workflow runs in process when no Loom answers" 0 '' "$LOOM" run workflows/welcome.json --store memory --input '{"name": "Ada"}'
check "and is not said to take events, which no command could bring there" 1 '^$' \
    eval '"$LOOM" run workflows/welcome.json --store memory --input "{\"name\": \"Ada\"}" | grep "loom event"'
sed -i 's/"name"/"nam"/' loom.json
check "an unknown field of loom.json is named" 1 'loom.json: there is no field "nam"' "$LOOM" build
echo '{"name" "x"}' >loom.json
check "bad JSON in loom.json is named with line and column" 1 'loom.json:1:9: not JSON' "$LOOM" build
echo '{"name": "x", "network": {"connectTo": 7}}' >loom.json
check "a bad field inside loom.json is named" 1 'connectTo' "$LOOM" dev --listen 127.0.0.1:0
echo '{"name": "demo"}' >loom.json
echo '[{"inputs": 1}]' >activities/send-it/test.json
check "a misspelt field of a test case is named" 1 "send-it/test.json: /0: .*'inputs' was unexpected" "$LOOM" test
echo '[]' >activities/send-it/test.json
cp -r activities/send-it activities/twin
check "two definitions of one name and version are refused" 1 'activities/send-it/activity.json and activities/twin/activity.json define the same' "$LOOM" build
rm -r activities/twin
cp actors/second/second.c second.c
echo 'int syntax(' >>actors/second/second.c
check "a guest that does not compile fails the build by name" 1 'second.wasm could not be built' "$LOOM" build
sed 's/^LOOM_ACTOR/void missing(void);\n&/; s/loom_return/missing(), &/' second.c >actors/second/second.c
check "one that does not link does, too" 1 'second.wasm could not be built' "$LOOM" build
check "and leaves the old module, so that what watches the folder sees no change" 0 '^actors/second/second.wasm$' \
    find actors/second -name '*.wasm'
mv second.c actors/second/second.c
touch actors/second/second.c
check "without clang the packages are named" 1 'apt install clang lld' env PATH=/nowhere "$LOOM" build
mkdir -p activities/rusty && sed 's/send-it/rusty/' activities/send-it/activity.json >activities/rusty/activity.json
check "a definition without its module and sources is named" 1 'activities/rusty/activity.json names .*rusty.wasm' "$LOOM" build
echo 'not toml' >activities/rusty/Cargo.toml
check "a Rust guest that cannot be built says what it needs" 1 'rustup target add wasm32-unknown-unknown' "$LOOM" build
rm -r activities/rusty

# A worker with the project: dev
cp actors/counter/counter.c counter.c
echo 'int syntax(' >>actors/counter/counter.c
start "$tmp/dev.log" dev
check "dev whose first build fails shows the compiler's error" 0 'counter.c:[0-9]+:[0-9]+: error' cat "$tmp/dev.log"
check "says that it waits for a change" 0 'waits for a change' cat "$tmp/dev.log"
mv counter.c actors/counter/counter.c
within 30 grep -q 'deploy.*counter' "$tmp/dev.log"
check "dev serves what it built" 0 '"count": 2' "$LOOM" call counter/ada '{"add": 2}'
check "input against the schema is refused" 1 'invalid_input' "$LOOM" call counter/ada '{"add": "x"}'
check "an unknown actor type is named" 1 'not_found' "$LOOM" call nobody/a 1
check "send returns when durable and names the message" 0 'durable, message s1' "$LOOM" send counter/ada '{"add": 3}' --id s1
check "the same id does nothing twice" 0 'durable' "$LOOM" send counter/ada '{"add": 3}' --id s1
check "actors keep their state" 0 '^\{"count":5\}$' "$LOOM" call counter/ada '{"add": 0}' --json
check "actors are listed" 0 'counter/ada' "$LOOM" actors --type counter
check "a status that no actor has is refused" 1 'use idle, running' "$LOOM" actors --status finished
check "a namespace that is no name is refused" 1 'is not a name' "$LOOM" actors --ns 'A B'
"$LOOM" call counter/ünï '{"add": 1}' >/dev/null
check "columns stand in line whatever a key is written in" 0 '^counter/ünï  idle' "$LOOM" actors
check "an actor is shown with its state" 0 '"count": 5' "$LOOM" inspect counter/ada
check "its past state is shown" 0 'count' "$LOOM" inspect counter/ada --at 3
check "its journal is a timeline" 0 'state' "$LOOM" journal counter/ada
check "modules are listed, in lines that fit a terminal" 0 '^actor\.counter +1\.0\.0 +[0-9]+  [0-9a-f]{12}$' "$LOOM" modules
check "workflows are listed" 0 'welcome +1\.0\.0' "$LOOM" workflow list
check "a workflow runs on the server to its result" 0 'Hello, Ada' "$LOOM" run welcome --input '{"name": "Ada"}' --id r1
check "a run is shown" 0 'completed' "$LOOM" workflow get welcome r1
check "without its journal" 1 '^$' eval '"$LOOM" workflow get welcome r1 | grep turn_started'
check "a workflow that fails shows the step's whole error" 1 '✗ activity greet: hello .* ms  the input of .* "string" \(invalid_input\)$' "$LOOM" run welcome --input '{"name": 7}'
cat >wait.json <<'EOT'
{"name": "waiting", "version": "1.0.0", "steps": [{"id": "w", "type": "wait", "event": "go"}]}
EOT
check "a workflow is deployed from a file" 0 'deploy.*waiting' "$LOOM" workflow deploy wait.json
check "a workflow starts without waiting for its end" 0 'workflow.waiting/w1' "$LOOM" workflow run waiting --id w1
within 30 eval '"$LOOM" inspect workflow.waiting/w1 | grep -q suspended'
check "what waits is listed by status" 0 'workflow.waiting/w1 .*suspended .*event go' "$LOOM" actors --status suspended
check "it is said when there are more actors" 0 'and more: --limit' "$LOOM" actors --limit 1
check "a waiting run is cancelled" 0 'durable' "$LOOM" cancel workflow.waiting/w1 --reason test
within 30 eval '"$LOOM" inspect workflow.waiting/w1 | grep -q cancelled'
check "and says so in its journal" 0 'cancel requested.*test' "$LOOM" journal workflow.waiting/w1
check "cancelling it again is refused" 1 'nothing to cancel' "$LOOM" cancel workflow.waiting/w1
check "resuming what waits for nobody is refused" 1 'conflict' "$LOOM" resume counter/ada
check "a workflow document that is wrong is named by file and step" 1 '^loom: bad.json: .*nonsense' \
    eval 'sed s/wait\",/nonsense\",/ wait.json >bad.json; "$LOOM" workflow deploy bad.json'
check "a step without a type is told that, and nothing else" 1 'schema: step w: /steps/0: "type" is a required property \(invalid_document\)$' \
    eval 'sed "s/\"type\": \"wait\", //" wait.json >bad.json; "$LOOM" workflow deploy bad.json'
check "a file that is not there is named" 1 'cannot read nowhere.json' "$LOOM" workflow deploy nowhere.json
"$LOOM" run waiting --id w2 --url "$LOOM_URL" >"$tmp/run.log" 2>&1 &
run=$!
within 30 grep -q 'waits for event go' "$tmp/run.log"
"$LOOM" event workflow.waiting/w2 go '{"by": "me"}' >/dev/null
wait $run
check "run follows a workflow until an event lets it end" 0 '"by":"me"' cat "$tmp/run.log"
check "an actor is forked" 0 'durable' "$LOOM" fork counter/ada twin
check "an event for an actor is durable" 0 'durable' "$LOOM" event counter/ada poke '{}'
sed -i 's/Hello/Good day/' activities/hello/hello.c
within 30 eval '[ $(grep -c "deploy.*hello" "$tmp/dev.log") -ge 2 ]'
check "a change of a source is live without a restart" 0 'Good day, Ada' "$LOOM" run welcome --input '{"name": "Ada"}'
echo '{"name": "demo", "mail": {"server": "smtp://127.0.0.1:1"}}' >loom.json
within 30 grep -q 'loom.json has changed' "$tmp/dev.log"
check "a change of loom.json is said to need a restart" 0 'counts from the next start' cat "$tmp/dev.log"
check "dev shows what happens" 0 'counter/ada .*turn' cat "$tmp/dev.log"
check "a port in use is named with the remedy" 1 "${LOOM_URL##*:}" "$LOOM" dev --store memory --listen "127.0.0.1:${LOOM_URL##*:}"
check "a store in use is refused with the pid of its user" 1 "$pid" "$LOOM" dev --listen 127.0.0.1:0
kill -TERM "$pid"
wait "$pid"
check "dev stops gracefully" 0 '' test $? = 0

# A worker, deployed to from outside
start "$tmp/worker.log" worker --store "$tmp/store"
check "deploy uploads everything" 0 'deploy +workflows +welcome' "$LOOM" deploy
check "deploying again changes nothing" 0 'same +workflows +welcome' "$LOOM" deploy
check "what is deployed works" 0 '"count": 1' "$LOOM" call counter/new '{"add": 1}'
sed -i 's/Good day/Good night/' activities/hello/hello.c
check "other content under the same version is refused with the remedy" 1 'raise "version".*--replace' "$LOOM" deploy
check "--replace overwrites" 0 'deploy +activities +hello' "$LOOM" deploy --replace
check "the worker logs JSON lines" 0 '^\{"level":30,.*"msg":"serving"\}$' cat "$tmp/worker.log"
"$LOOM" workflow deploy wait.json >/dev/null
for signal in KILL TERM; do
    rm "$tmp/run.log" # of the run before
    "$LOOM" run waiting --id "w-$signal" >"$tmp/run.log" 2>&1 &
    run=$!
    within 30 grep -q 'waits for event go' "$tmp/run.log"
    kill -$signal "$pid"
    wait "$pid" 2>/dev/null
    port=${LOOM_URL##*:}
    start "$tmp/worker.log" worker --store "$tmp/store"
    "$LOOM" event "workflow.waiting/w-$signal" go '{"by": "you"}' >/dev/null
    wait $run
    check "run follows a workflow over SIG$signal and a restart" 0 '"by":"you"' cat "$tmp/run.log"
done
check "everything is still there" 0 '"count": 2' "$LOOM" call counter/new '{"add": 1}'
port=
kill -INT "$pid"
wait "$pid"
check "the worker stops gracefully" 0 '' test $? = 0
echo "{\"keys\": [{\"sha256\": \"$(printf %s secret | sha256sum | cut -c1-64)\", \"role\": \"admin\"}]}" >"$tmp/keys.json"
start "$tmp/keyed.log" worker --store memory --keys "$tmp/keys.json"
check "without its key a worker answers nobody" 1 'give the API key with --key' "$LOOM" actors
check "with the key it does" 0 '' env LOOM_API_KEY=secret "$LOOM" actors
kill -TERM "$pid"
wait "$pid"
check "to listen beyond this machine needs keys" 1 'key' "$LOOM" worker --store memory --listen 0.0.0.0:0
exit $failed
