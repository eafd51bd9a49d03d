#!/usr/bin/env bash
# Runs one step of the build or the tests: e2e/step.sh NAME COMMAND...
# If STEPS names a file, the step's time and result go there; .ci/run prints them.
set -uo pipefail

name=$1
shift
result=interrupted
[ -z "${STEPS:-}" ] || trap 'printf "%s\t%s\t%s\n" "$name" "$SECONDS" "$result" >>"$STEPS"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

"$@"
status=$?
if [ "$status" -eq 0 ]; then result=ok; else result="failed ($status)"; fi
exit "$status"
