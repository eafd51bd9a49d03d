#!/usr/bin/env bash
# Runs lists of make targets at the same time, so that one computes while another waits:
#
#   e2e/beside.sh "TARGET..."...
#
# The targets of a list run one after the other. The output of the last list is live; that of the
# others follows. If a list fails, the others finish, and then it fails.
set -uo pipefail

run() {
  # shellcheck disable=SC2086 # a list of words
  make --no-print-directory $1
}

logs=() pids=()
# Nothing that runs in the background outlives this script.
set -m
trap 'kill -- "${pids[@]/#/-}" 2>/dev/null; rm -f "${logs[@]}"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
for targets in "${@:1:$#-1}"; do
  logs+=("$(mktemp)")
  run "$targets" >"${logs[-1]}" 2>&1 </dev/null &
  pids+=("$!")
done
run "${!#}"
status=$?
for i in "${!pids[@]}"; do
  wait "${pids[i]}" || status=$?
  cat "${logs[i]}"
done
exit "$status"
