#!/bin/sh
# Runs the tests that use sshd with the OpenSSH of other Debian releases, on the root file systems
# of the tests' machines: 8.4 (bullseye) and 10.0 (trixie), both at the same time. Needs root, and
# bin/rootfs. It leaves out tests that take minutes and do not depend on sshd's version: simulated
# herds, and runs killed at each step. Arguments go to the tests of internal/machine/agent and
# internal/machine/install.
set -eu

cd "$(dirname "$0")/.."
mkdir -p bin/sshd
for part in agent findings install sshd; do
	CGO_ENABLED=0 go test -c -o "bin/sshd/$part.test" "./internal/machine/$part"
done

# suite NAME ARGUMENTS...
suite() {
	base=$(bin/rootfs "$1")
	# Everything is mounted in a namespace of its own, and disappears with it. The root file system
	# stays as it is: what the tests write goes to memory.
	# shellcheck disable=SC2016 # the inner shell expands
	exec unshare --mount --pid --fork --kill-child sh -euc '
		base=$1 suite=$2 root=/mnt/root
		shift 2
		mount -t tmpfs tmpfs /mnt
		mkdir /mnt/changes /mnt/work "$root"
		mount -t overlay -o "lowerdir=$base,upperdir=/mnt/changes,workdir=/mnt/work" overlay "$root"
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
	' sh "$base" "$@"
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
