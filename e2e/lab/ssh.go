//go:build linux

package lab

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"
)

// SSH logs in to an instance as people of the cluster do, and runs a command. It trusts a
// host only if the cluster's Host CA certified the name that people type.
func (l *Lab) SSH(ctx context.Context, i *Instance, hostname, command string) (string, error) {
	return l.Cluster.SSH(ctx, i.Address, hostname, command)
}

// SSHByStranger logs in with a user certificate from another cluster's CA.
func (l *Lab) SSHByStranger(ctx context.Context, i *Instance, hostname, command string) (string, error) {
	return runSSH(ctx, i.Address, l.keys.stranger, l.knownHosts(), hostname, command)
}

// SSHByKeyPair logs in without the cluster: with the instance's EC2 key pair, trusting the
// host key on its disk.
func (l *Lab) SSHByKeyPair(ctx context.Context, i *Instance, command string) (string, error) {
	key, err := os.ReadFile(i.Path("etc/ssh/ssh_host_ed25519_key.pub"))
	if err != nil {
		return "", err
	}
	known, err := os.CreateTemp(l.dir, "known_hosts-")
	if err != nil {
		return "", err
	}
	defer os.Remove(known.Name())
	defer known.Close()
	if _, err := fmt.Fprintf(known, "%s %s", i.ID, key); err != nil {
		return "", err
	}
	return runSSH(ctx, i.Address, l.keys.keyPair, known.Name(), i.ID, command)
}

// runSSH runs the stock client against the address, and verifies the host under the name.
func runSSH(ctx context.Context, address netip.Addr, identity, knownHosts, hostname, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ssh", "-F", "none",
		"-o", "BatchMode=yes",
		"-o", "ConnectTimeout=30",
		"-o", "GlobalKnownHostsFile=/dev/null",
		"-o", "HostKeyAlias="+hostname,
		"-o", "IdentitiesOnly=yes",
		"-o", "IdentityAgent=none",
		"-o", "StrictHostKeyChecking=yes",
		"-o", "UpdateHostKeys=no",
		"-o", "UserKnownHostsFile="+knownHosts,
		"-i", identity,
		User+"@"+address.String(), command)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("ssh %s: %w: %s", hostname, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
