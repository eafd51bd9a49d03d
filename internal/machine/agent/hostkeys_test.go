package agent

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// sshd cannot use one of its host keys. It runs with the others, and these are certified.
func TestEnrollWithOneBadHostKey(t *testing.T) {
	remove := func(m *machine, path string) error { return os.Remove(path) }
	write := func(suffix, content string) func(*machine, string) error {
		return func(_ *machine, path string) error { return os.WriteFile(path+suffix, []byte(content), 0o600) }
	}
	rewrite := func(change func(string) string) func(*machine, string) error {
		return func(_ *machine, path string) error {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(path, []byte(change(string(data))), 0o600)
		}
	}
	for _, test := range []struct {
		name  string
		spoil func(m *machine, path string) error
		says  string // for each key that sshd does not present
	}{
		{name: "public half empty", spoil: write(".pub", "")},
		{name: "public half missing", spoil: func(_ *machine, path string) error { return os.Remove(path + ".pub") }},
		{name: "public half in the form of RFC 4716", spoil: write(".pub", "---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n---- END SSH2 PUBLIC KEY ----\n")},
		{name: "public half of an unknown type", spoil: write(".pub", "ssh-xmss@openssh.com AAAAFHNzaC14bXNzQG9wZW5zc2guY29tAAAABAECAwQ= root@x\n")},
		{name: "public half of another key", spoil: func(m *machine, path string) error {
			machinetest.WriteHostKey(m.t, "ecdsa", path+"x")
			return os.Rename(path+"x.pub", path+".pub")
		}},
		{"private half missing", remove, "the private key is missing"},
		{"private half empty", write("", ""), "it cannot be read"},
		{"private half damaged", write("", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"), "it cannot be read"},
		{"private half of mode 0644", func(_ *machine, path string) error { return os.Chmod(path, 0o644) }, "its mode 0644"},
		{"private half with a passphrase", func(_ *machine, path string) error {
			return exec.Command("ssh-keygen", "-q", "-p", "-f", path, "-N", "secret", "-P", "").Run()
		}, "passphrase"},
		{"without the last line break", rewrite(func(s string) string { return strings.TrimSuffix(s, "\n") }), "sshd cannot read the form"},
		{"with Windows line breaks", rewrite(func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }), "sshd cannot read the form"},
		{"after a comment", rewrite(func(s string) string { return "# managed\n" + s }), "sshd cannot read the form"},
		{name: "before a comment", spoil: rewrite(func(s string) string { return s + "# managed\n" })},
		{name: "after the curve's parameters, as openssl ecparam writes them", spoil: func(m *machine, path string) error {
			block := &pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}} // prime256v1
			return os.WriteFile(path, append(pem.EncodeToMemory(block), convert(m.t, path, "EC PRIVATE KEY", x509.MarshalECPrivateKey)...), 0o600)
		}},
		{name: "in PKCS8", spoil: func(m *machine, path string) error {
			return os.WriteFile(path, convert(m.t, path, "PRIVATE KEY", pkcs8[*ecdsa.PrivateKey]), 0o600)
		}},
		{"a folder", func(_ *machine, path string) error {
			_ = os.Remove(path)
			return os.Mkdir(path, 0o700)
		}, "it cannot be read: not a file"},
		{name: "no key at all", spoil: func(_ *machine, path string) error {
			_ = os.Remove(path + ".pub")
			return os.Remove(path)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			var said []string
			m.retry.Log = func(format string, args ...any) { said = append(said, strings.TrimSpace(fmt.Sprintf(format, args...))) }
			m.sshd.Stop()
			path := m.sshd.KeyPath("ecdsa")
			if err := test.spoil(m, path); err != nil {
				t.Fatal(err)
			}
			m.sshd.Run()
			presented := m.sshd.Presents(ssh.KeyAlgoECDSA256)
			o, err := m.Enroll(t.Context())
			if err != nil {
				t.Fatalf("the machine stays out for one bad key: %v", err)
			}
			certified := slices.ContainsFunc(o.State.Certificates, func(c state.Certificate) bool { return c.Path == path+hostkey.CertificateSuffix })
			if certified != presented || len(o.State.Certificates) < 2 {
				t.Errorf("certified %v, but sshd presents the key %v; %d certificates", certified, presented, len(o.State.Certificates))
			}
			lines := slices.DeleteFunc(said, func(s string) bool { return !strings.Contains(s, "not certified: "+path) })
			if test.says == "" && len(lines) > 0 || test.says != "" && (len(lines) != 1 || !strings.Contains(lines[0], test.says)) {
				t.Errorf("it says %q, want one line with %q", lines, test.says)
			}
			if again, err := m.Enroll(t.Context()); err != nil || again.Reason != "" || again.Reloaded {
				t.Errorf("the next run: %+v, %v", again, err)
			}
			m.sshd.AcceptsLogins()
		})
	}
}

