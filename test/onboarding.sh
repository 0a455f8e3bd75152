#!/bin/bash
# The main job, as a test: each proof of examples/customer-onboarding/run is a case.
exec "$(dirname "$0")/../examples/customer-onboarding/run"
