package agent

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/handshake"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/loaded"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// Nothing reloads sshd for what a reload cannot change. Each row is a reason why sshd does not
// present a certificate. The rows about single host keys, which are skipped, are in
// TestEnrollWithOneBadHostKey and the tests after it.
func TestNoReloadForWhatItCannotChange(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(t *testing.T, m *machine)
		reloads int // in three runs of the timer, half a day apart
		message string
	}{
		{"HostKeyAlgorithms without certificates", func(_ *testing.T, m *machine) {
			m.restartWith("HostKeyAlgorithms ssh-ed25519,rsa-sha2-512\n")
		}, 0, "rule out its certificates"},
		{"no HostCertificate line", func(_ *testing.T, m *machine) {
			m.sshd.Stop()
			m.sshd.Configure("TrustedUserCAKeys " + m.sshd.CAFile + "\n")
			m.sshd.Run()
		}, 0, "no line HostCertificate"},
		{"no hallmark lines at all", func(_ *testing.T, m *machine) {
			m.sshd.Stop()
			m.sshd.Configure("")
			m.sshd.Run()
		}, 0, "no line TrustedUserCAKeys"},
		{"another CA's certificates for every key", func(_ *testing.T, m *machine) {
			for _, kind := range []string{"rsa", "ecdsa", "ed25519"} {
				m.certifyByOther(kind, m.sshd.KeyPath(kind)+hostkey.CertificateSuffix)
			}
			m.restartWith("")
		}, 0, "another CA's"},
		{"no host key that sshd loads", func(t *testing.T, m *machine) {
			for _, kind := range []string{"rsa", "ecdsa", "ed25519"} {
				if err := os.Chmod(m.sshd.KeyPath(kind), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}, 0, ""},
		{"a configuration that sshd does not accept", func(_ *testing.T, m *machine) {
			m.sshd.Configure("Nonsense yes\n" + m.sshd.HallmarkLines())
		}, 0, "Nonsense"},
		{"somebody's pending change", func(_ *testing.T, m *machine) {
			m.withoutHallmark()
			m.observed()
			m.sshd.Configure("PermitTTY no\n" + m.sshd.HallmarkLines())
		}, 0, "permittty"},
		{"sshd does not run", func(_ *testing.T, m *machine) { m.sshd.Stop() }, 0, ""},
		{"an sshd that never presents them, whatever it is told", func(_ *testing.T, m *machine) {
			m.withoutHallmark()
			m.settle = 3 * time.Second // long enough for one look, however busy the machine
			m.sshd.OnReload = func(context.Context) error { return nil }
		}, 2, "neither sshd nor its configuration has changed since"}, // one for the certificates, one for the old files
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			test.prepare(t, m)
			before := m.files()
			var err error
			for n := range 3 {
				now := time.Now().Add(time.Duration(n) * 12 * time.Hour)
				m.now, m.clock = func() time.Time { return now }, func() time.Time { return now }
				_, err = m.Renew(t.Context())
			}
			if m.sshd.Reloads != test.reloads || m.sshd.Starts != 0 {
				t.Errorf("%d reloads and %d starts, want %d", m.sshd.Reloads, m.sshd.Starts, test.reloads)
			}
			if test.message != "" && (err == nil || !strings.Contains(err.Error(), test.message)) {
				t.Errorf("error %v, want %q", err, test.message)
			}
			if test.reloads > 0 && m.files() != before {
				t.Error("files were left behind")
			}
		})
	}
}

// restartWith starts sshd with these lines before hallmark's.
func (m *machine) restartWith(lines string) {
	m.t.Helper()
	m.sshd.Stop()
	m.sshd.Configure(lines + m.sshd.HallmarkLines())
	m.sshd.Run()
}

