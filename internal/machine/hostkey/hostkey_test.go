package hostkey

import (
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// machine is a folder with sshd's host keys, and a configuration with a HostCertificate line
// for each.
type machine struct {
	t         *testing.T
	dir       string
	selection Selection
	ca        ssh.Signer // another CA
}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, dir: t.TempDir(), selection: Selection{Conf: &sshd.Effective{}}, ca: machinetest.SeededSigner(t, 1)}
	for _, kind := range []string{"rsa", "ecdsa", "ed25519"} {
		machinetest.WriteHostKey(t, kind, m.path(kind))
		m.selection.Conf.HostKeys = append(m.selection.Conf.HostKeys, m.path(kind))
		m.selection.Conf.HostCertificates = append(m.selection.Conf.HostCertificates, m.path(kind)+CertificateSuffix)
	}
	return m
}

func (m *machine) path(kind string) string { return filepath.Join(m.dir, kind) }

func (m *machine) write(path, content string) {
	m.t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) remove(path string) {
	m.t.Helper()
	if err := os.Remove(path); err != nil {
		m.t.Fatal(err)
	}
}

// certify writes a certificate of the other CA for a key.
func (m *machine) certify(kind, file string, principals ...string) *ssh.Certificate {
	m.t.Helper()
	signer, err := Load(m.path(kind))
	if err != nil {
		m.t.Fatal(err)
	}
	cert := &ssh.Certificate{
		Key: signer.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: principals,
		ValidBefore: uint64(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC).Unix()),
	}
	if err := cert.SignCert(rand.Reader, m.ca); err != nil {
		m.t.Fatal(err)
	}
	m.write(file, string(ssh.MarshalAuthorizedKey(cert)))
	return cert
}

// own reports the machine's certificates as those that hallmark wrote: its state knows their CA.
func (m *machine) own() {
	m.selection.State = &state.State{HostCAs: []string{strings.TrimSpace(string(ssh.MarshalAuthorizedKey(m.ca.PublicKey())))}}
}

func without(list []string, path string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(p string) bool { return p == path })
}

func TestFind(t *testing.T) {
	for name, test := range map[string]struct {
		change func(m *machine)
		want   string // the keys that are certified
		passed string // part of what is said of the others
	}{
		"every key":           {func(*machine) {}, "rsa ecdsa ed25519", ""},
		"the order is sshd's": {func(m *machine) { slices.Reverse(m.selection.Conf.HostKeys) }, "ed25519 ecdsa rsa", ""},
		"a default path without a key": {func(m *machine) {
			m.remove(m.path("ecdsa"))
			m.remove(m.path("ecdsa") + ".pub")
		}, "rsa ed25519", ""},
		"a public half alone": {func(m *machine) { m.remove(m.path("rsa")) }, "ecdsa ed25519", "the private key is missing"},
		"a key that others can read": {func(m *machine) {
			if err := os.Chmod(m.path("rsa"), 0o644); err != nil {
				m.t.Fatal(err)
			}
		}, "ecdsa ed25519", "its mode 0644 lets others read it"},
		"no key at all":  {func(m *machine) { m.write(m.path("rsa"), "junk") }, "ecdsa ed25519", "it cannot be read"},
		"a folder":       {func(m *machine) { m.remove(m.path("rsa")); m.makeFolder("rsa") }, "ecdsa ed25519", "it cannot be read: not a file"},
		"a key too long": {func(m *machine) { m.write(m.path("rsa"), strings.Repeat("x", 64<<10+1)) }, "ecdsa ed25519", "it cannot be read: not a file"},
		"a passphrase":   {func(m *machine) { m.protect("rsa") }, "ecdsa ed25519", "it is protected by a passphrase"},
		"two of one type": {func(m *machine) {
			machinetest.WriteHostKey(m.t, "rsa", m.path("second"))
			m.selection.Conf.HostKeys = append(m.selection.Conf.HostKeys, m.path("second"))
		}, "rsa ecdsa ed25519", "which has the same type"},
		"no line for the certificate": {func(m *machine) {
			m.selection.Conf.HostCertificates = without(m.selection.Conf.HostCertificates, m.path("rsa")+CertificateSuffix)
		}, "ecdsa ed25519", "has no line HostCertificate "},
		"algorithms without a certificate for RSA": {func(m *machine) {
			m.selection.Conf.HostKeyAlgorithms = []string{ssh.CertAlgoECDSA256v01, ssh.CertAlgoED25519v01, ssh.KeyAlgoRSASHA512}
		}, "ecdsa ed25519", "HostKeyAlgorithms rule out its certificates"},
		"an RSA key that sshd finds too short": {func(m *machine) { m.selection.Conf.RequiredRSASize = 3072 }, "ecdsa ed25519", "RSA key of 2048 bits"},
		"another CA's certificate, which the proxy prefers less": {func(m *machine) {
			m.certify("ed25519", m.path("ed25519")+CertificateSuffix, "web.example.com")
		}, "rsa ecdsa", "is another CA's"},
		"another CA's certificate for the middle one": {func(m *machine) {
			m.certify("ecdsa", m.path("ecdsa")+CertificateSuffix, "web.example.com")
		}, "rsa", "would ask for the key with HostCertificate"},
		"another CA's certificate, to be replaced": {func(m *machine) {
			m.certify("rsa", m.path("rsa")+CertificateSuffix, "web.example.com")
			m.selection.Replace = true
		}, "rsa ecdsa ed25519", ""},
		"a certificate by a CA that the state knows": {func(m *machine) {
			m.certify("rsa", m.path("rsa")+CertificateSuffix, "web.example.com")
			m.own()
		}, "rsa ecdsa ed25519", ""},
		"a certificate of Teleport's form, without a state": {func(m *machine) {
			const id = "11111111-2222-3333-4444-555555555555"
			m.certify("rsa", m.path("rsa")+CertificateSuffix, "web", id, "web.main", id+".main")
		}, "rsa ecdsa ed25519", ""},
		"an algorithm that sshd does not use": {func(m *machine) {
			m.certify("ecdsa", m.path("ecdsa")+CertificateSuffix, "web.example.com")
			m.selection.Conf.HostKeyAlgorithms = []string{ssh.CertAlgoRSASHA512v01, ssh.CertAlgoED25519v01}
		}, "rsa ed25519", "HostKeyAlgorithms rule out"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			test.change(m)
			keys, passed, err := m.selection.Find()
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, k := range keys {
				got = append(got, filepath.Base(k.Path))
				if len(k.Algorithms) == 0 || k.Public == nil || k.CertificatePath() != k.Path+CertificateSuffix {
					t.Errorf("incomplete key %+v", k)
				}
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("certifies %q, want %q", got, test.want)
			}
			if all := strings.Join(passed, "; "); (all == "") != (test.passed == "") || !strings.Contains(all, test.passed) {
				t.Errorf("says %q, want %q", all, test.passed)
			}
		})
	}
}