// Not every version of sshd reads an Ed25519 key in PKCS #8, as Terraform and openssl write it.
func TestEnrollWithEd25519InPKCS8(t *testing.T) {
	m := newMachine(t)
	m.sshd.Stop()
	path := m.sshd.KeyPath("ed25519")
	key := convert(t, path, "PRIVATE KEY", func(key *ed25519.PrivateKey) ([]byte, error) { return x509.MarshalPKCS8PrivateKey(*key) })
	if err := os.WriteFile(path, key, 0o600); err != nil {
		t.Fatal(err)
	}
	m.sshd.Run()
	want := []string{m.sshd.KeyPath("rsa") + hostkey.CertificateSuffix, m.sshd.KeyPath("ecdsa") + hostkey.CertificateSuffix}
	if m.sshd.Presents(ssh.KeyAlgoED25519) {
		want = append(want, path+hostkey.CertificateSuffix)
	}
	o, err := m.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var certified []string
	for _, c := range o.State.Certificates {
		certified = append(certified, c.Path)
	}
	if !slices.Equal(certified, want) {
		t.Errorf("certified %q, want %q", certified, want)
	}
	m.sshd.AcceptsLogins()
}

// convert returns a host key in another form.
func convert[K any](t testing.TB, path, kind string, marshal func(K) ([]byte, error)) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.ParseRawPrivateKey(data)
	if err != nil {
		t.Fatal(err)
	}
	der, err := marshal(key.(K))
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func pkcs8[K any](key K) ([]byte, error) { return x509.MarshalPKCS8PrivateKey(key) }

func TestEnrollWithShortRSAKey(t *testing.T) {
	m := newMachine(t)
	m.sshd.SkipUnknown(t, "RequiredRSASize 3072\n")
	m.sshd.Stop()
	m.sshd.Configure("RequiredRSASize 3072\n" + m.sshd.HallmarkLines())
	m.sshd.Run()
	o, err := m.Enroll(t.Context())
	if err != nil || len(o.State.Certificates) != 2 {
		t.Fatalf("outcome %+v, %v; want two certificates", o, err)
	}
	if again, err := m.Enroll(t.Context()); err != nil || again.Reason != "" {
		t.Errorf("the next run: %+v, %v", again, err)
	}
}

// certifyByOther gives a host key a certificate from another CA, as Vault's guide describes.
func (m *machine) certifyByOther(kind, file string) (content string) {
	m.t.Helper()
	public, why, err := hostkey.ReadPublic(m.sshd.KeyPath(kind))
	if err != nil || why != "" {
		m.t.Fatal(why, err)
	}
	cert := &ssh.Certificate{Key: public, CertType: ssh.HostCert, ValidPrincipals: []string{"web.corp.example.com"}, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, sshkeytest.NewSigner(m.t)); err != nil {
		m.t.Fatal(err)
	}
	content = string(ssh.MarshalAuthorizedKey(cert))
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		m.t.Fatal(err)
	}
	return content
}

