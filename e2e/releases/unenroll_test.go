//go:build e2e && linux

package releases

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// sshFiles are the files in /etc/ssh of a system before hallmark is baked into it.
type sshFiles map[string]string

// recorded returns a preparation that also records the files.
func (f sshFiles) recorded(prepare func(ctx context.Context, root string) error) func(ctx context.Context, root string) error {
	return func(ctx context.Context, root string) error {
		if prepare != nil {
			if err := prepare(ctx, root); err != nil {
				return err
			}
		}
		return f.read(root)
	}
}

// read skips host keys, which cloud-init generates at the first boot.
func (f sshFiles) read(root string) error {
	dir := filepath.Join(root, "etc/ssh")
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasPrefix(d.Name(), "ssh_host_") {
			return err
		}
		data, err := os.ReadFile(path)
		f[strings.TrimPrefix(path, root)] = string(data)
		return err
	})
}

// checkLeaving takes the machine out, sees that it is as before the bake, and brings it back
// with the same host keys.
func checkLeaving(t *testing.T, i *lab.Instance, enrolled *state.State, before sshFiles) {
	t.Helper()
	run(t, i, "sh", "-c", `mkdir /root/again && cp /usr/local/bin/hallmark /etc/hallmark/config.yaml /etc/ssh/hallmark/openssh_ca.pub /root/again/
if [ -e /etc/hallmark/signer_ca.pem ]; then cp /etc/hallmark/signer_ca.pem /root/again/; fi`)
	said, err := i.Hallmark(t.Context(), "unenroll")
	if err != nil || !strings.Contains(said, "deleted node "+enrolled.Node.ID) {
		t.Fatalf("hallmark unenroll: %v: %s", err, said)
	}
	checkGone(t, i, enrolled)
	checkFiles(t, i, before)
	if !strings.Contains(shared.SignerLog(), `"code":"left"`) {
		t.Error("the signer's log has no line about it")
	}

	again := run(t, i, "sh", "-c", "/root/again/hallmark unenroll 2>&1")
	if !strings.Contains(again, "not installed, nothing changed") {
		t.Errorf("the second hallmark unenroll: %s", again)
	}
	checkFiles(t, i, before)

	run(t, i, "/root/again/hallmark", "install", "--from", "/root/again", "--dry-run")
	checkFiles(t, i, before)
	run(t, i, "/root/again/hallmark", "install", "--from", "/root/again")
	run(t, i, "systemctl", "start", "hallmark.timer", "hallmark-renew.timer")
	back, err := i.WaitEnrolled(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if back.Node.ID != enrolled.Node.ID || back.Certificates[0].Fingerprint != enrolled.Certificates[0].Fingerprint {
		t.Errorf("it came back as %+v, was %+v", back, enrolled)
	}
	checkLogins(t, i, back)
}

// checkGone sees that the node is gone, and that people get in without the cluster only.
func checkGone(t *testing.T, i *lab.Instance, enrolled *state.State) {
	t.Helper()
	nodes, err := shared.Cluster.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range nodes {
		if node.GetName() == enrolled.Node.ID {
			t.Error("the node is still there")
		}
	}
	if _, err := shared.SSH(t.Context(), i, enrolled.Node.Hostname+"."+enrolled.Node.Cluster, "true"); err == nil {
		t.Error("a certificate of the cluster still logs in")
	}
	if _, err := shared.SSHByKeyPair(t.Context(), i, "true"); err != nil {
		t.Errorf("a login by the key pair: %v", err)
	}
}

// checkFiles sees that nothing of hallmark is left, and that sshd's files are as before.
func checkFiles(t *testing.T, i *lab.Instance, before sshFiles) {
	t.Helper()
	after := sshFiles{}
	if err := after.read(i.Path("")); err != nil {
		t.Fatal(err)
	}
	for path, content := range before {
		if after[path] != content {
			t.Errorf("%s is %q, was %q", path, after[path], content)
		}
	}
	left := run(t, i, "sh", "-c", `find /etc /usr/local /var/lib /run -name '*hallmark*'; ls /etc/ssh/*-cert.pub 2>/dev/null; systemctl list-unit-files --no-legend 'hallmark*'; true`)
	if left != "" {
		t.Errorf("these are left:\n%s", left)
	}
	settings := run(t, i, "/usr/sbin/sshd", "-T")
	for _, want := range []string{"trustedusercakeys none\n", "maxstartups 10:30:100\n"} {
		if !strings.Contains(settings, want) {
			t.Errorf("sshd's settings have no %q", want)
		}
	}
	if strings.Contains(settings, "hostcertificate") {
		t.Error("sshd's settings still have a HostCertificate")
	}
}
