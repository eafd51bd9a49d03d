package teleport

import (
	"crypto/ed25519"
	"crypto/rand"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// Each row is what a faulty auth service could return as a CA's public key.
func TestAttackCALine(t *testing.T) {
	signer, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	certificate := &ssh.Certificate{Key: signer.PublicKey(), CertType: ssh.UserCert}
	if err := certificate.SignCert(rand.Reader, signer); err != nil {
		t.Fatal(err)
	}
	key := sshkey.Line(signer.PublicKey())
	for name, line := range map[string]string{
		"option":                "cert-authority " + key,
		"forced command":        `command="/bin/sh" ` + key,
		"second line":           key + "\n" + key,
		"junk, then the key":    "junk\n" + key,
		"comment, then the key": "# a comment\n" + key,
		"certificate":           string(ssh.MarshalAuthorizedKey(certificate)),
		"known_hosts line":      "@cert-authority * " + key,
		"empty":                 "",
		"cut short":             key[:len(key)-8],
	} {
		if got, err := parseCA([]byte(line)); err == nil {
			t.Errorf("%s: %q was taken for a %s key", name, line, got.Type())
		}
	}
	for _, line := range []string{key, key + "\n", key + " a comment\n"} {
		if _, err := parseCA([]byte(line)); err != nil {
			t.Errorf("%q: %v", line, err)
		}
	}
}
