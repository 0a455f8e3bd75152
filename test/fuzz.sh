#!/bin/sh
# Each fuzzer replays its corpus and goes on: for a minute in CI, as `make fuzz` does, for 5 seconds elsewhere.
case ${CI:-} in '' | 0 | false) seconds=5 ;; *) seconds=60 ;; esac
cd "$(dirname "$0")/.." && exec env -u MAKEFLAGS -u MAKELEVEL -u T make fuzz SECONDS="${LOOM_FUZZ_SECONDS:-$seconds}"