// What would take a certificate away from somebody, or hide a key that clients have pinned,
// is refused.
func TestFindRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		change func(m *machine)
		kind   fault.Kind
		want   string
	}{
		"no keys": {func(m *machine) { m.selection.Conf.HostKeys = []string{m.path("none")} }, fault.Temporary, "none of them exists"},
		"none that can be read": {func(m *machine) {
			m.selection.Conf.HostKeys = []string{m.path("rsa")}
			m.write(m.path("rsa"), "junk")
		}, fault.Temporary, "it cannot be read"},
		"another CA's for the key that the proxy prefers": {func(m *machine) {
			m.certify("rsa", m.path("rsa")+CertificateSuffix, "web.example.com")
		}, fault.Misconfigured, "is another CA's"},
		"another CA's in a file elsewhere, although those beside the keys are replaced": {func(m *machine) {
			m.certify("rsa", m.path("theirs"), "web.example.com")
			m.selection.Conf.HostCertificates = append(m.selection.Conf.HostCertificates, m.path("theirs"))
			m.selection.Replace = true
		}, fault.Misconfigured, "is another CA's"},
		"a key that clients have pinned would be hidden": {func(m *machine) {
			m.selection.Conf.HostCertificates = without(m.selection.Conf.HostCertificates, m.path("ed25519")+CertificateSuffix)
		}, fault.Misconfigured, "would lock out people"},
		"a pinned key in an agent would be hidden": {func(m *machine) {
			m.selection.Conf.HostKeyAgent = "/agent"
			m.remove(m.path("ed25519"))
		}, fault.Misconfigured, "would lock out people"},
		"a pinned key in an agent, after lines that sshd skips": {func(m *machine) {
			m.selection.Conf.HostKeyAgent = "/agent"
			m.remove(m.path("ed25519"))
			public := m.path("ed25519") + ".pub"
			m.write(public, "# the host key\n\nno key\n"+string(machinetest.ReadFile(m.t, public)))
		}, fault.Misconfigured, "would lock out people"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			test.change(m)
			keys, _, err := m.selection.Find()
			machinetest.WantError(t, err, test.kind, test.want, "")
			if len(keys) > 0 {
				t.Errorf("certifies %d keys all the same", len(keys))
			}
		})
	}
}

// Once a machine presents a certificate, its plain keys are hidden already.
func TestFindRenewsWhatHidesKeys(t *testing.T) {
	m := newMachine(t)
	m.certify("rsa", m.path("rsa")+CertificateSuffix, "web")
	m.own()
	m.selection.Conf.HostCertificates = without(m.selection.Conf.HostCertificates, m.path("ed25519")+CertificateSuffix)
	keys, _, err := m.selection.Find()
	if err != nil || len(keys) != 2 || keys[0].Certificate == nil || keys[1].Certificate != nil {
		t.Errorf("keys %+v, %v", keys, err)
	}
}

// A certificate counts for the key in it, not for the file's name.
func TestCertificateOfAnotherKey(t *testing.T) {
	m := newMachine(t)
	m.own()
	m.certify("ed25519", m.path("rsa")+CertificateSuffix, "web")
	keys, _, err := m.selection.Find()
	if err != nil || len(keys) != 3 || keys[0].Certificate != nil {
		t.Errorf("keys %+v, %v", keys, err)
	}
	m.write(m.path("rsa")+CertificateSuffix, "junk")
	if ReadCertificate(m.path("rsa")+CertificateSuffix) != nil || ReadCertificate(m.path("none")) != nil {
		t.Error("junk or nothing was read as a certificate")
	}
}

