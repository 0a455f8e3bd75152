#!/bin/bash
# Whatever goes wrong and whenever, what was promised comes true: 2,000 seeds of the simulator, two processes side by side;
# each fourth on SQLite's files above a disk that fails.
cd "$(dirname "$0")/.." && env -u MAKEFLAGS -u MAKELEVEL -u T make -s simulator || exit 1
sim=${LOOM:-build/loom}
sim=$(dirname "$sim")/sim/asan/test/sim/sim
some() { if "$sim" "$1" "$2"; then echo "ok $2 seeds from $1"; else echo "not ok $2 seeds from $1"; fi; }
some 1 1000 & some 1001 1000
wait
# Faults that are planted in the engine on purpose are found: the proof that the seeds above prove something.
if "$sim" sabotage; then echo "ok each fault is found"; else echo "not ok each fault is found"; fi
# The same seed goes the same way twice, in memory and on files.
some 7 1
some 8 1
