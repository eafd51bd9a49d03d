package hostcert_test

import (
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

var now = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)

const (
	name = "web-i-0123456789abcdef0"
	week = 7 * 24 * time.Hour
)

func newRSASigner(t testing.TB, algorithm string) ssh.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerWithAlgorithms(signerOf(t, key).(ssh.AlgorithmSigner), []string{algorithm})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func signerOf(t testing.TB, key any) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// certified returns the signer with a certificate of the CA as its key.
func certified(t testing.TB, s, ca ssh.Signer) ssh.Signer {
	t.Helper()
	cert := &ssh.Certificate{Key: s.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"x"}, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	nested, err := ssh.NewCertSigner(cert, s)
	if err != nil {
		t.Fatal(err)
	}
	return nested
}

// sign signs the certificate, as SignCert does, which refuses a certificate as the key.
func sign(t testing.TB, cert *ssh.Certificate, signer ssh.Signer) {
	t.Helper()
	if _, nested := signer.PublicKey().(*ssh.Certificate); !nested {
		if err := cert.SignCert(rand.Reader, signer); err != nil {
			t.Fatal(err)
		}
		return
	}
	cert.Nonce, cert.SignatureKey = []byte("nonce"), signer.PublicKey()
	unsigned := cert.Marshal()
	signature, err := signer.Sign(rand.Reader, unsigned[:len(unsigned)-4]) // without the empty signature's length
	if err != nil {
		t.Fatal(err)
	}
	cert.Signature = signature
}

