#!/bin/sh
# Runs before the package's files are removed, as root: with "remove" from dpkg and 0 from rpm,
# or with other words at an upgrade. sshd keeps its settings, its certificates and the CAs that it
# trusts. It needs no file of this package.
set -eu

case ${1:-} in
remove | 0) ;;
*) exit 0 ;;
esac

# These units run another program, without this package.
[ ! -e /etc/systemd/system/hallmark.service ] || exit 0

warn() { echo "hallmark: warning: $1" >&2; }

systemctl --quiet disable hallmark.timer hallmark-renew.timer || warn "could not disable the timers"
if [ -d /run/systemd/system ]; then
	systemctl stop hallmark.timer hallmark-renew.timer || warn "could not stop the timers"
	lock=/var/lib/hallmark/.lock
	if [ -f "$lock" ] && command -v flock >/dev/null && ! flock --timeout 660 "$lock" true; then
		warn "a run of hallmark has been in progress for 11 minutes, and is stopped now"
	fi
	# A failed run would be repeated.
	systemctl stop hallmark.service || warn "could not stop hallmark.service"
fi

if [ -e /var/lib/hallmark/state.json ]; then
	echo "hallmark: this machine stays enrolled until its certificates expire, because nothing renews them anymore; sshd keeps its settings" >&2
	echo "hallmark: to restore sshd's settings, install the package again and run 'hallmark unenroll'" >&2
fi
