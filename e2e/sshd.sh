#!/bin/sh
# Runs the tests that use sshd with the OpenSSH of other Debian releases, each in its own
# root file system: 8.4 (bullseye) and 10.0 (trixie), both at the same time. Needs root. It
# leaves out tests that take minutes and do not depend on sshd's version: simulated herds, and
# runs killed at each step. Arguments go to the tests of internal/machine/agent and
# internal/machine/install.
set -eu

cd "$(dirname "$0")/.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/hallmark
mkdir -p "$cache" bin/sshd
for part in agent findings install sshd; do
	CGO_ENABLED=0 GOFLAGS=-trimpath go test -c -o "bin/sshd/$part.test" "./internal/machine/$part"
done

# suite NAME ARGUMENTS...
suite() {
	root=$cache/sshd-$1
	if ! [ -d "$root" ]; then
		rm -rf "$root.partial"
		mmdebstrap --quiet --variant=minbase --include=openssh-server "$1" "$root.partial"
		mv "$root.partial" "$root"
	fi
	# The folders that the tests need, on a file system that disappears with them.
	# shellcheck disable=SC2016 # the inner shell expands
	exec unshare --mount --pid --fork --kill-child sh -euc '
		root=$1 suite=$2
		shift 2
		mount --bind /dev "$root/dev"
		mount -t proc proc "$root/proc"
		for folder in run tmp srv; do mount -t tmpfs tmpfs "$root/$folder"; done
		for part in agent findings install sshd; do
			mkdir -p "$root/srv/internal/machine/$part"
			cp "bin/sshd/$part.test" "$root/srv/internal/machine/$part/"
			[ ! -d "internal/machine/$part/testdata" ] || cp -R "internal/machine/$part/testdata" "$root/srv/internal/machine/$part/"
		done
		mkdir -p "$root/srv/internal/protocol"
		cp -R internal/protocol/testdata "$root/srv/internal/protocol/"
		printf "127.0.0.1 localhost\n" >"$root/etc/hosts"
		cp -R docs templates "$root/srv/"
		echo "$suite: $(chroot "$root" dpkg-query -W openssh-server)"
		export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root HALLMARK_TEST_STRICT=1
		for part in sshd findings; do
			chroot "$root" sh -euc "cd /srv/internal/machine/$part && ./$part.test"
		done
		for part in install agent; do
			chroot "$root" sh -euc "cd /srv/internal/machine/$part && exec ./$part.test \"\$@\"" sh -test.skip "NoHerd|TestKilled" "$@"
		done
	' sh "$root" "$@"
}

log=$(mktemp)
suite trixie "$@" >"$log" 2>&1 &
trixie=$!
suite bullseye "$@" &
bullseye=$!
trap 'kill "$trixie" "$bullseye" 2>/dev/null || true; rm -f "$log"' EXIT
failed=
wait "$bullseye" || failed=yes
wait "$trixie" || failed=yes
cat "$log"
[ -z "$failed" ]
