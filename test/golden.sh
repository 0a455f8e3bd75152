#!/bin/bash
# Histories that earlier versions left behind are replayed with equal states and replies, and go on to the same end.
# usage: [LOOM=path/to/loom] test/golden.sh
exec "$(dirname "$0")/golden/make" --check
