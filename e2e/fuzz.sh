#!/usr/bin/env bash
# Runs every fuzz target for a while, as many at once as there are processors.
#
#   e2e/fuzz.sh 10s
#
# If an input breaks a target, this writes it to testdata/fuzz next to the target. Commit it:
# after that, "go test" tries it too. Inputs that reach new code stay in Go's cache, and the
# next run starts from them.
#
# An interrupt ends each target. Go's own -fuzztime may fail with "context deadline
# exceeded" at the end although it found nothing (golang/go#75804, in 1.26).
set -euo pipefail
cd "$(dirname "$0")/.."

root=$PWD fuzztime=${1:?"usage: e2e/fuzz.sh TIME"} cache=$(go env GOCACHE)/fuzz
export root fuzztime cache

mapfile -t targets < <(grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' cloudinit internal lambda packer-plugin |
	sed -E 's,^(.*)/[^/]*:func (.*)$,\1 \2,' | sort -u)

# One program for each package: "go test -fuzz" would link it again for each target.
# With -fuzz, Go 1.26 gives its own vet no facts about package syscall; "go vet" runs separately.
mkdir -p bin/fuzz
for package in $(printf '%s\n' "${targets[@]}" | cut -d ' ' -f 1 | sort -u); do
	go test -c -vet=off -fuzz=Fuzz -o "bin/fuzz/${package//\//_}" "./$package"
done

run() {
	local package=$1 target=$2 output
	if ! output=$(cd "$package" && timeout --preserve-status --foreground --signal=INT --kill-after=60s "$fuzztime" \
		"$root/bin/fuzz/${package//\//_}" -test.run='^$' -test.fuzz="^$target\$" \
		-test.fuzzminimizetime=100x -test.parallel=1 -test.fuzzcachedir="$cache/hallmark/$package" 2>&1); then
		printf '%s %s\n%s\n' "$package" "$target" "$output" >&2
		return 1
	fi
	printf '%s %s, %s\n' "$package" "$target" "$(grep -o 'execs: [0-9]*' <<<"$output" | tail -n 1)"
}
export -f run

started=$(mktemp)
trap 'rm -f "$started"' EXIT

# shellcheck disable=SC2016 # the inner shell expands
printf '%s\n' "${targets[@]}" | xargs -L 1 -P "$(nproc)" bash -c 'run "$@"' run

# Go keeps an input that it finds just before the end, but may not report it.
found=$(find cloudinit internal lambda packer-plugin -path '*/testdata/fuzz/*' -type f -newer "$started")
[ -z "$found" ] || {
	printf 'inputs that break a target:\n%s\n' "$found" >&2
	exit 1
}
