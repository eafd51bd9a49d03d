#!/usr/bin/env bash
# Downloads the Go modules of the programs, the tests and the given tools (folders of e2e/tools),
# and nothing else of what their go.mod files mention.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v go >/dev/null || exit 0 # "make setup" says so

go list -deps -test -tags e2e ./... >/dev/null &
pids=($!)
for tool in "$@"; do
  (cd "e2e/tools/$tool" && go list -deps tool >/dev/null) &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done
