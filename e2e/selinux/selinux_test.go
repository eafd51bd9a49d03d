//go:build e2e && linux

// Package selinux runs the whole path on a machine whose SELinux enforces Debian's reference
// policy: Packer bakes an image in it, and a machine of the image boots, enrolls and renews.
// People log in to it. Nothing of Hallmark's may be denied or have a wrong label.
//
// The machine has a kernel of its own, so QEMU emulates it, which takes minutes.
package selinux

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/e2e/machine"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

var shared *lab.Lab

func TestMain(m *testing.M) {
	os.Exit(machine.Tests("selinux", setUp, m.Run, machine.Debian12SELinux))
}

func setUp(ctx context.Context, f *machine.Fleet) error {
	dir, err := os.MkdirTemp("", "selinux-")
	if err != nil {
		return err
	}
	shared, err = lab.New(ctx, f, lab.Built("../.."), dir)
	return err
}

func TestEnforcing(t *testing.T) {
	started := time.Now()
	step := func(what string) { t.Logf("%3.0f s: %s", time.Since(started).Seconds(), what) }

	image := bake(t)
	step("baked")
	i := launch(t, image)
	if err := i.WaitForSSH(t.Context()); err != nil {
		t.Fatal(err)
	}
	step("booted")
	if got := run(t, i, "getenforce"); got != "Enforcing" {
		t.Fatalf("SELinux is %q, want Enforcing", got)
	}
	enrolled := waitEnrolled(t, i, time.Time{})
	step("enrolled")
	checkLogin(t, i, enrolled)

	renewed := renew(t, i, enrolled)
	step("renewed")
	checkLogin(t, i, renewed)

	for _, wrong := range labels(t, i) {
		t.Errorf("label: %s", wrong)
	}
	denied, others := denials(t, i)
	for _, line := range denied {
		t.Errorf("denied: %s", line)
	}
	t.Logf("denied to others:\n%s", strings.Join(others, "\n"))
	step("checked")
	if len(denied) == 0 {
		checkChecks(t, i)
	}
}

func bake(t *testing.T) lab.Image {
	t.Helper()
	var packer bytes.Buffer
	image, err := shared.BakeVM(t.Context(), &packer)
	if err != nil {
		t.Fatalf("%v\n--- packer\n%s", err, &packer)
	}
	return image
}

// launch boots a machine, which ends after the test.
func launch(t *testing.T, image lab.Image) *lab.VirtualInstance {
	t.Helper()
	i, err := shared.LaunchVM(t.Context(), lab.Template{Name: "enforcing", Image: image, Tags: map[string]string{"Name": "enforcing"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("--- console\n%s", i.Console())
			journal, err := i.Run(context.WithoutCancel(t.Context()), "journalctl --no-pager --boot --lines=300")
			t.Logf("--- journal\n%s%v", journal, err)
			t.Logf("--- signer\n%s", shared.SignerLog())
		}
		if err := i.Kill(); err != nil {
			t.Error(err)
		}
	})
	return i
}

// waitEnrolled waits until the machine has enrolled, after the given time.
func waitEnrolled(t *testing.T, i *lab.VirtualInstance, after time.Time) *state.State {
	t.Helper()
	var s *state.State
	err := machine.Poll(t.Context(), 15*time.Minute, func() (err error) {
		if s, err = i.State(t.Context()); err == nil && !s.EnrolledAt.After(after) {
			err = fmt.Errorf("enrolled at %v", s.EnrolledAt)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// A handshake of an emulated processor can take longer than Hallmark waits for it. The
	// test logs in by the certificates afterwards. SELinux would deny the connection.
	tooSlow := strings.Contains(s.NotVerified, "use of closed network connection") // by Hallmark itself
	if !s.Presented || s.NotVerified != "" && !tooSlow || len(s.Certificates) != 3 {
		t.Errorf("sshd was not seen to present three certificates: %+v", s)
	}
	return s
}

// renew makes the certificates due and starts the unit, as the timer does.
func renew(t *testing.T, i *lab.VirtualInstance, before *state.State) *state.State {
	t.Helper()
	due := *before
	due.EnrolledAt, due.RenewAfter = due.EnrolledAt.Add(-72*time.Hour), due.EnrolledAt.Add(-time.Minute)
	data, err := json.Marshal(due)
	if err != nil {
		t.Fatal(err)
	}
	run(t, i, fmt.Sprintf("echo '%s' >/var/lib/hallmark/state.json; systemctl restart hallmark.service", data))
	return waitEnrolled(t, i, due.EnrolledAt)
}

// checkLogin logs in by a certificate of the cluster. The other commands do by the key pair.
func checkLogin(t *testing.T, i *lab.VirtualInstance, s *state.State) {
	t.Helper()
	out, err := shared.Cluster.SSH(t.Context(), i.Address, s.Node.Hostname+"."+s.Node.Cluster, "id -un")
	if got := strings.TrimSpace(out); err != nil || got != lab.User {
		t.Errorf("logged in as %q, want %q: %v", got, lab.User, err)
	}
}

// labels returns the files with labels that differ from the policy's, in the folders where
// hallmark writes. The policy has no labels for new files in /run.
func labels(t *testing.T, i *lab.VirtualInstance) []string {
	t.Helper()
	const folders = "/etc/hallmark /etc/ssh /etc/systemd/system /usr/local/bin /var/lib/hallmark"
	run(t, i, "ls -d "+folders)
	return lines(run(t, i, "restorecon -R -n -v "+folders))
}

// relevant matches what the kernel says about hallmark, sshd, and what they read and run.
var relevant = regexp.MustCompile(`hallmark|openssh_ca|ssh_host_|sshd|comm="systemctl"`)

// denials returns what the policy has denied to hallmark or sshd since before the bake, and
// everything else that it has denied.
func denials(t *testing.T, i *lab.VirtualInstance) (denied, others []string) {
	t.Helper()
	if lost := run(t, i, "journalctl --no-pager --output=cat _TRANSPORT=kernel | grep -E 'audit_lost=|audit: .*limit exceeded' || true"); lost != "" {
		t.Errorf("the kernel lost messages: %s", lost)
	}
	for _, line := range lines(run(t, i, "journalctl --no-pager --output=cat | grep -E 'avc: +denied' || true")) {
		if relevant.MatchString(line) {
			denied = append(denied, line)
		} else {
			others = append(others, line)
		}
	}
	return denied, others
}

// checkChecks shows that labels and denials find faults.
func checkChecks(t *testing.T, i *lab.VirtualInstance) {
	t.Helper()
	run(t, i, "chcon -t tmp_t /etc/hallmark/config.yaml")
	if wrong := labels(t, i); len(wrong) != 1 || !strings.Contains(wrong[0], "/etc/hallmark/config.yaml") {
		t.Errorf("after config.yaml got the label of a temporary file, wrong labels are %q", wrong)
	}
	// No policy lets a program in /usr/local start as the system's logger.
	run(t, i, "! systemd-run --quiet --wait --property=SELinuxContext=system_u:system_r:syslogd_t:s0 /usr/local/bin/hallmark version")
	err := machine.Await(t.Context(), func() error {
		if denied, _ := denials(t, i); len(denied) == 0 {
			return errors.New("the denial of hallmark's start as the system's logger was not found")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func lines(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == '\n' })
}

// run runs a shell command in the machine, which must succeed.
func run(t *testing.T, i *lab.VirtualInstance, command string) string {
	t.Helper()
	out, err := i.Run(t.Context(), command)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return strings.TrimSpace(out)
}
