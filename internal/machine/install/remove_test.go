package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/machine/systemd"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

const hostKey = "/etc/ssh/ssh_host_ed25519_key"

// installed is an image that became a machine: with a host key, a person's key, hallmark's
// timers, and an sshd that does not run.
type installed struct {
	*image
	*Remover
	calls []string // of the signer and systemd
	// refusal is the signer's answer, if it says no.
	refusal error
}

func newInstalled(t *testing.T, mainConfig string) *installed {
	t.Helper()
	i := newImage(t, mainConfig)
	machinetest.WriteHostKey(t, "ed25519", filepath.Join(i.root, hostKey))
	i.write("/root/.ssh/authorized_keys", string(ssh.MarshalAuthorizedKey(machinetest.SeededSigner(t, 1).PublicKey())))
	i.write("/bin/sh", "")
	if err := os.Chmod(filepath.Join(i.root, "/bin/sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	return machineOf(i)
}

func machineOf(i *image) *installed {
	i.accounts = []sshd.Account{{Name: "root", Home: "/root", Shell: "/bin/sh", LogsIn: true}}
	i.prints = func(string) string {
		return "PermitRootLogin yes\nStrictModes no\nAuthorizedKeysFile .ssh/authorized_keys\n"
	}
	m := &installed{image: i}
	i.enable = func(context.Context) ([]string, error) { i.write(wanted, "enabled"); return nil, nil }
	m.Remover = &Remover{Installer: i.Installer, live: m, units: m, leave: m.ask, settle: time.Minute}
	return m
}

// wanted stands for what systemctl enable makes.
const wanted = unitDir + "/timers.target.wants/hallmark.timer"

func (m *installed) ask(context.Context, *sshd.Effective) (string, error) {
	m.calls = append(m.calls, "leave")
	return "the signer deleted the node", m.refusal
}

func (m *installed) Stop(context.Context) (func(context.Context) error, error) {
	m.calls = append(m.calls, "stop")
	return func(context.Context) error { m.calls = append(m.calls, "start"); return nil }, nil
}

func (m *installed) Disable(context.Context) error {
	m.calls = append(m.calls, "disable")
	if err := os.RemoveAll(filepath.Join(m.root, wanted)); err != nil {
		return err
	}
	return removeEmpty(filepath.Dir(filepath.Join(m.root, wanted)))
}

func (m *installed) Forget(context.Context) error { m.calls = append(m.calls, "forget"); return nil }

func (m *installed) Effective(ctx context.Context) (*sshd.Effective, error) {
	logins, err := m.image.Logins(ctx)
	if err != nil {
		return nil, err
	}
	trusted := strings.Join(sshd.Values(logins[0].Settings, "trustedusercakeys"), "")
	return &sshd.Effective{HostKeys: []string{filepath.Join(m.root, hostKey)}, TrustedUserCAKeys: trusted}, nil
}

func (m *installed) Logins(ctx context.Context) ([]sshd.Login, error) { return m.image.Logins(ctx) }

func (m *installed) Running(context.Context, *sshd.Effective) (*sshd.Running, error) { return nil, nil }

func (m *installed) Reload(context.Context, string) error { return errors.New("nothing runs") }

func (m *installed) Start(context.Context) error { return errors.New("nothing runs") }

func (m *installed) LastLoad(context.Context, string) (sshd.Load, error) { return sshd.Load{}, nil }

func (m *installed) ViewOf(*sshd.Effective, []sshd.Login) (sshd.View, []sshd.Changed) {
	return sshd.View{}, nil
}

// enroll writes what an enrollment does.
func (m *installed) enroll() {
	t := m.t
	t.Helper()
	path := filepath.Join(m.root, hostKey)
	public, _, err := hostkey.ReadPublic(path)
	if err != nil {
		t.Fatal(err)
	}
	const id = "4b1c2f3e-0000-5000-8000-123456789abc"
	cert := &ssh.Certificate{
		Key: public, CertType: ssh.HostCert, ValidBefore: ssh.CertTimeInfinity,
		ValidPrincipals: []string{"web", id, "web.teleport.example.com", id + ".teleport.example.com"},
	}
	if err := cert.SignCert(zero{}, machinetest.SeededSigner(t, 2)); err != nil {
		t.Fatal(err)
	}
	m.write(hostKey+hostkey.CertificateSuffix, string(ssh.MarshalAuthorizedKey(cert)))
	data, err := json.Marshal(state.State{Version: state.Version, Certificates: []state.Certificate{hostkey.StateOf(hostkey.Key{Path: path, Public: public}, cert)}})
	if err != nil {
		t.Fatal(err)
	}
	m.write(state.Path(state.Dir), string(data))
	m.write(state.Dir+"/setback.json", "{}")
}

// zero is a source of randomness with which an Ed25519 signature does not need any.
type zero struct{}

func (zero) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// everything returns each file and folder, except the lock and its folder.
func (m *installed) everything() map[string]string {
	all := m.tree()
	err := filepath.WalkDir(m.root, func(path string, d os.DirEntry, err error) error {
		name := strings.TrimPrefix(path, m.root)
		if err == nil && d.IsDir() && name != state.Dir && name != filepath.Dir(state.Dir) && name != "/var" {
			all[name+"/"] = ""
		}
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return all
}

func (m *installed) wantSame(got, want map[string]string, when string) {
	m.t.Helper()
	for name := range want {
		if content, ok := got[name]; !ok || content != want[name] {
			m.t.Errorf("%s: %s is %q, was %q", when, name, content, want[name])
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			m.t.Errorf("%s: %s is still there", when, name)
		}
	}
}

// The samples are shaped like the files that distributions ship.
func samples(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("testdata/sshd_config/*.conf")
	if err != nil || len(paths) < 7 {
		t.Fatalf("%q, %v", paths, err)
	}
	all := map[string]string{"carriage returns": "UsePAM yes\r\n# edited on another system\r\nX11Forwarding no\r\n"}
	for _, path := range paths {
		all[filepath.Base(path)] = string(machinetest.ReadFile(t, path))
	}
	return all
}

// After installing, enrolling and unenrolling, every file and folder is as before. SUSE's main
// file is below /usr/etc.
func TestRemove(t *testing.T) {
	for name, sample := range samples(t) {
		for _, suse := range []bool{false, true} {
			for _, enrolled := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, SUSE %v, enrolled %v", name, suse, enrolled), func(t *testing.T) {
					t.Parallel()
					m := newInstalled(t, sample)
					if suse {
						m.suse(sample)
					}
					before := m.everything()
					if _, err := m.Install(t.Context(), m.from); err != nil {
						t.Fatal(err)
					}
					if enrolled {
						m.enroll()
					}
					if _, err := m.Remove(t.Context(), RemoveOptions{}); err != nil {
						t.Fatal(err)
					}
					m.wantSame(m.everything(), before, "afterwards")
					if want := []string{"stop", "leave", "disable", "forget"}; !slices.Equal(m.calls, want) {
						t.Errorf("calls %q, want %q", m.calls, want)
					}
				})
			}
		}
	}
}

// A release that kept no record installed hallmark. Then another one may have come.
func TestRemoveWithoutRecord(t *testing.T) {
	for name, sample := range map[string]string{"drop-in": withInclude, "block": withoutInclude} {
		for _, upgraded := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, upgraded %v", name, upgraded), func(t *testing.T) {
				t.Parallel()
				m := newInstalled(t, sample)
				m.suse(sample)
				before := m.tree()
				for _, record := range []bool{false, upgraded} {
					if _, err := m.Install(t.Context(), m.from); err != nil {
						t.Fatal(err)
					}
					if !record {
						if err := os.Remove(filepath.Join(m.root, recordFile)); err != nil {
							t.Fatal(err)
						}
					}
				}
				m.enroll()
				if _, err := m.Remove(t.Context(), RemoveOptions{}); err != nil {
					t.Fatal(err)
				}
				m.wantSame(m.tree(), before, "afterwards")
			})
		}
	}
}

