#!/bin/bash
# kill -9 under load, many times on one store, then SIGTERM under load: nothing acknowledged is lost, nothing happens twice.
# usage: [LOOM=path/to/loom] [LOOM_CRASH_CYCLES=40] test/crash.sh
exec python3 "$(dirname "$0")/crash.py"
