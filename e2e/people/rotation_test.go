//go:build teleport && linux

package people

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/e2e/machine"
	"github.com/hallmark-ssh/hallmark/e2e/teleportd"
	"github.com/hallmark-ssh/hallmark/internal/caexport"
)

const statePath = "var/lib/hallmark/state.json"

// pass lets time pass for a machine and the signer: the signer forgets what it remembers from
// a minute ago.
func pass(t *testing.T, m enrolled, d time.Duration) {
	t.Helper()
	shared.lab.Signer.Restart()
	age(t, m, d)
}

// age lets time pass for a machine. Its clock is the host's, so this changes its state
// instead: it enrolled that much earlier, and is due that much sooner.
func age(t *testing.T, m enrolled, d time.Duration) {
	t.Helper()
	data, err := os.ReadFile(m.Path(statePath))
	if err != nil {
		t.Fatal(err)
	}
	var state map[string]any
	if err := json.Unmarshal(data, &state); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"enrolledAt", "renewAfter"} {
		at, err := time.Parse(time.RFC3339, state[key].(string))
		if err != nil {
			t.Fatal(err)
		}
		state[key] = at.Add(-d)
	}
	edited, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.Path(statePath), edited, 0o644); err != nil {
		t.Fatal(err)
	}
}

// anHourPasses lets an hour pass, and does what the machine's timer does.
func anHourPasses(t *testing.T, m enrolled) {
	t.Helper()
	pass(t, m, time.Hour)
	if _, err := m.Hallmark(t.Context(), "renew"); err != nil {
		t.Fatal(err)
	}
}

// trusted are the fingerprints of the keys whose user certificates sshd accepts.
func trusted(t *testing.T, m enrolled) []string {
	t.Helper()
	out, err := m.Run(t.Context(), "cat", "/etc/ssh/hallmark/openssh_ca.pub")
	if err != nil {
		t.Fatal(err)
	}
	return fingerprints(t, out)
}

// signers are the fingerprints of the keys that signed the machine's certificates.
func signers(t *testing.T, m enrolled) []string {
	t.Helper()
	out, err := m.Run(t.Context(), "sh", "-c", "cat /etc/ssh/ssh_host_*-cert.pub")
	if err != nil {
		t.Fatal(err)
	}
	return fingerprints(t, out)
}

// fingerprints are those of keys, or of certificates' signers, each once.
func fingerprints(t *testing.T, lines string) []string {
	t.Helper()
	var list []string
	for line := range strings.Lines(lines) {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			continue // a comment
		}
		if certificate, ok := key.(*ssh.Certificate); ok {
			key = certificate.SignatureKey
		}
		if f := ssh.FingerprintSHA256(key); !strings.Contains(strings.Join(list, " "), f) {
			list = append(list, f)
		}
	}
	return list
}

// current are the fingerprints of the cluster's keys, first the one that it signs with. It
// asks again while the cluster does not answer: some versions restart in a rotation.
func current(t *testing.T, kind caexport.Kind) []string {
	t.Helper()
	var keys []ssh.PublicKey
	poll(t, func() (err error) {
		keys, err = shared.lab.Teleport.CAs(t.Context(), kind)
		return err
	})
	var list []string
	for _, key := range keys {
		list = append(list, ssh.FingerprintSHA256(key))
	}
	return list
}

// logsIn logs a person in to the machine. During a rotation of the Host CA that needs a new
// login to the cluster, and the services follow each phase within seconds. The proxy limits
// logins by source address, so they are rare.
func logsIn(t *testing.T, p *teleportd.Person, m enrolled, when string) {
	t.Helper()
	var out string
	var asked time.Time
	err := machine.Await(t.Context(), func() (err error) {
		if out, err = p.Tsh(t.Context(), "ssh", lab.User+"@"+m.state.Node.Hostname, reach); err == nil {
			return nil
		}
		if time.Since(asked) < 5*time.Second {
			return err
		}
		asked = time.Now()
		// tsh adds nothing to a login that is still valid, so it would not add a new CA.
		if _, err := p.Tsh(t.Context(), "logout"); err != nil {
			return err
		}
		return errors.Join(err, p.LogIn(t.Context()))
	})
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	reached(t, m, out, nil)
}

// rotate moves a CA through phases. Nobody touches the machine: its timer runs in each phase,
// and a person logs in before and after the run.
func rotate(t *testing.T, p *teleportd.Person, m enrolled, kind caexport.Kind, phases ...string) {
	t.Helper()
	for _, phase := range phases {
		when := fmt.Sprintf("%s CA, %s of %v", kind, phase, phases)
		before := current(t, kind)
		if err := shared.lab.Teleport.Rotate(t.Context(), kind, phase); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		// The cluster's reports lag behind what it does. An operator waits for hours.
		poll(t, func() error {
			if now := current(t, kind); phase != "update_servers" && slices.Equal(now, before) {
				return fmt.Errorf("%s: the keys are %v still", when, now)
			}
			return nil
		})
		logsIn(t, p, m, when+", before the machine knows")
		poll(t, func() error { // auth's reads lag, too
			anHourPasses(t, m)
			return follows(t, m, kind, when)
		})
		logsIn(t, p, m, when)
		if kind == caexport.Host {
			issueAgain(t, m)
			if err := follows(t, m, kind, when+", certificates of this phase"); err != nil {
				t.Error(err)
			}
			logsIn(t, p, m, when+", by a certificate of this phase")
		}
	}
}

