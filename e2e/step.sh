#!/usr/bin/env bash
# Runs one step of the build or the tests: e2e/step.sh NAME COMMAND...
# If STEPS names a file, a line there gets the name, the seconds that the step took, the
# processor's time (user and system, as "times" prints them) and the result; .ci/run prints it.
set -uo pipefail

name=$1
shift
result=interrupted
if [ -n "${STEPS:-}" ]; then
  processor=$(mktemp)
  trap 'times >"$processor"
    printf "%s\t%s\t%s\t%s\n" "$name" "$SECONDS" "$(tail -n 1 "$processor")" "$result" >>"$STEPS"
    rm -f "$processor"' EXIT
fi
trap 'exit 130' INT
trap 'exit 143' TERM

"$@"
status=$?
if [ "$status" -eq 0 ]; then result=ok; else result="failed ($status)"; fi
exit "$status"
