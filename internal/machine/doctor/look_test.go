package doctor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/backoff"
	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// enrolled is a machine with a real sshd that presents certificates.
type enrolled struct {
	*Machine
	t    *testing.T
	sshd *machinetest.SSHD
}

func newEnrolled(t *testing.T) *enrolled {
	t.Helper()
	dir := t.TempDir()
	people, hosts := sshkeytest.NewSigner(t), sshkeytest.NewSigner(t)
	m := &enrolled{t: t, sshd: machinetest.NewSSHD(t, machinetest.FindSSHD(t), dir, people.PublicKey())}
	units := map[string]Unit{}
	for _, name := range []string{ServiceUnit, BootTimer, RenewTimer} {
		units[name] = Unit{Name: name, Loaded: true, Active: true, Enabled: "enabled"}
	}
	m.Machine = &Machine{
		ConfigFile: filepath.Join(dir, "config.yaml"), StateDir: filepath.Join(dir, "state"), CAFile: m.sshd.CAFile,
		Server: &m.sshd.Server, Root: true, Now: time.Now,
		units: func(context.Context) (map[string]Unit, error) { return units, nil },
	}
	m.sshd.Write("config.yaml", "signer_url: https://signer.example.com/\naudience: hallmark.example.com\n")
	c := config.Config{SignerURL: "https://signer.example.com/", Audience: "hallmark.example.com"}
	s := &state.State{
		Version: state.Version, Instance: imds.Instance{InstanceID: "i-0"}, Config: c.Digest(), Presented: true,
		OpenSSHCAs: sshkey.Lines([]ssh.PublicKey{people.PublicKey()}), HostCAs: sshkey.Lines([]ssh.PublicKey{hosts.PublicKey()}),
		Node: protocol.Node{Address: m.sshd.Address.String()}, EnrolledAt: time.Now().Add(-time.Hour), RenewAfter: time.Now().Add(time.Hour),
	}
	id := s.Instance.Ref().NodeID()
	principals := []string{machinetest.HostName, machinetest.HostName + ".example.com", id, id + ".example.com"}
	for _, kind := range []string{"rsa", "ecdsa", "ed25519"} {
		private, err := hostkey.Load(m.sshd.KeyPath(kind))
		if err != nil {
			t.Fatal(err)
		}
		cert := &ssh.Certificate{
			Key: private.PublicKey(), CertType: ssh.HostCert, Serial: 1, ValidPrincipals: principals,
			ValidAfter: uint64(time.Now().Add(-time.Hour).Unix()), ValidBefore: uint64(time.Now().Add(24 * time.Hour).Unix()),
		}
		if err := cert.SignCert(rand.Reader, hosts); err != nil {
			t.Fatal(err)
		}
		key := hostkey.Key{Path: m.sshd.KeyPath(kind), Public: private.PublicKey()}
		m.sshd.Write(filepath.Base(key.CertificatePath()), string(ssh.MarshalAuthorizedKey(cert)))
		s.Certificates = append(s.Certificates, hostkey.StateOf(key, cert))
	}
	if err := os.Mkdir(m.StateDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := state.Save(m.StateDir, s); err != nil {
		t.Fatal(err)
	}
	m.sshd.Stop()
	m.sshd.Run()
	return m
}

// findings looks at the machine, and returns its local findings.
func (m *enrolled) findings() []Finding {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	return Local(m.Look(ctx))
}

// want fails the test unless the first finding is the given one.
func (m *enrolled) want(check string, level Level, text string) {
	m.t.Helper()
	findings := m.findings()
	if f := findings[0]; f.Check != check || f.Level != level || !strings.Contains(f.Text, text) {
		m.t.Errorf("first finding %+v, want %s (%s): %s", f, check, level, text)
	}
}

// The advice opens the file at the line that a real sshd refuses.
func TestRefusedLine(t *testing.T) {
	m := newEnrolled(t)
	config := m.Server.Config
	line := strings.Count(string(machinetest.ReadFile(t, config)), "\n") + 1
	machinetest.AppendTo(t, config, "NoSuch yes\n")
	first := m.findings()[0]
	want := fmt.Sprintf("%s:%d", config, line)
	if len(first.Places) != 1 || first.Places[0] != want {
		t.Errorf("places %q, want %q", first.Places, want)
	}
	if want := fmt.Sprintf("${EDITOR:-vi} +%d %s; sshd -t && ", line, config); !strings.HasPrefix(first.Command, want) {
		t.Errorf("command %q, want %q", first.Command, want)
	}
}

// A real sshd passes every check, and each fault of its files shows.
func TestLook(t *testing.T) {
	for _, test := range []struct {
		name        string
		change      func(*enrolled)
		check       string
		level       Level
		text        string
		restartSSHD bool
	}{
		{"nothing", func(*enrolled) {}, "", OK, "", false},
		{"a certificate removed", func(m *enrolled) { m.remove("ssh_host_rsa_key-cert.pub") }, "certificates", Failure, "is missing", false},
		{"a certificate damaged", func(m *enrolled) { m.sshd.Write("ssh_host_rsa_key-cert.pub", "x") }, "certificates", Failure, "damaged", true},
		{"another key's certificate", func(m *enrolled) {
			m.sshd.Write("ssh_host_ed25519_key-cert.pub", string(machinetest.ReadFile(m.t, m.sshd.KeyPath("rsa")+"-cert.pub")))
		}, "certificates", Failure, "another key", true},
		{"the CAs removed", func(m *enrolled) { m.remove("hallmark/openssh_ca.pub") }, "trusted CAs", Failure, "is missing", false},
		{"another CA added", func(m *enrolled) {
			other := cafile.Render([]ssh.PublicKey{sshkeytest.NewSigner(m.t).PublicKey()})
			machinetest.AppendTo(m.t, m.CAFile, string(other))
		}, "trusted CAs", Failure, "not the file", false},
		{"the state damaged", func(m *enrolled) { m.sshd.Write("state/state.json", "{") }, "enrollment", Failure, "damaged", false},
		{"the state removed", func(m *enrolled) { m.remove("state/state.json") }, "enrollment", Failure, "not enrolled", false},
		{"a folder in place of the state", func(m *enrolled) { m.folder("state/state.json") }, "files", Failure, "state.json", false},
		{"a folder in place of a certificate", func(m *enrolled) { m.folder("ssh_host_rsa_key-cert.pub") }, "files", Failure, "rsa_key-cert.pub", false},
		{"a broken configuration of sshd", func(m *enrolled) { machinetest.AppendTo(m.t, m.Server.Config, "NoSuch yes\n") }, "sshd", Failure, "NoSuch", false},
		{"the configuration removed", func(m *enrolled) { m.remove("config.yaml") }, "configuration", Failure, "is missing", false},
		{"the configuration broken", func(m *enrolled) { m.sshd.Write("config.yaml", "signer_ulr: x\n") }, "configuration", Failure, "signer_ulr", false},
		{"sshd without certificates", func(m *enrolled) {
			m.sshd.Configure("PubkeyAuthentication no\n" + m.sshd.HallmarkLines())
		}, "settings", Failure, "PubkeyAuthentication no", true},
		{"a certificate that sshd has not loaded", func(m *enrolled) {
			m.sshd.Configure("HostKeyAlgorithms ssh-ed25519\n" + m.sshd.HallmarkLines())
		}, "settings", Failure, "HostKeyAlgorithms", true},
		{"sshd stopped", func(m *enrolled) { m.sshd.Stop() }, "sshd", Failure, "is not running", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newEnrolled(t)
			test.change(m)
			if test.restartSSHD {
				m.sshd.Stop()
				m.sshd.Run()
			}
			if test.check == "" {
				if findings := m.findings(); Worst(findings) != OK {
					t.Errorf("findings of a healthy machine: %+v", findings)
				}
				return
			}
			m.want(test.check, test.level, test.text)
		})
	}
}

