//go:build e2e && linux

package e2e

import (
	"errors"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gravitational/teleport/api/types"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

func enrolledState(t *testing.T, i *lab.Instance) *state.State {
	t.Helper()
	return must[*state.State](t)(i.State(t.Context()))
}

// checkLogin logs in with a certificate of the cluster, and checks which machine it reached.
func checkLogin(t *testing.T, i *lab.Instance, hostname string) {
	t.Helper()
	out := must[string](t)(shared.lab.SSH(t.Context(), i, hostname, "cat /run/cloud-init/.instance-id"))
	if strings.TrimSpace(out) != i.ID {
		t.Errorf("ssh %s reached %q, want %q", hostname, out, i.ID)
	}
}

// checkKeyPairLogin checks that a login that does not use Hallmark works.
func checkKeyPairLogin(t *testing.T, i *lab.Instance) {
	t.Helper()
	poll(t, func() error {
		_, err := shared.lab.SSHByKeyPair(t.Context(), i, "true")
		return err
	})
}

// checkExit runs hallmark enroll, and checks its exit code and its output.
func checkExit(t *testing.T, i *lab.Instance, code int, says string) {
	t.Helper()
	_, err := i.Hallmark(t.Context(), "enroll")
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != code || !strings.Contains(err.Error(), says) {
		t.Errorf("hallmark enroll: %v, want exit code %d and %q", err, code, says)
	}
}

func TestLoginByEachName(t *testing.T) {
	i := web(t)
	node := enrolledState(t, i).Node
	if want := "web-" + i.ID; node.Hostname != want {
		t.Errorf("host name %q, want %q", node.Hostname, want)
	}
	for _, name := range []string{node.Hostname, node.ID} {
		checkLogin(t, i, name+"."+node.Cluster)
	}
}

// The machine learns from the signer what only EC2 knows.
func TestMachineKnowsItsMetadataOptions(t *testing.T) {
	want := protocol.MetadataOptions{HTTPTokens: protocol.TokensRequired, HopLimit: 1}
	if got := enrolledState(t, web(t)).MetadataOptions; got != want {
		t.Errorf("metadata options %+v, want %+v", got, want)
	}
}

func TestUserOfAnotherClusterIsRefused(t *testing.T) {
	i := web(t)
	node := enrolledState(t, i).Node
	_, err := shared.lab.SSHByStranger(t.Context(), i, node.Hostname+"."+node.Cluster, "true")
	if err == nil || !strings.Contains(err.Error(), "Permission denied") {
		t.Errorf("error %v, want Permission denied", err)
	}
}

func TestHostIsRefusedByAnotherName(t *testing.T) {
	i := web(t)
	_, err := shared.lab.SSH(t.Context(), i, "bastion."+enrolledState(t, i).Node.Cluster, "true")
	if err == nil || !strings.Contains(err.Error(), "Host key verification failed") {
		t.Errorf("error %v, want Host key verification failed", err)
	}
}

// An operator sees ssh-keygen's output.
func TestKeygenShowsWhatThePolicyAskedFor(t *testing.T) {
	i := web(t)
	node := enrolledState(t, i).Node
	names := []string{node.Hostname, node.ID, node.Hostname + "." + node.Cluster, node.ID + "." + node.Cluster}
	slices.Sort(names)
	for _, kind := range []string{"ecdsa", "ed25519", "rsa"} {
		t.Run(kind, func(t *testing.T) {
			out := run(t, i, "env", "TZ=UTC", "ssh-keygen", "-L", "-f", "/etc/ssh/ssh_host_"+kind+"_key-cert.pub")
			if !strings.Contains(out, "host certificate") {
				t.Errorf("not a host certificate:\n%s", out)
			}
			if got := principals(out); !slices.Equal(got, names) {
				t.Errorf("principals %q, want %q", got, names)
			}
			// Teleport dates certificates back a little.
			if got := validity(t, out); got < lifetime || got > lifetime+5*time.Minute {
				t.Errorf("valid for %v, want %v", got, lifetime)
			}
		})
	}
}

func principals(keygen string) []string {
	_, rest, _ := strings.Cut(keygen, "Principals:")
	block, _, _ := strings.Cut(rest, "Critical Options:")
	names := strings.Fields(block)
	slices.Sort(names)
	return names
}

func validity(t *testing.T, keygen string) time.Duration {
	t.Helper()
	match := regexp.MustCompile(`Valid: from (\S+) to (\S+)`).FindStringSubmatch(keygen)
	if match == nil {
		t.Fatalf("no validity in\n%s", keygen)
	}
	const layout = "2006-01-02T15:04:05"
	from := must[time.Time](t)(time.Parse(layout, match[1]))
	to := must[time.Time](t)(time.Parse(layout, match[2]))
	return to.Sub(from)
}

func TestNodeHasLabelsAndLease(t *testing.T) {
	i := web(t)
	s := enrolledState(t, i)
	for _, node := range must[[]types.Server](t)(shared.lab.Cluster.Nodes(t.Context())) {
		if node.GetName() != s.Node.ID {
			continue
		}
		if want := i.Address.String() + ":22"; node.GetAddr() != want {
			t.Errorf("address %q, want %q", node.GetAddr(), want)
		}
		if got, want := node.Expiry(), s.Certificates[0].ValidBefore; got.Sub(want).Abs() > time.Minute {
			t.Errorf("lease until %v, certificate until %v", got, want)
		}
		labels := maps.Clone(node.GetAllLabels())
		want := map[string]string{
			"purpose": "e2e", "tag/Name": "Web", "tag/team": "storefront", "hallmark/rule": "e2e",
			"hallmark/signer": lab.Audience, "teleport.dev/instance-id": i.ID, "teleport.dev/aws-region": lab.Region,
		}
		for key, value := range want {
			if labels[key] != value {
				t.Errorf("label %s=%q, want %q", key, labels[key], value)
			}
		}
		if _, leaked := labels["tag/secret-key"]; leaked {
			t.Error("a tag that the policy denies became a label")
		}
		return
	}
	t.Errorf("the cluster has no node %s", s.Node.ID)
}

func TestEnrollAgainChangesNothing(t *testing.T) {
	i := web(t)
	// The unit has fewer capabilities than sshd, but finds sshd's sockets anyway.
	if s := enrolledState(t, i); !s.Presented || s.NotVerified != "" {
		t.Errorf("hallmark.service did not see sshd present the certificates: %t, %q", s.Presented, s.NotVerified)
	}
	calls := shared.lab.STS.Calls()
	// Each run records in the lock when it took it.
	const list = `find /etc/ssh /etc/hallmark /var/lib/hallmark -type f ! -name .lock -printf '%p %T@ %i %m %U\n' -exec sha256sum {} + | sort`
	before := run(t, i, "sh", "-c", list)
	if !strings.Contains(before, "/var/lib/hallmark/state.json") {
		t.Fatalf("no state among\n%s", before)
	}
	hallmark(t, i, "enroll")
	if after := run(t, i, "sh", "-c", list); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if got := shared.lab.STS.Calls(); got != calls {
		t.Errorf("%d calls of STS, want none", got-calls)
	}
}

// Version 1 of the metadata service answers anyone whose request gets forwarded.
func TestMetadataIsAskedWithTokensOnly(t *testing.T) {
	own := 0
	for _, r := range web(t).Metadata.Requests() {
		if strings.HasPrefix(r.UserAgent, "Cloud-Init/") || strings.HasPrefix(r.UserAgent, "python-requests/") || r.Method == http.MethodPut {
			continue
		}
		own++
		if !r.Token {
			t.Errorf("%s %s came without a token", r.Method, r.Path)
		}
	}
	if own == 0 {
		t.Error("no request of hallmark's: does its user agent look like cloud-init's?")
	}
}

func TestGoldenImageHasNoIdentity(t *testing.T) {
	top := shared.image.Disk.Top()
	for _, pattern := range []string{
		"etc/ssh/ssh_host_*", "var/lib/hallmark/*", "home/*/.ssh/authorized_keys", "root/.ssh/authorized_keys",
		"var/lib/cloud/instances/*", "tmp/hallmark-*",
	} {
		for _, path := range must[[]string](t)(filepath.Glob(filepath.Join(top, pattern))) {
			// The overlay marks a deleted file with a device in its place.
			if info, err := os.Lstat(path); err != nil || info.Mode()&os.ModeCharDevice == 0 {
				t.Errorf("the image has %s", path)
			}
		}
	}
	for _, name := range []string{"usr/local/bin/hallmark", "etc/hallmark/config.yaml", "etc/ssh/hallmark/openssh_ca.pub"} {
		if _, err := os.Stat(filepath.Join(top, name)); err != nil {
			t.Error(err)
		}
	}
}

func TestRebootKeepsTheEnrollment(t *testing.T) {
	i := launch(t, lab.Template{Name: "reboot"})
	before := must[*state.State](t)(i.WaitEnrolled(t.Context()))
	if err := i.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := i.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	poll(t, func() error {
		_, err := shared.lab.SSH(t.Context(), i, before.Node.Hostname+"."+before.Node.Cluster, "true")
		return err
	})
	if after := enrolledState(t, i); !after.EnrolledAt.Equal(before.EnrolledAt) {
		t.Errorf("enrolled again at %v, after %v", after.EnrolledAt, before.EnrolledAt)
	}
}

// While the signer is down, no login may fail.
func TestSignerDownAtBoot(t *testing.T) {
	start := stopSigner(t)
	i := launch(t, lab.Template{Name: "down"})
	checkKeyPairLogin(t, i)
	poll(t, func() error {
		_, err := i.Run(t.Context(), "sh", "-c", "journalctl -u hallmark.service | grep -q 'connection refused'")
		return err
	})
	if _, err := i.State(t.Context()); err == nil {
		t.Error("enrolled without a signer")
	}

	start()
	s := must[*state.State](t)(i.WaitEnrolled(t.Context()))
	checkLogin(t, i, s.Node.Hostname+"."+s.Node.Cluster)
	checkKeyPairLogin(t, i)
}

func TestNewHostKeysAreRefused(t *testing.T) {
	i := launch(t, lab.Template{Name: "rekeyed"})
	must[*state.State](t)(i.WaitEnrolled(t.Context()))
	run(t, i, "sh", "-c", "rm /etc/ssh/ssh_host_* && ssh-keygen -A && systemctl reload ssh")
	checkExit(t, i, 4, string(protocol.CodeKeyConflict))
	checkKeyPairLogin(t, i)
}

// Host keys that were baked into an image would be shared by all its machines.
func TestSharedHostKeysAreRefused(t *testing.T) {
	keys := run(t, web(t), "tar", "-C", "/etc/ssh", "-cf", "-", "ssh_host_ed25519_key", "ssh_host_ed25519_key.pub")
	start := stopSigner(t)
	i := launch(t, lab.Template{Name: "copy"})
	checkKeyPairLogin(t, i)
	run(t, i, "sh", "-c", "systemctl stop hallmark.timer hallmark-renew.timer hallmark.service; rm /etc/ssh/ssh_host_*")
	if err := os.WriteFile(i.Path("root/keys.tar"), []byte(keys), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, i, "sh", "-c", "tar -C /etc/ssh -xf /root/keys.tar && systemctl reload ssh")
	start()
	checkExit(t, i, 4, string(protocol.CodeKeyInUse))
	checkKeyPairLogin(t, i)
}
