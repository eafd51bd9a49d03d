#!/bin/sh
# Runs before the package's files are put in place, at an installation and at an upgrade, as
# root: with "install" or "upgrade" from dpkg, with 1 or 2 from rpm.
set -eu

# Wait for a running enrollment, at most a minute longer than it may take (RuntimeMaxSec).
# After that, go on: it keeps its old program, and the upgrade may be what unblocks it.
lock=/var/lib/hallmark/.lock
if [ -f "$lock" ] && command -v flock >/dev/null && ! flock --timeout 660 "$lock" true; then
	echo "hallmark: warning: a run of hallmark has been in progress for 11 minutes: find it with 'fuser -v $lock'" >&2
fi
