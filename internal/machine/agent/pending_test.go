package agent

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/loaded"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
)

// withoutHallmark runs sshd without hallmark's lines, so that a first enrollment has to reload
// it, and then writes them.
func (m *machine) withoutHallmark() {
	m.t.Helper()
	m.sshd.Stop()
	m.sshd.Configure("")
	m.sshd.Run()
	m.sshd.Configure(m.sshd.HallmarkLines())
}

// observed makes hallmark record what sshd has loaded, as it does at boot and in every run.
func (m *machine) observed() {
	m.t.Helper()
	conf, err := m.effective(m.t.Context())
	if err == nil {
		err = m.tracker().Observe(m.t.Context(), conf)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// staged is a change to sshd's configuration that somebody has not activated yet. It would
// lock everybody out.
const staged = "AllowUsers nobody\n"

// A reload for new certificates never activates somebody's pending change. Each row changes
// the machine between sshd's start and the enrollment.
func TestEnrollLeavesPendingChangesAlone(t *testing.T) {
	for _, test := range []struct {
		name   string
		known  bool // hallmark has recorded what sshd has loaded
		change func(t *testing.T, m *machine)
		waits  string // part of the reason, or empty
	}{
		{"edited but not reloaded", true, func(_ *testing.T, m *machine) { m.sshd.Configure(staged + m.sshd.HallmarkLines()) }, `"allowusers nobody" was added`},
		{"edited, and nothing is known", false, func(_ *testing.T, m *machine) { m.sshd.Configure(staged + m.sshd.HallmarkLines()) }, "sshd_config changed at"},
		{"edited and restarted", true, func(_ *testing.T, m *machine) {
			m.sshd.Stop()
			m.sshd.Configure("PermitTTY no\n")
			m.sshd.Run()
			m.sshd.Configure("PermitTTY no\n" + m.sshd.HallmarkLines())
		}, ""},
		{"edited and reloaded by somebody", true, func(t *testing.T, m *machine) {
			m.sshd.Update("50-site.conf", "PermitTTY no\n")
			m.reloadAsAdmin(t)
		}, ""},
		{"touched", true, func(t *testing.T, m *machine) {
			now := time.Now()
			if err := os.Chtimes(m.sshd.Config, now, now); err != nil {
				t.Fatal(err)
			}
		}, ""},
		{"a comment and a line that changes nothing", true, func(_ *testing.T, m *machine) {
			m.sshd.Configure(m.sshd.HallmarkLines() + "# by the administrator\nPermitRootLogin yes\n")
		}, ""},
		{"only hallmark's own file", false, func(*testing.T, *machine) {}, ""},
		{"hallmark's own block in the main file", true, func(t *testing.T, m *machine) { m.putBlock(t) }, ""},
		{"hallmark's own block, and nothing is known", false, func(t *testing.T, m *machine) { m.putBlock(t) }, "sshd_config changed at"},
		{"a Match block for others", true, func(_ *testing.T, m *machine) {
			m.sshd.Update("70-site.conf", "Match User nobody-here\n\tForceCommand /bin/false\n")
		}, "nobody-here"},
		{"a new file that an Include names", true, func(_ *testing.T, m *machine) { m.sshd.Update("60-new.conf", staged) }, "allowusers"},
		{"a removed file", true, func(t *testing.T, m *machine) {
			if err := os.Remove(filepath.Join(m.dir, "50-site.conf")); err != nil {
				t.Fatal(err)
			}
		}, `"permituserenvironment yes" became`},
		{"the clock was set back, then edited", true, func(t *testing.T, m *machine) {
			m.sshd.Configure(staged + m.sshd.HallmarkLines())
			past := time.Now().Add(-24 * time.Hour)
			if err := os.Chtimes(m.sshd.Config, past, past); err != nil {
				t.Fatal(err)
			}
		}, "allowusers"},
		{"a modification time in the future", false, func(t *testing.T, m *machine) {
			future := time.Now().Add(24 * time.Hour)
			if err := os.Chtimes(filepath.Join(m.dir, "50-site.conf"), future, future); err != nil {
				t.Fatal(err)
			}
			m.sshd.Stop()
			m.sshd.Configure("")
			m.sshd.Run()
			m.sshd.Configure(m.sshd.HallmarkLines())
		}, ""},
		{"a host key", true, func(t *testing.T, m *machine) {
			if err := os.Remove(m.sshd.KeyPath("ed25519")); err != nil {
				t.Fatal(err)
			}
			machinetest.WriteHostKey(t, "ed25519", m.sshd.KeyPath("ed25519"))
		}, "ed25519_key is not the one that sshd has loaded"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.settle = time.Minute // a safety net: the test waits for it only if it fails
			// As on most systems: the main file includes others.
			m.sshd.Sites = true
			m.sshd.Update("50-site.conf", "PermitUserEnvironment yes\n")
			m.withoutHallmark()
			if test.known {
				m.observed()
			}
			test.change(t, m)
			o, err := m.Enroll(t.Context())
			if test.waits == "" {
				if err != nil || !o.State.Presented || o.State.Waiting != nil || m.sshd.Reloads > 1 {
					t.Fatalf("%+v %v after %d reloads", o, err, m.sshd.Reloads)
				}
			} else {
				// These are the first certificates: nobody can log in through Teleport yet.
				machinetest.WantError(t, err, fault.Misconfigured, test.waits, "--reload")
				m.holds(t, test.waits)
			}
			m.sshd.AcceptsLogins()
		})
	}
}

// putBlock puts hallmark's lines into the main file, as hallmark install does if that file
// includes no drop-ins.
func (m *machine) putBlock(t *testing.T) {
	t.Helper()
	m.sshd.Configure("")
	config, err := os.ReadFile(m.sshd.Config)
	if err == nil {
		config, err = sshdconf.WithBlock(config, []byte(m.sshd.HallmarkLines()))
	}
	if err != nil {
		t.Fatal(err)
	}
	m.sshd.Write("sshd_config", string(config))
}

// holds checks that the certificates wait.
func (m *machine) holds(t *testing.T, reason string) {
	t.Helper()
	s := m.state()
	if s.Presented || s.Waiting == nil || !strings.Contains(s.Waiting.Reason, reason) || m.sshd.Reloads != 0 {
		t.Errorf("state %+v after %d reloads, want one that waits because of %q", s, m.sshd.Reloads, reason)
	}
}

// reloadAsAdmin reloads sshd, like somebody who has edited its configuration, and waits until
// the reload is done.
func (m *machine) reloadAsAdmin(t *testing.T) {
	t.Helper()
	conf, err := m.effective(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	before, err := m.sshd.LastLoad(t.Context(), conf.PIDFile)
	if err != nil || before.Stamp == "" {
		t.Fatalf("%+v %v", before, err)
	}
	if err := m.sshd.Server.Reload(t.Context(), conf.PIDFile); err != nil {
		t.Fatal(err)
	}
	m.waitForLoad(conf.PIDFile, before)
}

// Certificates that wait are not lost: they take effect when somebody reloads sshd or reverts
// the change, or with --reload.
func TestWaitingCertificatesAreTakenUp(t *testing.T) {
	for _, test := range []struct {
		name    string
		act     func(t *testing.T, m *machine)
		reloads int
	}{
		{"reloaded by somebody", func(t *testing.T, m *machine) { m.reloadAsAdmin(t) }, 0},
		{"taken back", func(_ *testing.T, m *machine) { m.sshd.Configure(m.sshd.HallmarkLines()) }, 1},
		{"--reload", func(_ *testing.T, m *machine) { m.ActivatePending = true }, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.settle = time.Minute // a safety net
			m.withoutHallmark()
			m.observed()
			m.sshd.Configure("PermitTTY no\n" + m.sshd.HallmarkLines())
			_, err := m.Enroll(t.Context())
			machinetest.WantError(t, err, fault.Misconfigured, "permittty", "--reload")
			m.holds(t, "permittty")
			if _, err := m.Enroll(t.Context()); fault.KindOf(err) != fault.Misconfigured || m.sshd.Reloads != 0 || len(m.requests) != 1 {
				t.Errorf("the next run: %v, %d reloads, %d requests", err, m.sshd.Reloads, len(m.requests))
			}
			test.act(t, m)
			o, err := m.Enroll(t.Context())
			if err != nil || o.State.Waiting != nil || !o.State.Presented || m.sshd.Reloads > test.reloads || len(m.requests) != 1 {
				t.Fatalf("%+v %v, %d reloads, %d requests", o, err, m.sshd.Reloads, len(m.requests))
			}
			if err := m.sshd.TryLogin(machinetest.UserCertificate(t, m.openSSHCA), m.hostCertificateOnly()); err != nil {
				t.Errorf("login by certificate: %v", err)
			}
		})
	}
}

// A renewal that has to wait leaves the old certificate in use. It becomes an error only after
// half of that certificate's remaining life. OpenSSH up to 9.7 reads certificates for each
// connection, so only a line that it has not loaded makes it need a reload.
func TestRenewalWaits(t *testing.T) {
	m := enrolled(t)
	m.noPenalties()
	if _, err := m.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	old, reloads := m.state(), m.sshd.Reloads // OpenSSH 10 needed a reload for the first certificates
	m.sshd.Stop()
	m.sshd.Configure("")
	m.sshd.Run()
	m.sshd.Configure(m.sshd.HallmarkLines())
	m.observed()
	m.sshd.Configure(staged + m.sshd.HallmarkLines())
	now := old.RenewAfter.Add(time.Minute)
	m.now, m.clock = func() time.Time { return now }, func() time.Time { return now }
	half := now.Add(old.End().Sub(now) / 2)

	o, err := m.Renew(t.Context())
	if err != nil || o.State.Waiting == nil || !o.State.Waiting.AccessEnds.Equal(old.End()) || o.Reloaded {
		t.Fatalf("%+v %v, want it to wait until %s", o, err, old.End())
	}
	for _, step := range []struct {
		at   time.Time
		text string
	}{
		{half.Add(-time.Minute), ""},
		{half.Add(time.Minute), "access through Teleport ends " + old.End().UTC().Format(time.RFC3339)},
		{old.End().Add(time.Minute), "access through Teleport ended " + old.End().UTC().Format(time.RFC3339)},
	} {
		now = step.at
		_, err := m.Renew(t.Context())
		if (err == nil) != (step.text == "") || err != nil && !strings.Contains(err.Error(), step.text) {
			t.Errorf("at %s: %v, want %q", step.at, err, step.text)
		}
	}
	// When the waiting certificates were due themselves, the run asked for others, and it
	// still waits.
	if w := m.state().Waiting; w == nil || !w.AccessEnds.Equal(old.End()) {
		t.Errorf("state %+v", m.state())
	}
	if m.sshd.Reloads != reloads {
		t.Errorf("%d reloads", m.sshd.Reloads-reloads)
	}
	m.sshd.AcceptsLogins()
}

// The same is true if this machine cannot connect to sshd.
func TestPendingChangeWhereNobodyCanLook(t *testing.T) {
	m := newMachine(t)
	m.withoutHallmark()
	m.observed()
	m.Enroller.server = listensAt{m.sshd, closesConnections(t, m)}
	m.sshd.Configure(staged + m.sshd.HallmarkLines())
	_, err := m.Enroll(t.Context())
	machinetest.WantError(t, err, fault.Misconfigured, "allowusers", "--reload")
	m.holds(t, "allowusers")
	m.sshd.AcceptsLogins()
}

// A snapshot contains no private key.
func TestSnapshotHoldsNoSecret(t *testing.T) {
	m := newMachine(t)
	m.observed()
	data, err := os.ReadFile(loaded.Path(m.runDir))
	if err != nil {
		t.Fatal(err)
	}
	s := loaded.LoadSnapshot(m.runDir)
	if s == nil || len(s.Keys) != 3 || len(s.Logins) == 0 {
		t.Fatalf("snapshot %s", data)
	}
	for _, kind := range []string{"rsa", "ecdsa", "ed25519"} {
		key, err := hostkey.Load(m.sshd.KeyPath(kind))
		if err != nil || s.Keys[m.sshd.KeyPath(kind)] != ssh.FingerprintSHA256(key.PublicKey()) {
			t.Errorf("%s: %q %v", kind, s.Keys[m.sshd.KeyPath(kind)], err)
		}
	}
	if !json.Valid(data) || strings.Contains(string(data), "PRIVATE") {
		t.Errorf("%s", data)
	}
}