// A reload that did not help is tried again once sshd or its configuration has changed, and
// when somebody runs enroll.
func TestFutileReloadIsTriedAgain(t *testing.T) {
	for _, test := range []struct {
		name string
		act  func(t *testing.T, m *machine) error
	}{
		{"sshd was restarted", func(t *testing.T, m *machine) error {
			m.sshd.Stop()
			m.sshd.Configure("")
			m.sshd.Run()
			m.sshd.Configure(m.sshd.HallmarkLines())
			_, err := m.Renew(t.Context())
			return err
		}},
		{"its configuration was changed", func(t *testing.T, m *machine) error {
			m.sshd.Configure(m.sshd.HallmarkLines() + "PermitRootLogin yes\n")
			m.ActivatePending = true
			_, err := m.Renew(t.Context())
			return err
		}},
		{"by hand", func(t *testing.T, m *machine) error {
			_, err := m.Enroll(t.Context())
			return err
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.withoutHallmark()
			m.settle = 3 * time.Second // long enough for one look, however busy the machine
			m.sshd.OnReload = func(context.Context) error { return nil }
			if _, err := m.Renew(t.Context()); err == nil {
				t.Fatal("no error")
			}
			m.sshd.OnReload, m.settle = nil, time.Minute
			later := time.Now().Add(12 * time.Hour)
			m.now, m.clock = func() time.Time { return later }, func() time.Time { return later }
			if err := test.act(t, m); err != nil {
				t.Errorf("it is not tried again: %v", err)
			}
			if !m.state().Presented {
				t.Error("sshd does not present the certificates")
			}
		})
	}
}

// On a slow machine, a reload and its checks take longer than sshd needs to present the
// certificates.
func TestReloadHasTimeOfItsOwn(t *testing.T) {
	m := newMachine(t)
	m.withoutHallmark()
	m.sshd.OnReload = func(ctx context.Context) error {
		if deadline, limited := ctx.Deadline(); limited && time.Until(deadline) <= m.settle {
			t.Errorf("the reload has to end within %v", m.settle)
		}
		m.sshd.OnReload = nil
		return m.sshd.Process.Process.Signal(syscall.SIGHUP)
	}
	if _, err := m.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m.sshd.OnReload != nil {
		t.Error("sshd was not reloaded")
	}
}

// This is what an administrator has written for the next maintenance: another address to
// listen at, and nobody to admit.
func TestEnrollLeavesAPendingListenerAlone(t *testing.T) {
	m := newMachine(t)
	m.sshd.Stop()
	port := port(m.sshd.Address)
	m.listenOn("ListenAddress 0.0.0.0:"+port, "")
	m.sshd.Run()
	m.listenOn("ListenAddress 0.0.0.0:"+port, m.sshd.HallmarkLines())
	m.observed()
	m.listenOn("ListenAddress 127.0.0.1:"+port+"\nListenAddress 203.0.113.7:"+port, staged+m.sshd.HallmarkLines())
	_, err := m.Enroll(t.Context())
	machinetest.WantError(t, err, fault.Misconfigured, "listenaddress", "--reload")
	m.holds(t, "listenaddress")
	m.sshd.AcceptsLogins()
}

// If sshd was hardened after the machine enrolled, and one host key no longer counts, the
// others are renewed.
func TestRenewsAfterAHostKeyWasRuledOut(t *testing.T) {
	m := newMachine(t)
	m.sshd.SkipUnknown(t, "RequiredRSASize 3072\n")
	m.restartWith("")
	if o, err := m.Enroll(t.Context()); err != nil || len(o.State.Certificates) != 3 {
		t.Fatalf("%+v %v", o, err)
	}
	m.restartWith("RequiredRSASize 3072\n")
	now := time.Now().Add(3 * 24 * time.Hour)
	m.now, m.clock = func() time.Time { return now }, func() time.Time { return now }
	o, err := m.Renew(t.Context())
	if err != nil || len(o.State.Certificates) != 2 || !o.State.Presented {
		t.Fatalf("%+v %v, want two certificates", o, err)
	}
	reloads := m.sshd.Reloads
	if o, err = m.Renew(t.Context()); err != nil || o.Reason != "" || m.sshd.Reloads != reloads {
		t.Errorf("the next run: %+v %v, %d reloads more", o, err, m.sshd.Reloads-reloads)
	}
	m.sshd.AcceptsLogins()
}

