//go:build linux

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/e2e/machine"
)

// commands are what people and timers run on a machine. prepare makes the machine so that the
// command has that work to do.
func commands() []struct{ what, prepare, command string } {
	const (
		hourAgo = `sed -i "s/\"enrolledAt\": \".*\"/\"enrolledAt\": \"$(date -u -d '-1 hour' +%FT%TZ)\"/" /var/lib/hallmark/state.json`
		due     = `sed -i "s/\"renewAfter\": \".*\"/\"renewAfter\": \"$(date -u -d '-1 minute' +%FT%TZ)\"/" /var/lib/hallmark/state.json`
		forget  = "rm /var/lib/hallmark/state.json /etc/ssh/*-cert.pub"
		folder  = "mkdir -p /root/install; cp /etc/hallmark/*.yaml /etc/hallmark/*.pem /root/install"
	)
	return []struct{ what, prepare, command string }{
		{"`status`", "true", "hallmark status"},
		{"`doctor`", "true", "hallmark doctor --timeout 1m"},
		{"`enroll`, new", forget, "hallmark enroll"},
		{"`renew`, due", hourAgo + "; " + due, "hallmark renew"},
		{"`renew`, nothing due", hourAgo, "hallmark renew"},
		{"`install`, nothing new", folder, "hallmark install --from /root/install"},
		{"`version`", "true", "hallmark version"},
		{"`seal`", back, "hallmark seal --force"},
		{"`unenroll`", back, "hallmark unenroll"},
	}
}

// back brings a machine back that was sealed, or that left: with the same host keys, because the
// signer refuses others. Before, it keeps what it needs for that.
const back = `if [ ! -e /root/back ]; then
	mkdir /root/back
	cp /usr/local/bin/hallmark /etc/hallmark/config.yaml /etc/hallmark/signer_ca.pem /etc/ssh/hallmark/openssh_ca.pub /root/back
	cp -a /etc/ssh /root/back/ssh
fi
[ -e /etc/ssh/ssh_host_rsa_key ] || cp -a /root/back/ssh/ssh_host_*_key /root/back/ssh/ssh_host_*_key.pub /etc/ssh
/root/back/hallmark install --from /root/back
hallmark enroll --reload`

// startTimers makes the machine healthy again after boot: the timers are active, but do not run
// hallmark during a measurement. hallmark.timer does once, at its start.
const startTimers = `mkdir -p /run/systemd/system/hallmark-renew.timer.d
printf '[Timer]\nOnCalendar=\nOnCalendar=*-01-01\nRandomizedDelaySec=0\nPersistent=no\n' >/run/systemd/system/hallmark-renew.timer.d/bench.conf
systemctl daemon-reload
systemctl start hallmark.timer hallmark-renew.timer
sleep 1
until systemctl show --property=SubState hallmark.service | grep -qx SubState=dead; do sleep 0.1; done`

// printCommands prints a table of what each command costs the machine.
func printCommands(ctx context.Context, l *lab.Lab, i *lab.Instance) error {
	if _, err := i.Run(ctx, "sh", "-euc", startTimers); err != nil {
		return err
	}
	fmt.Print("\n| command | time, s | CPU, s | memory, MB | sent, bytes | received, bytes |\n|---|---|---|---|---|---|\n")
	for _, c := range commands() {
		costs, err := measure(ctx, i, func() error {
			l.Signer.Restart() // which forgets how often the machine has asked
			_, err := i.Run(ctx, "sh", "-ec", c.prepare)
			return err
		}, strings.Fields(c.command)...)
		if err != nil {
			return fmt.Errorf("%s: %w", c.command, err)
		}
		fmt.Printf("| %s | %.2f | %.2f | %.1f | %.0f | %.0f |\n",
			c.what, median(costs, wall), median(costs, cpu), median(costs, memory), median(costs, sent), median(costs, received))
	}
	_, err := i.Run(ctx, "sh", "-ec", back)
	return err
}

// printCommandsAlone prints only the table of the commands.
func printCommandsAlone(ctx context.Context, f *machine.Fleet, c lab.Config) error {
	l, i, err := boot(ctx, f, c)
	if err != nil {
		return err
	}
	return printCommands(ctx, l, i)
}