// TestCheck changes a good certificate before it is signed, or changes what is wanted, and
// expects the error to name the property.
func TestCheck(t *testing.T) {
	host, other := sshkeytest.NewSigner(t), sshkeytest.NewSigner(t)
	ca, retired, stranger := sshkeytest.NewSigner(t), sshkeytest.NewSigner(t), sshkeytest.NewSigner(t)
	nested := certified(t, stranger, ca)
	at := func(d time.Duration) uint64 { return uint64(now.Add(d).Unix()) }

	tests := []struct {
		name   string
		change func(c *ssh.Certificate, w *hostcert.Want)
		signer ssh.Signer // CA if nil
		want   string     // part of the error; empty = good
	}{
		{name: "good"},
		{name: "principals in another order", change: func(c *ssh.Certificate, _ *hostcert.Want) {
			c.ValidPrincipals = []string{"uuid", name}
		}},
		{name: "signed by the second CA of a rotation", signer: retired},
		{name: "signed with rsa-sha2-512", signer: newRSASigner(t, ssh.KeyAlgoRSASHA512)},
		{name: "signed with rsa-sha2-256", signer: newRSASigner(t, ssh.KeyAlgoRSASHA256)},
		{name: "starts within the skew", change: func(c *ssh.Certificate, _ *hostcert.Want) {
			c.ValidAfter = at(hostcert.MaxClockSkew)
		}},
		{name: "lives the longest it may", change: func(c *ssh.Certificate, _ *hostcert.Want) {
			c.ValidBefore = at(week + hostcert.MaxClockSkew)
		}},
		{name: "valid since ever", change: func(c *ssh.Certificate, _ *hostcert.Want) { c.ValidAfter = 0 }},
		{name: "Teleport's extensions", change: func(c *ssh.Certificate, _ *hostcert.Want) {
			c.Extensions = map[string]string{"x-teleport-role": "Nop", "x-teleport-authority": "c"}
		}},
		{name: "a wanted role", change: func(c *ssh.Certificate, w *hostcert.Want) {
			c.Extensions = map[string]string{hostcert.RoleExtension: "Nop"}
			w.Roles = []string{"ProvisionToken", "Nop"}
		}},
		{
			name: "another role",
			change: func(c *ssh.Certificate, w *hostcert.Want) {
				c.Extensions = map[string]string{hostcert.RoleExtension: "Node"}
				w.Roles = []string{"ProvisionToken", "Nop"}
			},
			want: `role "Node" is none of ["ProvisionToken" "Nop"]`,
		}, {
			name: "another role that is alike",
			change: func(c *ssh.Certificate, w *hostcert.Want) {
				c.Extensions = map[string]string{hostcert.RoleExtension: "nop"}
				w.Roles = []string{"Nop"}
			},
			want: `role "nop" is none of`,
		}, {
			name:   "no role, one wanted",
			change: func(_ *ssh.Certificate, w *hostcert.Want) { w.Roles = []string{"Nop"} },
			want:   "no extension x-teleport-role",
		}, {
			name: "an empty role, none permitted",
			change: func(c *ssh.Certificate, w *hostcert.Want) {
				c.Extensions = map[string]string{hostcert.RoleExtension: ""}
				w.Roles = []string{}
			},
			want: `role "" is none of`,
		},

		{
			name:   "user certificate",
			change: func(c *ssh.Certificate, _ *hostcert.Want) { c.CertType = ssh.UserCert },
			want:   "type 1 is not host",
		}, {
			name:   "other key",
			change: func(c *ssh.Certificate, _ *hostcert.Want) { c.Key = other.PublicKey() },
			want:   "is not the host key " + ssh.FingerprintSHA256(host.PublicKey()),
		}, {
			name:   "no principals",
			change: func(c *ssh.Certificate, _ *hostcert.Want) { c.ValidPrincipals = nil },
			want:   "matches every host",
		}, {
			name: "no principals, none wanted",
			change: func(c *ssh.Certificate, w *hostcert.Want) {
				c.ValidPrincipals, w.Principals = nil, nil
			},
			want: "matches every host",
		}, {
			name: "an extra principal",
			change: func(c *ssh.Certificate, _ *hostcert.Want) {
				c.ValidPrincipals = append(c.ValidPrincipals, "localhost")
			},
			want: "are not exactly",
		}, {
			name:   "a missing principal",
			change: func(c *ssh.Certificate, _ *hostcert.Want) { c.ValidPrincipals = []string{name} },
			want:   "are not exactly",
		}, {
			name:   "one principal twice in place of another",
			change: func(c *ssh.Certificate, _ *hostcert.Want) { c.ValidPrincipals = []string{name, name} },
			want:   "are not exactly",
		}, {
			name: "principal in another case",
			change: func(c *ssh.Certificate, _ *hostcert.Want) {
				c.ValidPrincipals = []string{strings.ToUpper(name), "uuid"}
			},
			want: "are not exactly",
		}, {
			name: "critical option",
			change: func(c *ssh.Certificate, _ *hostcert.Want) {
				c.CriticalOptions = map[string]string{"force-command": "true"}
			},
			want: `host certificate: critical option "force-command"`,
		}, {
			name:   "no expiry",
			change: func(c *ssh.Certificate, _ *hostcert.Want) { c.ValidBefore = ssh.CertTimeInfinity },
			want:   "no expiry",
		}, {
			name:   "an end so far off that it wraps around",
			change: func(c *ssh.Certificate, _ *hostcert.Want) { c.ValidBefore = ssh.CertTimeInfinity - 1 },
			want:   "after the year 9999",
		}, {
			name: "one second too long",
			change: func(c *ssh.Certificate, _ *hostcert.Want) {
				c.ValidBefore = at(week + hostcert.MaxClockSkew + time.Second)
			},
			want: "more than 168h0m0s from now",
		}, {
			name: "not yet good, beyond the skew",
			change: func(c *ssh.Certificate, _ *hostcert.Want) {
				c.ValidAfter = at(hostcert.MaxClockSkew + time.Second)
			},
			want: "in the future",
		}, {
			name:   "start that wraps around",
			change: func(c *ssh.Certificate, _ *hostcert.Want) { c.ValidAfter = 1 << 63 },
			want:   "in the future",
		}, {
			name:   "expired",
			change: func(c *ssh.Certificate, _ *hostcert.Want) { c.ValidBefore = at(0) },
			want:   "expired 2026-05-04T03:02:01Z",
		}, {
			name: "expires before it starts",
			change: func(c *ssh.Certificate, _ *hostcert.Want) {
				c.ValidAfter, c.ValidBefore = at(2*time.Minute), at(time.Minute)
			},
			want: "expires before it starts",
		}, {
			name:   "another CA",
			signer: stranger,
			want:   hostcert.ErrUnknownCA.Error(),
		}, {
			name:   "no CAs",
			change: func(_ *ssh.Certificate, w *hostcert.Want) { w.CAs = nil },
			want:   hostcert.ErrUnknownCA.Error(),
		}, {
			name:   "signed by itself",
			signer: host,
			want:   hostcert.ErrUnknownCA.Error(),
		}, {
			name:   "CVE-2025-49825 of Teleport: a certificate as the signing key",
			signer: nested,
			want:   "signed by a certificate",
		}, {
			name: "the same, where the cluster tells it among its CAs",
			change: func(_ *ssh.Certificate, w *hostcert.Want) {
				w.CAs = append(w.CAs, nested.PublicKey())
			},
			signer: nested,
			want:   "signed by a certificate",
		}, {
			name: "a CA's own key",
			change: func(c *ssh.Certificate, w *hostcert.Want) {
				c.Key, w.Key = retired.PublicKey(), retired.PublicKey()
			},
			want: "is a CA's own",
		}, {
			name:   "SHA-1 signature of an RSA CA",
			signer: newRSASigner(t, ssh.KeyAlgoRSA),
			want:   "algorithm ssh-rsa uses SHA-1",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cert := &ssh.Certificate{
				CertType:        ssh.HostCert,
				Key:             host.PublicKey(),
				ValidPrincipals: []string{name, "uuid"},
				ValidAfter:      at(-time.Minute),
				ValidBefore:     at(week),
			}
			want := hostcert.Want{
				Key:         host.PublicKey(),
				Principals:  []string{name, "uuid"},
				CAs:         []ssh.PublicKey{ca.PublicKey(), retired.PublicKey()},
				MaxLifetime: week,
			}
			signer := ca
			if tt.signer != nil {
				signer = tt.signer
			}
			if signer.PublicKey().Type() == ssh.KeyAlgoRSA {
				want.CAs = append(want.CAs, signer.PublicKey())
			}
			if tt.change != nil {
				tt.change(cert, &want)
			}
			sign(t, cert, signer)
			expect(t, hostcert.Check(cert, want, now), tt.want)
		})
	}
}

