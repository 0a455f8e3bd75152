#!/bin/bash
# loom debug: digest, verify, replay, dump, restore, panic and stall, on a worker and on a folder, whole and damaged.
# usage: [LOOM=path/to/loom] test/debug.sh
exec python3 "$(dirname "$0")/debug.py"