// Anything may be in place of hallmark's files: sshd keeps working, and the message names the
// file and says what to do. What hallmark can repair, it repairs.
func TestUnexpectedFilesInHallmarksPlaces(t *testing.T) {
	m := newMachine(t)
	if _, err := m.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, path string
		content    string // "" for a folder
		heals      bool
	}{
		{"the state is a folder", state.Path(m.stateDir), "", false},
		{"the state is nearly empty", state.Path(m.stateDir), `{"version":1,"certificates":null,"opensshCAs":[],"hostCAs":[]}`, true},
		{"the state is junk", state.Path(m.stateDir), "\x00\xff{", true},
		{"a failure that lasts until 2999", failurePath(m.stateDir), `{"failures":1,"kind":9,"notBefore":"2999-01-01T00:00:00Z"}`, true},
		{"the failures are a folder", failurePath(m.stateDir), "", true},
		{"the CA file is a folder", m.caFile, "", false},
		{"what sshd has loaded is a folder", loaded.Path(m.runDir), "", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := os.RemoveAll(test.path); err != nil {
				t.Fatal(err)
			}
			err := os.Mkdir(test.path, 0o755)
			if test.content != "" {
				err = errors.Join(os.Remove(test.path), os.WriteFile(test.path, []byte(test.content), 0o644))
			}
			if err != nil {
				t.Fatal(err)
			}
			_, err = m.Renew(t.Context())
			if test.heals && err != nil {
				t.Errorf("it does not heal: %v", err)
			}
			if !test.heals {
				machinetest.WantError(t, err, fault.Failed, test.path, "a folder is in this file's place")
				if err := os.RemoveAll(test.path); err != nil {
					t.Fatal(err)
				}
				if _, err := m.Renew(t.Context()); err != nil {
					t.Errorf("after it was removed: %v", err)
				}
			}
			m.sshd.AcceptsLogins()
		})
	}
}

// otherConfigVariable tells the test's second process that it is the second.
const otherConfigVariable = "HALLMARK_TEST_OTHER_CONFIG"

// If the machine's own sshd runs with a configuration other than /etc/ssh/sshd_config, that
// configuration counts.
func TestEnrollWithAnotherConfiguration(t *testing.T) {
	if os.Getenv(otherConfigVariable) == "" {
		withOwnEtcSSH(t)
		return
	}
	for _, test := range []struct {
		name        string
		usual, runs bool // hallmark's lines are in the usual file, and in the one that sshd uses
	}{
		{"which has hallmark's lines", false, true},
		{"which lacks them", true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newMachine(t)
			m.sshd.Stop()
			lines := map[bool]string{true: m.sshd.HallmarkLines()}
			m.sshd.Configure(lines[test.usual])
			usual := machinetest.ReadFile(t, m.sshd.Config)
			m.sshd.Write("other.conf", strings.Replace(string(usual), "Include "+m.sshd.DropIn()+"\n", lines[test.runs], 1))
			if test.usual {
				usual = append([]byte(lines[true]), usual...)
			}
			if err := os.WriteFile(sshdconf.MainConfig, usual, 0o644); err != nil {
				t.Fatal(err)
			}
			m.sshd.Config = ""
			m.startWith(m.sshd.Address, "-f", filepath.Join(m.dir, "other.conf"))
			o, err := m.Enroll(t.Context())
			if test.runs {
				if err != nil || !o.State.Presented || o.State.NotVerified != "" {
					t.Errorf("%+v %v", o, err)
				}
				key, err := handshake.HostKey(t.Context(), m.sshd.Address, []string{ssh.CertAlgoED25519v01})
				if _, ok := key.(*ssh.Certificate); err != nil || !ok {
					t.Errorf("sshd presents %T: %v", key, err)
				}
			} else {
				machinetest.WantError(t, err, fault.Misconfigured, "other.conf", "hallmark install")
			}
			if m.sshd.Reloads > 1 || !test.runs && m.sshd.Reloads > 0 {
				t.Errorf("%d reloads", m.sshd.Reloads)
			}
			m.sshd.AcceptsLogins()
		})
	}
}

// withOwnEtcSSH runs the test again in a separate mount namespace, with an empty /etc/ssh.
func withOwnEtcSSH(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can have an /etc/ssh of its own")
	}
	machinetest.FindSSHD(t)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const script = `mount -t tmpfs tmpfs /etc/ssh; "$@" || code=$?; umount /etc/ssh; exit ${code:-0}`
	propagation := "private"
	if exec.Command("unshare", "--mount", "true").Run() != nil {
		propagation = "unchanged" // in a chroot, which is not a mount point
	}
	child := exec.Command("unshare", "--mount", "--propagation", propagation, "sh", "-euc", script, "sh", program, "-test.run", "^"+t.Name()+"$", "-test.v")
	child.Env = append(os.Environ(), otherConfigVariable+"=1")
	if output, err := child.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, output)
	}
}
