#!/usr/bin/env bash
# Checks the code, the scripts and the templates. It skips a tool that is missing and says
# so, except in CI (CI=true), where a missing tool is an error.
set -euo pipefail
cd "$(dirname "$0")/.."

failed=0

# check NAME COMMAND...
check() {
  local name=$1
  shift
  if command -v "$1" >/dev/null; then
    e2e/step.sh "$name" "$@" || failed=1
  elif [ "${CI:-false}" = true ]; then
    echo "lint: $1 is missing: run 'make setup'" >&2
    failed=1
  else
    echo "lint: skipped $name: $1 is missing ('make setup' installs it on Debian)" >&2
  fi
}

# People run these programs, so they must not link package testing.
programs_without_testing() {
  local program
  for program in demo cluster; do
    if GOOS=linux go list -deps "./e2e/cmd/$program" | grep -qx testing; then
      echo "lint: ./e2e/cmd/$program links package testing: move the test code that it imports to a package of its own" >&2
      failed=1
    fi
  done
}

check golangci-lint bin/golangci-lint run ./...
programs_without_testing
check "generated code" go test -run TestGeneratedSpecificationIsCurrent ./packer-plugin/provisioner
check shellcheck shellcheck .ci/run e2e/*.sh lambda/deploy/*.sh packer-plugin/provisioner/bake.sh templates/packages/*.sh
check cfn-lint cfn-lint template.yaml templates/member-account/*.yaml templates/autoscaling/*.yaml
exit "$failed"