// What other people changed since stays, and a program that was there before.
func TestRemoveKeepsEdits(t *testing.T) {
	for name, sample := range samples(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newInstalled(t, sample)
			m.write(Program, "program")
			if _, err := m.Install(t.Context(), m.from); err != nil {
				t.Fatal(err)
			}
			m.enroll()
			const edit, inside = "\n# an edit\nBanner /etc/issue\n", "LogLevel VERBOSE\n"
			kept := map[string]string{
				sshdconf.MainConfig: sample + edit, "/etc/hallmark/environment": "HTTPS_PROXY=http://proxy\n",
				"/etc/systemd/system/hallmark.service.d/ours.conf": "[Service]\n", Program: "program",
				"/etc/ssh/ssh_host_rsa_key-cert.pub": "not hallmark's\n",
			}
			for _, path := range []string{"/etc/hallmark/environment", "/etc/systemd/system/hallmark.service.d/ours.conf", "/etc/ssh/ssh_host_rsa_key-cert.pub"} {
				m.write(path, kept[path])
			}
			if own := m.read(sshdconf.DropIn); own != "" {
				m.write(sshdconf.MainConfig, sample+edit)
				m.write(sshdconf.DropIn, own+inside)
				kept[sshdconf.DropIn] = inside
			} else {
				block := strings.Replace(m.read(sshdconf.MainConfig), sshdconf.BlockEnd, inside+sshdconf.BlockEnd, 1)
				m.write(sshdconf.MainConfig, block+edit)
				kept[sshdconf.MainConfig] = inside + sample + edit
			}
			if _, err := m.Remove(t.Context(), RemoveOptions{}); err != nil {
				t.Fatal(err)
			}
			for path, want := range kept {
				if got := m.read(path); got != want {
					t.Errorf("%s is %q, want %q", path, got, want)
				}
			}
			if _, err := os.Stat(filepath.Join(m.root, config.File)); err == nil {
				t.Error("the configuration is still there")
			}
		})
	}
}

