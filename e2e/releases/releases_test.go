//go:build e2e && linux

// Package releases runs the whole path on each Debian release: Packer bakes an image,
// a machine of it boots, enrolls, renews and reboots, and people log in to it. It also runs the
// ways for machines that are not baked: packages and cloud-config.
//
// The machines share one lab and run at the same time, with names of their own. With -short,
// all run Debian 12.
package releases

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/e2e/machine"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// shared is the lab of all tests, fleet has its machines, and proofs has what they sent to the
// signer. TestMain starts them.
var (
	shared *lab.Lab
	fleet  *machine.Fleet
	proofs lab.Proofs
)

func TestMain(m *testing.M) {
	checked := func() int {
		return shared.Checked(m.Run(), false, "../testdata/calls.jsonl", "../stack/testdata/calls.jsonl")
	}
	flag.Parse() // which testing.Short needs
	releases := []machine.Release{machine.Debian12}
	if !testing.Short() {
		releases = append(releases, machine.Debian11, machine.Debian13)
	}
	os.Exit(machine.Tests("releases", setUp, checked, releases...))
}

func setUp(ctx context.Context, f *machine.Fleet) error {
	fleet = f
	dir, err := os.MkdirTemp("", "releases-")
	if err != nil {
		return err
	}
	policy, err := migrationPolicy()
	if err != nil {
		return err
	}
	config := lab.Built("../..")
	config.Policy, config.Emulator = policy, "../../bin/aws-lambda-rie"
	shared, err = lab.New(ctx, f, config, dir)
	if err != nil {
		return err
	}
	shared.SetFrontTrouble(lab.FrontTrouble{Wrap: proofs.Wrap})
	return nil
}

func TestReleases(t *testing.T) {
	for _, test := range []struct {
		name    string
		release machine.Release
		prepare func(ctx context.Context, root string) error
		// versions are of the packages for which the release is here.
		versions map[string]string
		sshUnit  string
		// recorded programs write down what they are given. Other tests, and the other rows, have
		// the programs as they are.
		recorded bool
	}{
		{"debian11", machine.Debian11, nil, map[string]string{"cloud-init": "20.4", "systemd": "247", "openssh-server": "1:8.4"}, "ssh.service", false},
		{"debian12", machine.Debian12, recordPrograms, map[string]string{"cloud-init": "22.4", "systemd": "252", "openssh-server": "1:9.2"}, "ssh.service", true},
		{"debian13", machine.Debian13, nil, map[string]string{"cloud-init": "25.", "systemd": "257", "openssh-server": "1:10.0"}, "ssh.service", false},
		{"socket13", machine.Debian13, lab.BehindSocket, map[string]string{"openssh-server": "1:10.0"}, "ssh.socket", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if testing.Short() && test.release != machine.Debian12 {
				t.Skip("-short leaves the other releases to CI")
			}
			t.Parallel()
			before := sshFiles{}
			image, packer := bake(t, lab.Source{Name: "b-" + test.name, Release: test.release, Prepare: before.recorded(test.prepare), Log: test.recorded})
			i := launch(t, test.name, image)
			enrolled, err := i.WaitEnrolled(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			checkVersions(t, i, test.versions)
			checkUnits(t, i, test.sshUnit, "hallmark.timer", "hallmark-renew.timer")
			checkExposure(t, i, "hallmark.service")
			checkPresented(t, i, enrolled)
			checkLogins(t, i, enrolled)

			if test.recorded {
				setProxy(t, i)
			}
			renewed := renew(t, i, enrolled)
			checkPresented(t, i, renewed)
			checkLogins(t, i, renewed)
			if test.recorded {
				checkNoSecrets(t, i, packer, "systemctl enable hallmark.timer")
				run(t, i, "rm", environmentFile)
			}

			reboot(t, i)
			checkLogins(t, i, renewed)
			if after := enrolledState(t, i); !after.EnrolledAt.Equal(renewed.EnrolledAt) {
				t.Errorf("a reboot enrolled it again at %v, after %v", after.EnrolledAt, renewed.EnrolledAt)
			}
			checkJournal(t, i)
			checkQuiet(t, i)
			checkLeaving(t, i, renewed, before)
			if test.recorded {
				checkNoSecrets(t, i, packer, "systemctl daemon-reload")
				checkLeaksAreFound(t, i)
			}
		})
	}
}

// bake returns an image, and what Packer printed.
func bake(t *testing.T, source lab.Source) (lab.Image, string) {
	t.Helper()
	started := time.Now()
	image, output, err := shared.BakeQuietly(t.Context(), source)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("baked in %.1f s", time.Since(started).Seconds())
	return image, output
}

// launch boots a machine, which is powered off after the test.
func launch(t *testing.T, name string, image lab.Image) *lab.Instance {
	t.Helper()
	i, err := shared.Launch(t.Context(), lab.Template{Name: name, Image: image, Tags: map[string]string{"Name": name}})
	if err != nil {
		t.Fatal(err)
	}
	endAfter(t, i)
	return i
}

