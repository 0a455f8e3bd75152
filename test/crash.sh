#!/bin/bash
# kill -9 under load, many times on one store, then SIGTERM under load: nothing acknowledged is lost, nothing happens twice.
# usage: [LOOM=path/to/loom] [LOOM_CRASH_CYCLES=200] test/crash.sh [ROUNDS]      each round on a store of its own
for ((round = 0; round < ${1:-1}; round++)); do python3 "$(dirname "$0")/crash.py" || exit 1; done