func TestReadPublic(t *testing.T) {
	m := newMachine(t)
	if _, _, err := ReadPublic(m.path("none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a key that is not there: %v", err)
	}
	// sshd goes by the private half.
	m.write(m.path("rsa")+".pub", "junk")
	if public, why, err := ReadPublic(m.path("rsa")); err != nil || why != "" || public.Type() != ssh.KeyAlgoRSA {
		t.Errorf("%v, %q, %v", public, why, err)
	}
}

func TestSign(t *testing.T) {
	m := newMachine(t)
	keys, _, err := m.selection.Find()
	if err != nil {
		t.Fatal(err)
	}
	binding := protocol.Bind([]byte("payload"))
	signatures, err := Sign(keys, binding)
	if err != nil || len(signatures) != len(keys) {
		t.Fatalf("%d signatures, %v", len(signatures), err)
	}
	for n, key := range keys {
		if err := identity.VerifyBinding(key.Public, binding, signatures[n]); err != nil {
			t.Errorf("%s: %v", key.Path, err)
		}
	}
	// A key that is replaced between the choice and the signature must not get the
	// certificate of the old one.
	machinetest.WriteHostKey(t, "ed25519", keys[2].Path)
	_, err = Sign(keys, binding)
	machinetest.WantError(t, err, fault.Temporary, "changed during the run", "run hallmark again")
	m.remove(keys[0].Path)
	if _, err := Sign(keys, binding); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a key that is gone: %v", err)
	}
}

func TestHasNodeNames(t *testing.T) {
	const id = "11111111-2222-3333-4444-555555555555"
	for names, want := range map[string]bool{
		"web " + id + " web.main " + id + ".main": true,
		id + ".main " + id:                        true,
		"web " + id:                               false,
		"web " + id + " " + id + ".":              false,
		"web web.main":                            false,
		"":                                        false,
		strings.ToUpper(id) + " " + strings.ToUpper("a"+id[1:]) + ".main": false,
	} {
		if got := hasNodeNames(strings.Fields(names)); got != want {
			t.Errorf("%q: %v, want %v", names, got, want)
		}
	}
}

func TestFirstEnd(t *testing.T) {
	early, late := time.Unix(1_800_000_000, 0), time.Unix(1_900_000_000, 0)
	certificates := []*ssh.Certificate{{ValidBefore: uint64(late.Unix())}, {ValidBefore: uint64(early.Unix())}}
	if got := FirstEnd(certificates); !got.Equal(early) {
		t.Errorf("%s, want %s", got, early)
	}
}

// ssh-keygen without -V makes certificates that are valid forever, and any number may be in a
// file.
func TestTimesOfStrangeCertificates(t *testing.T) {
	for _, seconds := range []uint64{ssh.CertTimeInfinity, 1 << 62, 1 << 63} {
		cert := &ssh.Certificate{ValidAfter: seconds, ValidBefore: seconds}
		for _, got := range []time.Time{Start(cert), FirstEnd([]*ssh.Certificate{cert})} {
			if _, err := got.UTC().MarshalJSON(); err != nil || got.UTC().Year() != 9999 {
				t.Errorf("%d: %s, %v", seconds, got, err)
			}
		}
	}
}

func (m *machine) makeFolder(kind string) {
	m.t.Helper()
	if err := os.Mkdir(m.path(kind), 0o700); err != nil {
		m.t.Fatal(err)
	}
}

// protect puts the key of a kind under a passphrase.
func (m *machine) protect(kind string) {
	m.t.Helper()
	data, err := os.ReadFile(m.path(kind))
	if err != nil {
		m.t.Fatal(err)
	}
	private, err := ssh.ParseRawPrivateKey(data)
	if err != nil {
		m.t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte("secret"))
	if err != nil {
		m.t.Fatal(err)
	}
	m.write(m.path(kind), string(pem.EncodeToMemory(block)))
}

// sshd reads the first line with a key.
func TestParseCertificate(t *testing.T) {
	m := newMachine(t)
	cert := m.certify("rsa", m.path("rsa")+CertificateSuffix, "web")
	line := string(ssh.MarshalAuthorizedKey(cert))
	plain := string(ssh.MarshalAuthorizedKey(cert.Key))
	for content, want := range map[string]bool{
		line: true, strings.TrimSpace(line): true, "# managed\n\n" + line: true, " \t" + line: true, "junk\n" + line + plain: true,
		strings.ReplaceAll(line, "\n", " web\r\n"): true, line + line: true, strings.Repeat("#\n", 100) + line: true,
		"": false, "# " + line: false, plain + line: false, "-----BEGIN X-----\n" + line: false, line[:len(line)/2]: false,
		strings.Repeat("#\n", 64<<10) + line: false,
	} {
		if got := ParseCertificate([]byte(content)); (got != nil) != want {
			t.Errorf("%.60q: %v", content, got)
		}
	}
}
