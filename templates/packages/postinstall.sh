#!/bin/sh
# Runs after the package's files are in place, as root. It enables and starts nothing: that is
# up to "hallmark install".
set -eu

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || echo "hallmark: warning: run 'systemctl daemon-reload': systemd did not load the new units" >&2
fi

if [ -e /etc/systemd/system/hallmark.service ]; then
	echo "hallmark: this machine still runs /usr/local/bin/hallmark: to use the package's program, run '/usr/bin/hallmark install --from FOLDER'" >&2
elif [ -e /etc/hallmark/config.yaml ] && ! systemctl --quiet is-enabled hallmark-renew.timer; then
	echo "hallmark: the timers are disabled: run 'systemctl enable --now hallmark.timer hallmark-renew.timer'" >&2
fi