func TestEnrollBesideAnotherCA(t *testing.T) {
	for _, test := range []struct {
		name      string
		theirs    []string // host keys that another CA has certified
		elsewhere bool     // the certificates' files are not next to the keys
		want      []string // host keys that Hallmark certifies
	}{
		{"none", nil, false, []string{"rsa", "ecdsa", "ed25519"}},
		{"Ed25519", []string{"ed25519"}, false, []string{"rsa", "ecdsa"}},
		{"Ed25519, in a file elsewhere", []string{"ed25519"}, true, []string{"rsa", "ecdsa"}},
		{"ECDSA", []string{"ecdsa"}, false, []string{"rsa"}},
		{"Ed25519, after a comment", []string{"ed25519"}, false, []string{"rsa", "ecdsa"}},
		{"all but RSA", []string{"ecdsa", "ed25519"}, false, []string{"rsa"}},
		// Teleport's proxy would ask for the other CA's certificate.
		{"RSA", []string{"rsa"}, false, nil},
		{"all", []string{"rsa", "ecdsa", "ed25519"}, false, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.sshd.Stop()
			theirs := map[string]string{}
			lines := ""
			for _, kind := range test.theirs {
				file := m.sshd.KeyPath(kind) + hostkey.CertificateSuffix
				if test.elsewhere {
					file = filepath.Join(m.dir, "other-ca-"+kind)
					lines += "HostCertificate " + file + "\n"
				}
				theirs[file] = m.certifyByOther(kind, file)
				if strings.HasSuffix(test.name, "comment") {
					theirs[file] = "# managed\n\n" + theirs[file] + "old " + theirs[file]
					m.sshd.Write(filepath.Base(file), theirs[file])
				}
			}
			m.sshd.Configure(m.sshd.HallmarkLines() + lines)
			m.sshd.Run()
			o, err := m.Enroll(t.Context())
			for file, content := range theirs {
				if got := string(machinetest.ReadFile(t, file)); got != content {
					t.Errorf("%s was overwritten", file)
				}
			}
			if test.want == nil {
				machinetest.WantError(t, err, fault.Misconfigured, "another CA's", "host_certificate: replace")
				if len(m.requests) > 0 {
					t.Error("the signer was asked")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range o.State.Certificates {
				kind := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(c.Path), "ssh_host_"), "_key"+hostkey.CertificateSuffix)
				got = append(got, kind)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("certified %q, want %q", got, test.want)
			}
			// The proxy uses Go's client, which takes the first type that it prefers.
			checker := ssh.CertChecker{IsHostAuthority: func(key ssh.PublicKey, _ string) bool {
				return sshkey.Line(key) == sshkey.Line(m.hosts.PublicKey())
			}}
			if err := m.sshd.TryLogin(machinetest.UserCertificate(t, m.openSSHCA), checker.CheckHostKey); err != nil {
				t.Errorf("a login as the proxy makes it: %v", err)
			}
			if again, err := m.Enroll(t.Context()); err != nil || again.Reason != "" {
				t.Errorf("the next run: %+v, %v", again, err)
			}
			// A lost state does not make Hallmark's certificates somebody else's.
			if err := os.Remove(state.Path(m.stateDir)); err != nil {
				t.Fatal(err)
			}
			if again, err := m.Enroll(t.Context()); err != nil || len(again.State.Certificates) != len(test.want) {
				t.Errorf("without a state: %+v, %v", again, err)
			}
		})
	}
}

func TestEnrollReplacesTheCertificateOfAnotherCA(t *testing.T) {
	m := newMachine(t)
	m.Config.HostCertificate = config.ReplaceCertificate
	path := m.sshd.KeyPath("rsa") + hostkey.CertificateSuffix
	m.certifyByOther("rsa", path)
	original := machinetest.ReadFile(t, path)
	for range 2 { // a renewal overwrites Hallmark's own
		o, err := m.Enroll(t.Context())
		if err != nil || len(o.State.Certificates) != 3 {
			t.Fatalf("outcome %+v, %v", o, err)
		}
		saved, err := state.LoadOriginals(m.stateDir)
		if err != nil || len(saved) != 1 || saved[0].Path != path || !bytes.Equal(saved[0].Content, original) {
			t.Errorf("saved %q, %v", saved, err)
		}
		s := m.state()
		s.RenewAfter = s.EnrolledAt
		if err := state.Save(m.stateDir, s); err != nil {
			t.Fatal(err)
		}
	}
}

// A second CA for people stays trusted, whatever happens to the cluster's CAs.
func TestExtraUserCAs(t *testing.T) {
	m := newMachine(t)
	other := sshkeytest.NewSigner(t)
	m.Config.ExtraUserCAs = []string{sshkey.Line(other.PublicKey()) + " old cluster"}
	for _, what := range []string{"first", "rotated"} {
		if _, err := m.Enroll(t.Context()); err != nil {
			t.Fatal(what, err)
		}
		for who, ca := range map[string]ssh.Signer{"the cluster's": m.openSSHCA, "the other": other} {
			if err := m.sshd.TryLogin(machinetest.UserCertificate(t, ca), ssh.InsecureIgnoreHostKey()); err != nil {
				t.Errorf("%s: login by %s CA: %v", what, who, err)
			}
		}
		if o, err := m.Enroll(t.Context()); err != nil || o.Reason != "" {
			t.Errorf("%s: the next run: %+v, %v", what, o, err)
		}
		retired := m.openSSHCA
		m.openSSHCA = sshkeytest.NewSigner(t)
		s := m.state()
		s.RenewAfter = s.EnrolledAt
		if err := state.Save(m.stateDir, s); err != nil {
			t.Fatal(err)
		}
		if what == "rotated" {
			if err := m.sshd.TryLogin(machinetest.UserCertificate(t, retired), ssh.InsecureIgnoreHostKey()); err != nil {
				t.Errorf("before it learns of the rotation: %v", err)
			}
		}
	}
}

