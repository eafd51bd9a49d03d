//go:build e2e && linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/fake/imds"
	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// edit changes the machine's state, which must exist.
func edit(t *testing.T, i *lab.Instance, change func(*state.State)) {
	t.Helper()
	s := enrolledState(t, i)
	change(s)
	data := must[[]byte](t)(json.Marshal(s))
	if err := os.WriteFile(i.Path("var/lib/hallmark/state.json"), data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// While nobody has logged in, sshd does not run there, and its folder in /run is
// missing.
func TestSSHDBehindSocket(t *testing.T) {
	i := launch(t, lab.Template{Name: "socket", Prepare: lab.BehindSocket})
	s := must[*state.State](t)(i.WaitEnrolled(t.Context()))
	if units := run(t, i, "systemctl", "is-active", "ssh.socket"); strings.TrimSpace(units) != "active" {
		t.Fatalf("ssh.socket is %s", units)
	}
	if !s.Presented {
		t.Error("sshd was not seen to present the certificates")
	}
	name := s.Node.Hostname + "." + s.Node.Cluster
	checkLogin(t, i, name)

	// No sshd is running, and its folder is missing.
	run(t, i, "sh", "-c", "systemctl stop ssh.service; rm -rf /run/sshd /var/lib/hallmark/state.json")
	run(t, i, "systemctl", "restart", "hallmark.service")
	if s = must[*state.State](t)(i.WaitEnrolled(t.Context())); !s.Presented {
		t.Error("sshd was not started by the question for its certificates")
	}
	checkLogin(t, i, name)

	// An sshd is running that does not have the certificates. It has to read its configuration
	// again, and a SIGHUP would end it. An open session continues.
	run(t, i, "sh", "-c", `mv /etc/ssh/sshd_config.d/00-hallmark.conf /root/ && systemctl restart ssh.service && mv /root/00-hallmark.conf /etc/ssh/sshd_config.d/
rm /var/lib/hallmark/state.json`)
	if out := hallmark(t, i, "enroll"); !strings.Contains(out, "sshd was reloaded and presents the certificates") {
		t.Errorf("hallmark enroll: %s", out)
	}
	checkLogin(t, i, name)
	checkKeyPairLogin(t, i)
	// A SIGHUP ends it, systemd's socket makes up for that, and the journal shows it.
	if journal := run(t, i, "journalctl", "--unit=ssh.service"); strings.Contains(journal, "Failed with result") {
		t.Errorf("sshd did not end in order:\n%s", journal)
	}
}

// This image was made from an enrolled machine, without sealing it.
func TestImageOfAnEnrolledMachine(t *testing.T) {
	first, err := shared.lab.Launch(t.Context(), lab.Template{Name: "original", Image: shared.image})
	if err != nil {
		t.Fatal(err)
	}
	dumpOnFailure(t, first)
	before := must[*state.State](t)(first.WaitEnrolled(t.Context()))
	if err := first.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	image := lab.Image{ID: shared.image.ID}
	if image.Disk, err = first.Snapshot(); err != nil {
		t.Fatal(err)
	}
	second, err := shared.lab.Launch(t.Context(), lab.Template{Name: "restored", Image: image})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := second.PowerOff(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	dumpOnFailure(t, second)
	poll(t, func() error {
		s, err := second.State(t.Context())
		if err == nil && s.Instance.InstanceID.String() != second.ID {
			err = fmt.Errorf("enrolled as %s", s.Instance.InstanceID)
		}
		return err
	})
	after := enrolledState(t, second)
	for n := range after.Certificates {
		if after.Certificates[n].Fingerprint == before.Certificates[n].Fingerprint {
			t.Errorf("%s is certified on two machines", after.Certificates[n].Path)
		}
	}
	checkLogin(t, second, after.Node.Hostname+"."+after.Node.Cluster)
}

func TestRenewalIsDue(t *testing.T) {
	i := launch(t, lab.Template{Name: "due"})
	before := must[*state.State](t)(i.WaitEnrolled(t.Context()))
	for _, test := range []struct {
		name   string
		change func(*state.State)
		says   string
	}{
		{"a third is over", func(s *state.State) {
			s.EnrolledAt, s.RenewAfter = s.EnrolledAt.Add(-13*time.Hour), time.Now().Add(-time.Minute)
		}, "certificates are due for renewal"},
		// A disk is restored to its content of a month ago.
		{"a restored snapshot", func(s *state.State) {
			s.EnrolledAt, s.RenewAfter = s.EnrolledAt.Add(-720*time.Hour), s.RenewAfter.Add(-720*time.Hour)
			for n := range s.Certificates {
				s.Certificates[n].ValidBefore = s.Certificates[n].ValidBefore.Add(-720 * time.Hour)
			}
		}, "certificates are due for renewal"},
		{"another instance's state", func(s *state.State) { s.Instance.InstanceID = "i-0123456789abcdef0" }, "enrolled as instance i-0123456789abcdef0, but this is " + i.ID},
		{"an address that is another's now", func(s *state.State) { s.Node.Address = "10.83.0.250:22" }, "no longer belongs to this machine"},
	} {
		t.Run(test.name, func(t *testing.T) {
			edit(t, i, test.change)
			if out := hallmark(t, i, "renew"); !strings.Contains(out, test.says) {
				t.Errorf("hallmark renew says %q, want %q", out, test.says)
			}
			after := enrolledState(t, i)
			if after.Instance != before.Instance || after.Node.Address != before.Node.Address {
				t.Errorf("state %+v, want %+v", after, before)
			}
			checkLogin(t, i, after.Node.Hostname+"."+after.Node.Cluster)
		})
	}
}

// A changed tag brings its name with the next renewal, together with the certificate.
func TestRenamedByTag(t *testing.T) {
	i := launch(t, lab.Template{Name: "renamed", Tags: map[string]string{"Name": "before"}})
	must[*state.State](t)(i.WaitEnrolled(t.Context()))
	if err := shared.lab.EC2.Tag(t.Context(), i.ID, "Name", "after"); err != nil {
		t.Fatal(err)
	}
	hallmark(t, i, "renew")
	if got := enrolledState(t, i).Node.Hostname; got != "before-"+i.ID {
		t.Errorf("host name %q before the renewal", got)
	}
	edit(t, i, func(s *state.State) { s.RenewAfter = time.Now().Add(-time.Minute) })
	hallmark(t, i, "renew")
	s := enrolledState(t, i)
	if s.Node.Hostname != "after-"+i.ID {
		t.Errorf("host name %q after the renewal", s.Node.Hostname)
	}
	checkLogin(t, i, s.Node.Hostname+"."+s.Node.Cluster)
}

// A refused machine does not keep asking until something changes.
func TestRefusedMachineWaits(t *testing.T) {
	i := launch(t, lab.Template{Name: "patient", Claim: "i-0123456789abcdef1"})
	checkKeyPairLogin(t, i)
	checkExit(t, i, 4, string(protocol.CodeInstanceUnknown))
	calls := shared.lab.STS.Calls()
	out, err := i.Hallmark(t.Context(), "renew")
	if err == nil || !strings.Contains(err.Error(), "waiting until") || !strings.Contains(err.Error(), string(protocol.CodeInstanceUnknown)) {
		t.Errorf("hallmark renew: %q, %v, want it to wait", out, err)
	}
	if got := shared.lab.STS.Calls(); got != calls {
		t.Errorf("%d calls of STS, want none", got-calls)
	}
}

// Everything is down at once, then each service alone, and comes back: nothing is lost, and
// nobody has to do anything.
func TestOutages(t *testing.T) {
	i := launch(t, lab.Template{Name: "outage"})
	before := must[*state.State](t)(i.WaitEnrolled(t.Context()))
	name := before.Node.Hostname + "." + before.Node.Cluster
	const files = "cat /etc/ssh/*-cert.pub /etc/ssh/hallmark/*"
	outages := map[string]func(t *testing.T) (end func()){
		"signer": stopSigner,
		"metadata": func(*testing.T) func() {
			i.Metadata.SetTrouble(imds.Trouble{Disabled: true})
			return func() { i.Metadata.SetTrouble(imds.Trouble{}) }
		},
		"sts": func(*testing.T) func() { shared.lab.STS.SetDown(true); return func() { shared.lab.STS.SetDown(false) } },
	}
	sets := [][]string{{"signer"}, {"metadata"}, {"sts"}, {"signer", "metadata"}, {"signer", "sts"}, {"metadata", "sts"}, slices.Sorted(maps.Keys(outages))}
	for _, down := range sets {
		t.Run(strings.Join(down, "+"), func(t *testing.T) {
			kept := run(t, i, "sh", "-c", files)
			edit(t, i, func(s *state.State) { s.RenewAfter = time.Now().Add(-time.Hour) })
			var ends []func()
			for _, what := range down {
				ends = append(ends, outages[what](t))
			}
			if out, err := i.Hallmark(t.Context(), "renew", "--timeout", "1s"); err == nil {
				t.Errorf("hallmark renew succeeds: %s", out)
			}
			if got := run(t, i, "sh", "-c", files); got != kept {
				t.Error("the files changed")
			}
			checkLogin(t, i, name)
			for _, end := range ends {
				end()
			}
			// This stands for an hour of waiting.
			run(t, i, "rm", "-f", "/var/lib/hallmark/setback.json")
			hallmark(t, i, "renew")
			if s := enrolledState(t, i); !s.RenewAfter.After(time.Now()) {
				t.Errorf("renewal is due %v still", s.RenewAfter)
			}
			checkLogin(t, i, name)
		})
	}
}