func (m *enrolled) remove(name string) {
	m.t.Helper()
	if err := os.Remove(filepath.Join(m.sshd.Dir, name)); err != nil {
		m.t.Fatal(err)
	}
}

func (m *enrolled) folder(name string) {
	m.t.Helper()
	m.remove(name)
	if err := os.Mkdir(filepath.Join(m.sshd.Dir, name), 0o755); err != nil {
		m.t.Fatal(err)
	}
}

// An sshd program that hangs, with a child that holds its output, does not hold a look up.
func TestLookAtHungSSHD(t *testing.T) {
	m := newEnrolled(t)
	started := filepath.Join(m.sshd.Dir, "started")
	m.sshd.Write("hung", "#!/bin/sh\nsleep 600 &\ntouch "+started+"\nsleep 600\n")
	server := *m.Server
	server.Program = filepath.Join(m.sshd.Dir, "hung")
	if err := os.Chmod(server.Program, 0o700); err != nil {
		t.Fatal(err)
	}
	m.Server = &server
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { // the time is up once the program hangs
		defer cancel()
		for {
			if _, err := os.Stat(started); err == nil || backoff.Wait(ctx, time.Millisecond) != nil {
				return
			}
		}
	}()
	f := m.Look(ctx) // if the program held it up, this would last ten minutes
	if !errors.Is(f.SettingsErr, errLate) {
		t.Errorf("error %v, want %v", f.SettingsErr, errLate)
	}
	if first := Local(f)[0]; first.Check != "sshd" || first.Level != Failure {
		t.Errorf("first finding %+v", first)
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 400 * time.Millisecond: "0s", 61 * time.Second: "1min 1s", -time.Hour: "1h", 25 * time.Hour: "1d 1h",
		24*time.Hour + time.Minute: "1d", 90 * time.Minute: "1h 30min", 59*time.Minute + 59600*time.Millisecond: "1h",
	} {
		if got := Duration(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}

func TestParseUnits(t *testing.T) {
	units := parseUnits(`Id=hallmark.service
LoadState=loaded
ActiveState=inactive
SubState=dead
UnitFileState=static
Result=signal
ExecMainCode=2
ExecMainStatus=9
ExecMainExitTimestamp=Fri 2026-11-27 04:00:01 UTC

Id=hallmark-renew.timer
LoadState=loaded
ActiveState=active
SubState=waiting
UnitFileState=enabled
NextElapseUSecRealtime=Fri 2026-11-27 05:03:11 UTC
LastTriggerUSec=n/a
Result=success
`)
	service, timer := units[ServiceUnit], units[RenewTimer]
	if !service.Signal || service.ExitCode != 9 || service.Active || !service.Ended.Equal(time.Date(2026, 11, 27, 4, 0, 1, 0, time.UTC)) {
		t.Errorf("service %+v", service)
	}
	if !timer.Active || timer.Enabled != "enabled" || !timer.Next.Equal(time.Date(2026, 11, 27, 5, 3, 11, 0, time.UTC)) || !timer.Last.IsZero() {
		t.Errorf("timer %+v", timer)
	}
}

func FuzzParseUnits(f *testing.F) {
	f.Add("Id=a\nLoadState=loaded\n\nId=b")
	f.Add("\n\n=\n")
	f.Fuzz(func(t *testing.T, text string) {
		for name := range parseUnits(text) {
			if name == "" {
				t.Error("a unit without a name")
			}
		}
	})
}

func TestIsLocked(t *testing.T) {
	const locks = "1: FLOCK  ADVISORY  WRITE 42 08:01:1234 0 EOF\n2: POSIX  ADVISORY  READ 43 08:01:99 0 EOF\n"
	if !isLocked(locks, 8, 1, 1234) || isLocked(locks, 8, 1, 99) || isLocked(locks, 8, 2, 1234) || isLocked("", 8, 1, 1234) {
		t.Error("misread")
	}
}

// The lock of a run in progress shows, without being taken.
func TestLockedSince(t *testing.T) {
	dir := t.TempDir()
	began := time.Now().Add(-time.Hour).Truncate(time.Second)
	unlock, err := state.Lock(dir, began)
	if err != nil {
		t.Fatal(err)
	}
	if got := lockedSince(state.LockPath(dir)); !got.Equal(began) {
		if got.IsZero() && os.Getenv("HALLMARK_TEST_STRICT") == "" {
			t.Skip("/proc/locks does not show locks here")
		}
		t.Errorf("locked since %s, want %s", got, began)
	}
	unlock()
	if got := lockedSince(state.LockPath(dir)); !got.IsZero() {
		t.Errorf("released, but locked since %s", got)
	}
}
