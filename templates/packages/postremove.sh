#!/bin/sh
# Runs after the package's files are removed, as root: with "remove" or "purge" from dpkg and 0
# from rpm, or with other words at an upgrade.
set -eu

case ${1:-} in
remove | 0) ;;
*) exit 0 ;;
esac

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || echo "hallmark: warning: run 'systemctl daemon-reload'" >&2
fi