// issueAgain makes the machine get new certificates although none is due. The machine verifies
// them, and that sshd presents them.
func issueAgain(t *testing.T, m enrolled) {
	t.Helper()
	pass(t, m, time.Hour)
	if _, err := m.Run(t.Context(), "sh", "-c", "rm /etc/ssh/*-cert.pub"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Hallmark(t.Context(), "enroll"); err != nil {
		t.Fatal(err)
	}
}

// A rotation that an operator begins and rolls back leaves everything as it was.
func TestRotationsThatAreRolledBack(t *testing.T) {
	alice := newPerson(t, shared.lab.Teleport, "alice-rolls-back", everywhere)
	for _, kind := range []caexport.Kind{caexport.OpenSSH, caexport.Host} {
		before := current(t, kind)
		rotate(t, alice, shared.dev, kind, "init", "update_clients", "rollback", "standby")
		poll(t, func() error {
			if after := current(t, kind); !slices.Equal(after, before) {
				return fmt.Errorf("%s CAs %v, were %v", kind, after, before)
			}
			return nil
		})
	}
}

// This is a month of a machine's life: renewals, a rotation of each CA, a reboot and a signer
// that is down for a day. Somebody logs in each day.
func TestAMonth(t *testing.T) {
	alice := newPerson(t, shared.lab.Teleport, "alice-for-a-month", everywhere)
	m := shared.dev
	renewals, end := 0, certificateEnd(t, m)
	for day := 1; day <= 30; day++ {
		when := fmt.Sprintf("day %d", day)
		switch day {
		case 5:
			old := current(t, caexport.OpenSSH)
			rotate(t, alice, m, caexport.OpenSSH, "init", "update_clients", "update_servers", "standby")
			poll(t, func() error { // the cluster's own list lags
				anHourPasses(t, m)
				if now := trusted(t, m); slices.Contains(now, old[0]) || len(now) != 1 {
					return fmt.Errorf("after the rotation sshd trusts %v; the retired key is %s", now, old[0])
				}
				return nil
			})
		case 12:
			if err := m.PowerOff(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := m.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			poll(t, func() error { // before that, its systemd answers nothing
				_, err := m.Run(t.Context(), "systemctl", "is-active", "multi-user.target")
				return err
			})
		case 17:
			if err := shared.lab.StopURL(); err != nil {
				t.Fatal(err)
			}
			pass(t, m, 24*time.Hour)
			if out, err := m.Hallmark(t.Context(), "enroll", "--timeout", "2s"); err == nil {
				t.Errorf("%s: hallmark enroll succeeds without a signer: %s", when, out)
			}
			logsIn(t, alice, m, when+", without a signer")
			if err := shared.lab.StartURL(context.WithoutCancel(t.Context())); err != nil {
				t.Fatal(err)
			}
		case 22:
			old := current(t, caexport.Host)
			rotate(t, alice, m, caexport.Host, "init", "update_clients", "update_servers", "standby")
			poll(t, func() error {
				anHourPasses(t, m)
				if now := signers(t, m); slices.Contains(now, old[0]) {
					return fmt.Errorf("after the rotation the certificates are signed by %v; the retired key is %s", now, old[0])
				}
				return nil
			})
		}
		pass(t, m, 24*time.Hour)
		if _, err := m.Hallmark(t.Context(), "enroll"); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if e := certificateEnd(t, m); e.After(end) {
			renewals, end = renewals+1, e
		}
		logsIn(t, alice, m, when)
	}
	// That is a third of seven days, plus or minus a tenth, and the rotation of the Host CA.
	if renewals < 9 || renewals > 18 {
		t.Errorf("%d renewals in a month", renewals)
	}
	t.Logf("%d renewals in a month", renewals)

	// This machine slept through all of it.
	anHourPasses(t, shared.prod)
	logsIn(t, alice, shared.prod, "a machine that slept for a month")
}

// certificateEnd is when the first of the machine's certificates expires.
func certificateEnd(t *testing.T, m enrolled) time.Time {
	t.Helper()
	s, err := m.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s.End()
}

// follows checks that the machine trusts exactly what the cluster has now, and that its
// certificates are signed by the key that the cluster signs with.
func follows(t *testing.T, m enrolled, kind caexport.Kind, when string) error {
	t.Helper()
	want := current(t, kind)
	if kind == caexport.OpenSSH {
		got := trusted(t, m)
		if fmt.Sprint(slices.Sorted(slices.Values(got))) != fmt.Sprint(slices.Sorted(slices.Values(want))) {
			return fmt.Errorf("%s: sshd trusts %v, the cluster has %v", when, got, want)
		}
		return nil
	}
	if got := signers(t, m); len(got) != 1 || got[0] != want[0] {
		return fmt.Errorf("%s: the certificates are signed by %v, the cluster signs with %s", when, got, want[0])
	}
	return nil
}