// The metadata service returns a name in the domain of the VPC's DHCP options, and EC2's API
// returns EC2's own name.
func TestPrivateDNSWithADomainOfTheVPC(t *testing.T) {
	for _, told := range []string{
		"ip-10-0-0-1.corp.example.com", "ip-10-0-0-1.us-west-2.compute.internal corp.example.com", "ip-10-0-0-1",
		"IP-10-0-0-1.us-west-2.compute.internal",
	} {
		t.Run(told, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.tellAddress("10.0.0.1")
			m.imds.pages["/latest/meta-data/local-hostname"] = told
			m.further = []string{"ip-10-0-0-1." + testRegion + ".compute.internal"}
			if _, err := m.Enroll(t.Context()); err != nil {
				t.Errorf("the machine stays out: %v", err)
			}
		})
	}
}

// EC2's API knows an Elastic IP before the metadata service does.
func TestElasticIPDuringBoot(t *testing.T) {
	m := newMachine(t)
	m.tellAddress("10.0.0.1")
	m.imds.pages[imds.PublicAddressPage] = "198.51.100.4"
	m.further = []string{"203.0.113.9"}
	before := m.files()
	_, err := m.Enroll(t.Context())
	machinetest.WantError(t, err, fault.Temporary, "203.0.113.9", "nothing was changed")
	if m.files() != before {
		t.Error("files were changed")
	}
	m.imds.pages[imds.PublicAddressPage] = "203.0.113.9"
	if _, err := m.Enroll(t.Context()); err != nil {
		t.Errorf("once the metadata service tells it: %v", err)
	}
}

func (m *machine) tellAddress(private string) {
	m.imds.pages[identityPage] = fmt.Sprintf(`{"accountId":%q,"region":%q,"instanceId":%q,"privateIp":%q}`, testAccount, testRegion, testHost, private)
}

// Teleport's certificates have no serial numbers, and those of one enrollment expire at the
// same time: only their keys differ.
func TestEnrollReplacesACertificateOfAnotherKey(t *testing.T) {
	m := newMachine(t)
	if _, err := m.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	certificate := func(kind string) string {
		return filepath.Join(m.dir, "ssh_host_"+kind+"_key"+hostkey.CertificateSuffix)
	}
	before := machinetest.ReadFile(t, certificate("ed25519"))
	if err := os.WriteFile(certificate("ed25519"), machinetest.ReadFile(t, certificate("rsa")), 0o644); err != nil {
		t.Fatal(err)
	}
	o, err := m.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := certificate("ed25519") + " is missing, damaged or for another key"; !strings.Contains(o.Reason, want) {
		t.Errorf("reason %q, want %q", o.Reason, want)
	}
	if after := hostkey.ReadCertificate(certificate("ed25519")); after == nil || after.Key.Type() != ssh.KeyAlgoED25519 {
		t.Errorf("the certificate is %v, was\n%s", after, before)
	}
}

// A folder in place of a file changes nothing, and the message says what to do. Once the
// folder is moved away, everything is as before.
func TestEnrollFindsAFolderInAFilesPlace(t *testing.T) {
	for _, test := range []struct {
		name string
		path func(m *machine) string
		says string
	}{
		{"state", func(m *machine) string { return state.Path(m.stateDir) }, "read state"},
		{"lock", func(m *machine) string { return state.LockPath(m.stateDir) }, "open the lock"},
		{"trusted CAs", func(m *machine) string { return m.caFile }, "read the trusted CAs"},
		{"certificate", func(m *machine) string { return filepath.Join(m.dir, "ssh_host_ed25519_key"+hostkey.CertificateSuffix) }, "install certificates: prepare"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newMachine(t)
			if _, err := m.Enroll(t.Context()); err != nil {
				t.Fatal(err)
			}
			path := test.path(m)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
			before := m.files()
			_, err := m.Enroll(t.Context())
			machinetest.WantError(t, err, fault.Failed, test.says, "a folder is in this file's place")
			if !errors.Is(err, syscall.EISDIR) {
				t.Errorf("error %v does not say that it is a folder", err)
			}
			if after := m.files(); after != before {
				t.Errorf("files differ:\n%s\nwant\n%s", after, before)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if _, err := m.Enroll(t.Context()); err != nil {
				t.Errorf("once the folder is away: %v", err)
			}
		})
	}
}
