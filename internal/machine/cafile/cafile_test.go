package cafile_test

import (
	"crypto/rand"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// Each row is a line that a faulty signer, or an attacker in its place, passes off as a CA.
// sshd would read more from its file than one key.
func TestAttackCALine(t *testing.T) {
	key := sshkey.Line(machinetest.SeededSigner(t, 1).PublicKey())
	for name, line := range map[string]string{
		"option":                         "cert-authority " + key,
		"options":                        `principals="root",no-pty ` + key,
		"option with a quoted line feed": "environment=\"A=b\nC=d\" " + key,
		"forced command":                 `command="/bin/sh" ` + key,
		"marker of known_hosts":          "@cert-authority * " + key,
		"second line":                    key + "\n" + sshkey.Line(machinetest.SeededSigner(t, 2).PublicKey()),
		"second line after CR":           key + "\r" + sshkey.Line(machinetest.SeededSigner(t, 2).PublicKey()),
		"junk, then the key":             "junk\n" + key,
		"comment, then the key":          "#\n" + key,
		"comment only":                   "# " + key,
		"certificate":                    certificateLine(t, machinetest.SeededSigner(t, 1), "a"),
		"private key":                    "-----BEGIN OPENSSH PRIVATE KEY-----",
		"configuration":                  "TrustedUserCAKeys /etc/passwd",
		"path":                           "/etc/ssh/other_ca.pub",
		"empty":                          "",
		"blank":                          " \t",
		"type and blob disagree":         strings.Replace(key, "ssh-ed25519", "ssh-rsa", 1),
		"cut short":                      key[:len(key)-8],
	} {
		t.Run(name, func(t *testing.T) {
			if keys, err := cafile.ParseKeys([]string{key, line}); err == nil {
				t.Errorf("%q was taken for %d keys", line, len(keys))
			}
		})
	}
}

// A comment is the one thing that may stand beside the key, and none of it is
// written.
func TestCAFileHasNothingButKeys(t *testing.T) {
	key := machinetest.SeededSigner(t, 1).PublicKey()
	keys, err := cafile.ParseKeys([]string{sshkey.Line(key) + " clustername=c\t\x00 cert-authority"})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(cafile.Render(keys))), "\n")
	if last := lines[len(lines)-1]; last != sshkey.Line(key) || len(lines) != 3 {
		t.Errorf("lines %q", lines)
	}
}

func FuzzParse(f *testing.F) {
	key := sshkey.Line(machinetest.SeededSigner(f, 1).PublicKey())
	f.Add([]byte("# comment\n" + key + "\n"))
	f.Add([]byte("cert-authority " + key))
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := cafile.Parse(data)
		if err != nil {
			return
		}
		again, err := cafile.Parse(cafile.Render(keys))
		if err != nil || len(again) != len(keys) {
			t.Errorf("%d keys, but read again %d: %v", len(keys), len(again), err)
		}
	})
}

func TestParseKeys(t *testing.T) {
	key := sshkey.Line(sshkeytest.NewSigner(t).PublicKey())
	for _, test := range []struct {
		name  string
		lines []string
		want  string
	}{
		{"one", []string{key}, ""},
		{"with comment", []string{key + " clustername=x"}, ""},
		{"none", nil, "no keys"},
		{"two lines in one", []string{"junk\n" + key}, "more than one line"},
		{"options", []string{"cert-authority " + key}, `option "cert-authority"`},
		{"certificate", []string{certificateLine(t, machinetest.SeededSigner(t, 1), "a")}, "is not accepted"},
		{"junk", []string{key, "junk"}, "key 2: "},
		{"too many", make([]string, 16+1), "17 keys, more than 16"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := cafile.ParseKeys(test.lines)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

func certificateLine(t testing.TB, ca ssh.Signer, name string) string {
	t.Helper()
	certificate := &ssh.Certificate{Key: ca.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{name}}
	if err := certificate.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	return sshkey.Line(certificate)
}
