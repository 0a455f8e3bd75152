#!/bin/sh
# Each fuzzer replays its corpus and goes on: for a minute in CI, as `make fuzz` does, for 5 seconds elsewhere.
# From one seed: what a change breaks fails, and nothing else. `make fuzz` takes another seed each time and finds what is new.
case ${CI:-} in '' | 0 | false) seconds=5 ;; *) seconds=60 ;; esac
cd "$(dirname "$0")/.." && exec env -u MAKEFLAGS -u MAKELEVEL -u T make fuzz SEED=1 SECONDS="${LOOM_FUZZ_SECONDS:-$seconds}"