// If the fields of a certificate change after it was signed, it still names the right CA, but
// the signature does not match.
func TestCheckChangedAfterSigning(t *testing.T) {
	host, ca := sshkeytest.NewSigner(t), sshkeytest.NewSigner(t)
	cert := &ssh.Certificate{
		CertType:        ssh.HostCert,
		Key:             host.PublicKey(),
		ValidPrincipals: []string{"other"},
		ValidBefore:     uint64(now.Add(time.Hour).Unix()),
	}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	cert.ValidPrincipals = []string{name}
	expect(t, hostcert.Check(cert, hostcert.Want{
		Key:         host.PublicKey(),
		Principals:  []string{name},
		CAs:         []ssh.PublicKey{ca.PublicKey()},
		MaxLifetime: time.Hour,
	}, now), "signature: ")
}

func TestUnknownCAIsTyped(t *testing.T) {
	host := sshkeytest.NewSigner(t)
	cert := &ssh.Certificate{
		CertType:        ssh.HostCert,
		Key:             host.PublicKey(),
		ValidPrincipals: []string{name},
		ValidBefore:     uint64(now.Add(time.Hour).Unix()),
	}
	if err := cert.SignCert(rand.Reader, sshkeytest.NewSigner(t)); err != nil {
		t.Fatal(err)
	}
	err := hostcert.Check(cert, hostcert.Want{
		Key: host.PublicKey(), Principals: []string{name}, MaxLifetime: time.Hour,
	}, now)
	if !errors.Is(err, hostcert.ErrUnknownCA) {
		t.Errorf("got %v, want ErrUnknownCA", err)
	}
}

func TestParse(t *testing.T) {
	host := sshkeytest.NewSigner(t)
	cert := &ssh.Certificate{
		CertType: ssh.HostCert, Key: host.PublicKey(), ValidPrincipals: []string{name}, ValidBefore: 1,
	}
	if err := cert.SignCert(rand.Reader, sshkeytest.NewSigner(t)); err != nil {
		t.Fatal(err)
	}
	line := sshkey.Line(cert)
	plain := sshkey.Line(host.PublicKey())

	tests := []struct {
		name, line, want string
	}{
		{"good", line, ""},
		{"trailing newline and comment", line + " root@web\n", ""},
		{"empty", "", "no key found"},
		{"plain key", plain, "a plain ssh-ed25519 key"},
		{"options", "no-pty " + line, `option "no-pty"`},
		{"garbage before it", "garbage\n" + line, "more than one line"},
		{"two certificates", line + "\n" + line, "more than one line"},
		{"truncated", line[:len(line)/2], "parse certificate"},
		{"over-long", line + strings.Repeat(" ", 32<<10), "more than 32768"},
		{"HTML", "<html>", "parse certificate"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := hostcert.Parse(tt.line)
			expect(t, err, tt.want)
			if err == nil && string(got.Marshal()) != string(cert.Marshal()) {
				t.Error("another certificate came back")
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	host := sshkeytest.NewSigner(f)
	cert := &ssh.Certificate{CertType: ssh.HostCert, Key: host.PublicKey(), ValidPrincipals: []string{name}}
	if err := cert.SignCert(rand.Reader, host); err != nil {
		f.Fatal(err)
	}
	f.Add(string(ssh.MarshalAuthorizedKey(cert)))
	f.Add(string(ssh.MarshalAuthorizedKey(host.PublicKey())))
	f.Fuzz(func(t *testing.T, line string) {
		cert, err := hostcert.Parse(line)
		if err != nil {
			return
		}
		want := hostcert.Want{Key: host.PublicKey(), Principals: []string{name}, MaxLifetime: week}
		if hostcert.Check(cert, want, now) == nil {
			t.Error("accepted without any CA")
		}
	})
}

// expect fails the test unless err contains the text, or is nil if that is empty.
func expect(t *testing.T, err error, text string) {
	t.Helper()
	switch {
	case text == "" && err != nil:
		t.Errorf("unexpected error: %v", err)
	case text != "" && err == nil:
		t.Errorf("no error, want %q", text)
	case text != "" && !strings.Contains(err.Error(), text):
		t.Errorf("got error %q, want %q in it", err, text)
	}
}
