#!/usr/bin/env bash
# Runs a make target beside others that leave the processor idle, or that wait themselves:
#
#   e2e/beside.sh TARGET OTHERS...
#
# The output of TARGET follows that of the others. If one fails, all finish, and it fails.
set -uo pipefail

log=$(mktemp)
# Nothing that runs in the background outlives this script.
set -m
make --no-print-directory "$1" >"$log" 2>&1 </dev/null &
trap 'kill -- -$! 2>/dev/null; rm -f "$log"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
make --no-print-directory "${@:2}"
status=$?
wait $! || status=$?
cat "$log"
exit "$status"
