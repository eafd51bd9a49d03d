//go:build e2e && linux

package faults

import (
	"context"
	"net/http"
	"testing"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
)

// onTheMachine are faults of the machine's disk, files and runs.
func onTheMachine() []fault {
	return []fault{
		{name: "disk full", finds: "disk", begin: diskFull},
		{name: "`/etc` read-only", finds: "disk", begin: script("mount --bind /etc /etc; mount -o remount,bind,ro /etc", "umount /etc")},
		{name: "`/var` read-only", finds: "disk", begin: script("mount --bind /var /var; mount -o remount,bind,ro /var", "umount /var")},
		{name: "sshd's configuration broken before a renewal", finds: "sshd", begin: brokenConfiguration},
		{name: "sshd's configuration broken after a renewal", finds: "sshd", begin: brokenConfiguration, idle: true},
		{name: "hallmark's configuration broken", finds: "configuration", begin: edited("/etc/hallmark/config.yaml", "s/^signer_url/signer_ulr/")},
		{name: "certificates removed, sshd restarted", finds: "certificates", begin: script("rm /etc/ssh/*-cert.pub;"+restart, ""), idle: true},
		{name: "a certificate damaged, sshd restarted", finds: "certificates", begin: script(`for c in /etc/ssh/*-cert.pub; do head -c 100 $c >/root/c; cat /root/c >$c; done;`+restart, ""), idle: true},
		{name: "a certificate of another key, sshd restarted", finds: "certificates", begin: script("cp /etc/ssh/ssh_host_rsa_key-cert.pub /etc/ssh/ssh_host_ed25519_key-cert.pub;"+restart, ""), idle: true},
		{name: "the file of trusted CAs removed", finds: "trusted CAs", begin: script("rm /etc/ssh/hallmark/openssh_ca.pub", ""), idle: true},
		{name: "the state damaged", finds: "enrollment", begin: script("echo '{' >/var/lib/hallmark/state.json", ""), idle: true},
		{name: "a folder in place of the state", finds: "files", begin: folder("/var/lib/hallmark/state.json"), idle: true},
		{name: "a folder in place of a certificate", finds: "files", begin: folder("/etc/ssh/ssh_host_ed25519_key-cert.pub"), idle: true},
		{name: "a folder in place of the trusted CAs", finds: "files", begin: folder("/etc/ssh/hallmark/openssh_ca.pub"), idle: true},
		{name: "a folder in place of the lock", finds: "files", begin: folder("/var/lib/hallmark/.lock")},
		{name: "a run killed while it asks the signer", finds: "last run", leaves: true, begin: killed},
		{name: "sshd stopped", finds: "sshd", begin: script("systemctl stop ssh.service", "systemctl start ssh.service")},
	}
}

// restart makes sshd read its files again. The test does this more often than systemd allows.
const restart = "systemctl reset-failed ssh.service 2>/dev/null || true; systemctl restart ssh.service;"

// script causes a fault with one script, and ends it with another. If end is empty, a run has
// to heal the machine.
func script(begin, end string) func(*testing.T, *instance) func() {
	return func(t *testing.T, m *instance) func() {
		m.sh(t, begin)
		return func() {
			if end != "" {
				m.sh(t, end)
			}
		}
	}
}

// folder replaces a file with a folder that contains a file. Hallmark has to cope with it; if
// it cannot, a person removes the folder.
func folder(path string) func(*testing.T, *instance) func() {
	return script("rm -f "+path+"; mkdir -p "+path+"; touch "+path+"/file", "if [ -d "+path+" ]; then rm -r "+path+"; fi")
}

// diskFull moves the files that change to a separate file system without space.
func diskFull(t *testing.T, m *instance) func() {
	m.sh(t, `for folder in /etc/ssh /var/lib/hallmark; do
	small=/run/small$folder
	mkdir -p $small
	mount -t tmpfs -o size=2m tmpfs $small
	cp -a $folder/. $small/
	dd if=/dev/zero of=$small/filler bs=4k 2>/dev/null || true
	mount --bind $small $folder
done`)
	return func() {
		m.sh(t, "for folder in /etc/ssh /var/lib/hallmark; do umount $folder /run/small$folder; done")
	}
}

func brokenConfiguration(t *testing.T, m *instance) func() {
	return script("echo NoSuchKeyword yes >/etc/ssh/sshd_config.d/99-broken.conf", "rm /etc/ssh/sshd_config.d/99-broken.conf")(t, m)
}

// killed kills the run during its request.
func killed(t *testing.T, m *instance) func() {
	ctx := context.WithoutCancel(t.Context())
	shared.lab.SetFrontTrouble(lab.FrontTrouble{Wrap: func(http.Handler) http.Handler {
		return http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			if _, err := m.Run(ctx, "systemctl", "kill", "--kill-who=main", "--signal=KILL", "hallmark.service"); err != nil {
				t.Error(err)
			}
			panic(http.ErrAbortHandler)
		})
	}})
	return func() { shared.lab.SetFrontTrouble(lab.FrontTrouble{}) }
}