// A second run has nothing to do.
func TestRemoveTwice(t *testing.T) {
	m := newInstalled(t, withInclude)
	if _, err := m.Install(t.Context(), m.from); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Remove(t.Context(), RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	m.leave = nil // there is no configuration
	before := m.tree()
	if changes, err := m.Remove(t.Context(), RemoveOptions{}); err != nil || len(changes) > 0 {
		t.Errorf("%q, %v", changes, err)
	}
	m.wantSame(m.tree(), before, "afterwards")
}

// Whatever is wrong, nothing changes, and the timers run again.
func TestRemoveRefuses(t *testing.T) {
	down := fault.Newf(fault.Temporary, "hallmark.service retries", "ask the signer: connection refused")
	old := fault.Newf(fault.Refused, "update the signer", "the signer is too old")
	for _, test := range []struct {
		name          string
		spoil         func(m *installed)
		options       RemoveOptions
		kind          fault.Kind
		message, hint string
	}{
		{"the signer is down", func(m *installed) { m.refusal = down }, RemoveOptions{}, fault.Temporary, "connection refused", "nothing was changed; run it again later, or pass --offline"},
		{"the signer is old", func(m *installed) { m.refusal = old }, RemoveOptions{}, fault.Refused, "too old", "update the signer, or pass --offline"},
		{"no other way in", func(m *installed) { m.write("/root/.ssh/authorized_keys", "# none\n") }, RemoveOptions{}, fault.Failed, "nobody could log in", "--force"},
		{"sshd rejects the result", func(m *installed) { m.verdict = func() error { return errors.New("bad line") } }, RemoveOptions{}, fault.Failed, "bad line", "nothing was changed"},
		{"other settings would change", func(m *installed) { m.drift = func() string { return "UsePAM no\n" } }, RemoveOptions{}, fault.Failed, "usepam", "nothing was changed"},
		{"the CA file is named elsewhere too", func(m *installed) {
			m.write(sshdconf.MainConfig, withInclude+"TrustedUserCAKeys "+sshdconf.CAFile+"\n")
		}, RemoveOptions{}, fault.Failed, "sshd_config:3", "nothing was changed"},
		{"half a block", func(m *installed) { m.write(sshdconf.MainConfig, sshdconf.BlockBegin+"\n"+withInclude) }, RemoveOptions{}, fault.Failed, "damaged", "nothing was changed"},
		{"nobody knows the signer", func(m *installed) { m.leave = nil }, RemoveOptions{}, fault.Misconfigured, config.File, "--offline"},
		{"a damaged record", func(m *installed) { m.write(recordFile, "{") }, RemoveOptions{}, fault.Failed, "damaged", "move the file away"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newInstalled(t, withInclude)
			if _, err := m.Install(t.Context(), m.from); err != nil {
				t.Fatal(err)
			}
			m.enroll()
			test.spoil(m)
			before := m.everything()
			_, err := m.Remove(t.Context(), test.options)
			machinetest.WantError(t, err, test.kind, test.message, test.hint)
			m.wantSame(m.everything(), before, "after the refusal")
			stops, starts := count(m.calls, "stop"), count(m.calls, "start")
			if stops != starts || slices.Contains(m.calls, "disable") {
				t.Errorf("calls %q", m.calls)
			}
		})
	}
}

