#!/bin/bash
# Faults from outside on a real worker: a full disk, a second process, odd input, hostile names and modules, a canary secret, a guest
# that takes the worker down. usage: [LOOM=path/to/loom] test/faults.sh
exec python3 "$(dirname "$0")/faults.py" "$@"