// endAfter powers the machine off after the test, and dumps its logs if the test failed.
func endAfter(t *testing.T, i *lab.Instance) {
	t.Helper()
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if t.Failed() {
			i.Dump(ctx, t.Output())
			t.Logf("--- signer\n%s", shared.SignerLog())
		}
		if err := i.PowerOff(ctx); err != nil {
			t.Error(err)
		}
	})
}

// checkVersions sees that the machine runs what its release is here for.
func checkVersions(t *testing.T, i *lab.Instance, want map[string]string) {
	t.Helper()
	for name, version := range want {
		if got := run(t, i, "dpkg-query", "--show", "--showformat=${Version}", name); !strings.HasPrefix(got, version) {
			t.Errorf("%s %s, want %s", name, got, version)
		}
	}
}

func checkUnits(t *testing.T, i *lab.Instance, units ...string) {
	t.Helper()
	for _, unit := range units {
		if out, err := i.Run(t.Context(), "systemctl", "is-active", unit); strings.TrimSpace(out) != "active" {
			t.Errorf("%s is %q: %v", unit, out, err)
		}
	}
}

// checkExposure sees that this systemd rates what the service can reach at 2.5 or better, from 0
// to 10.
func checkExposure(t *testing.T, i *lab.Instance, unit string) {
	t.Helper()
	const most = 2.5
	rated := run(t, i, "systemd-analyze", "security", "--no-pager", unit)
	_, last, _ := strings.Cut(rated, "Overall exposure level for "+unit+": ")
	number, _, _ := strings.Cut(last, " ")
	exposure, err := strconv.ParseFloat(number, 64)
	if err != nil || exposure > most {
		t.Errorf("exposure level %q, want at most %.1f:\n%s", number, most, rated)
	}
	t.Logf("systemd rates the exposure of %s at %s", unit, number)
}

// checkPresented sees that sshd has each certificate, and knows that it was seen.
func checkPresented(t *testing.T, i *lab.Instance, s *state.State) {
	t.Helper()
	if !s.Presented || s.NotVerified != "" {
		t.Errorf("sshd was not seen to present the certificates: %t, %q", s.Presented, s.NotVerified)
	}
	// Debian makes a key of each of these types.
	if len(s.Certificates) != 3 {
		t.Errorf("%d certificates, want one each for RSA, ECDSA and Ed25519: %v", len(s.Certificates), s.Certificates)
	}
}

// checkLogins logs in by a certificate of the cluster, and by the EC2 key pair.
func checkLogins(t *testing.T, i *lab.Instance, s *state.State) {
	t.Helper()
	poll(t, func() error { // sshd may be starting
		out, err := shared.SSH(t.Context(), i, s.Node.Hostname+"."+s.Node.Cluster, "cat /run/cloud-init/.instance-id")
		if err != nil {
			return err
		}
		if got := strings.TrimSpace(out); got != i.ID {
			return machine.Fatal(fmt.Errorf("reached %q, want %q", got, i.ID))
		}
		return nil
	})
	poll(t, func() error {
		_, err := shared.SSHByKeyPair(t.Context(), i, "true")
		return err
	})
}

// renew makes the certificates due and starts the unit, as the timer does.
func renew(t *testing.T, i *lab.Instance, before *state.State) *state.State {
	t.Helper()
	old := map[string]string{}
	for _, certificate := range before.Certificates {
		old[certificate.Path] = read(t, i, certificate.Path)
	}
	due := makeDue(t, i, before)
	run(t, i, "systemctl", "restart", "hallmark.service")
	var after *state.State
	poll(t, func() (err error) {
		if after, err = i.State(t.Context()); err == nil && !after.EnrolledAt.After(due.EnrolledAt) {
			err = fmt.Errorf("enrolled at %v", after.EnrolledAt)
		}
		return err
	})
	for _, certificate := range after.Certificates {
		if old[certificate.Path] == read(t, i, certificate.Path) {
			t.Errorf("%s is the certificate from before", certificate.Path)
		}
	}
	return after
}

// makeDue makes the certificates due for renewal, and returns the new state.
func makeDue(t *testing.T, i *lab.Instance, before *state.State) *state.State {
	t.Helper()
	due := *before
	due.EnrolledAt, due.RenewAfter = due.EnrolledAt.Add(-72*time.Hour), time.Now().Add(-time.Minute)
	writeState(t, i, &due)
	return &due
}

func read(t *testing.T, i *lab.Instance, path string) string {
	t.Helper()
	data, err := os.ReadFile(i.Path(path))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func reboot(t *testing.T, i *lab.Instance) {
	t.Helper()
	if err := i.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := i.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func enrolledState(t *testing.T, i *lab.Instance) *state.State {
	t.Helper()
	s, err := i.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// run runs a command in a machine, which must succeed.
func run(t *testing.T, i *lab.Instance, name string, args ...string) string {
	t.Helper()
	out, err := i.Run(t.Context(), name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// poll waits until a condition holds, far longer than it takes on a busy machine.
func poll(t *testing.T, try func() error) {
	t.Helper()
	if err := machine.Await(t.Context(), try); err != nil {
		t.Fatal(err)
	}
}