func count(calls []string, name string) (n int) {
	for _, call := range calls {
		if call == name {
			n++
		}
	}
	return n
}

// The flags allow what is refused otherwise.
func TestRemoveAnyway(t *testing.T) {
	for name, test := range map[string]struct {
		spoil   func(m *installed)
		options RemoveOptions
	}{
		"no other way in":  {func(m *installed) { m.write("/root/.ssh/authorized_keys", "") }, RemoveOptions{Force: true}},
		"a signer is down": {func(m *installed) { m.refusal = errors.New("down") }, RemoveOptions{Offline: true}},
		"no configuration": {func(m *installed) { m.leave = nil }, RemoveOptions{Offline: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newInstalled(t, withoutInclude)
			test.spoil(m)
			before := m.everything()
			if _, err := m.Install(t.Context(), m.from); err != nil {
				t.Fatal(err)
			}
			m.enroll()
			if _, err := m.Remove(t.Context(), test.options); err != nil {
				t.Fatal(err)
			}
			m.wantSame(m.everything(), before, "afterwards")
			if asked := slices.Contains(m.calls, "leave"); asked == test.options.Offline {
				t.Errorf("calls %q", m.calls)
			}
		})
	}
}

// A certificate of another CA that an enrollment overwrote is restored, unless the machine has
// another host key now.
func TestRemoveRestoresCertificates(t *testing.T) {
	for _, changed := range []bool{false, true} {
		m := newInstalled(t, withInclude)
		if _, err := m.Install(t.Context(), m.from); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(m.root, hostKey)
		public, _, err := hostkey.ReadPublic(path)
		if err != nil {
			t.Fatal(err)
		}
		other := &ssh.Certificate{Key: public, CertType: ssh.HostCert, ValidBefore: ssh.CertTimeInfinity, ValidPrincipals: []string{"web"}}
		if err := other.SignCert(zero{}, sshkeytest.NewSigner(t)); err != nil {
			t.Fatal(err)
		}
		original := string(ssh.MarshalAuthorizedKey(other))
		if err := os.MkdirAll(filepath.Join(m.root, state.Dir), 0o755); err != nil {
			t.Fatal(err)
		}
		err = state.SaveOriginals(filepath.Join(m.root, state.Dir), []state.Original{{Path: path + hostkey.CertificateSuffix, Content: []byte(original)}})
		if err != nil {
			t.Fatal(err)
		}
		if changed {
			machinetest.WriteHostKey(t, "ed25519", path)
			original = ""
		}
		m.enroll()
		if _, err := m.Remove(t.Context(), RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
		if got := m.read(hostKey + hostkey.CertificateSuffix); got != original {
			t.Errorf("another host key %v: the certificate is %q, want %q", changed, got, original)
		}
	}
}

func TestParseUnitStates(t *testing.T) {
	got := unitStates(systemd.ParseShow("Id=hallmark.service\nLoadState=loaded\nActiveState=failed\n\nId=hallmark.timer\nLoadState=not-found\nActiveState=inactive\n\nActiveState=active\nLoadState=loaded\nId=hallmark-renew.timer\n"))
	want := []unitState{{"hallmark.service", true, false, true}, {"hallmark.timer", false, false, false}, {"hallmark-renew.timer", true, true, false}}
	if !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
}

// A package's program and units stay.
func TestRemoveFromPackage(t *testing.T) {
	m := newInstalled(t, withInclude)
	m.addPackage()
	m.write(unitDir+"/others.service", "") // so that the folder is not the test's
	before := m.everything()
	if _, err := m.Install(t.Context(), m.from); err != nil {
		t.Fatal(err)
	}
	m.enroll()
	if _, err := m.Remove(t.Context(), RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	m.wantSame(m.everything(), before, "afterwards")
}
