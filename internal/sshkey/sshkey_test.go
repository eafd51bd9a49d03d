package sshkey

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"math/big"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

func newSigner(t testing.TB, seed byte) ssh.Signer {
	t.Helper()
	signer, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(slices.Repeat([]byte{seed}, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

func newCertificate(t testing.TB) *ssh.Certificate {
	t.Helper()
	certificate := &ssh.Certificate{Key: newSigner(t, 1).PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"a"}}
	if err := certificate.SignCert(rand.Reader, newSigner(t, 2)); err != nil {
		t.Fatal(err)
	}
	return certificate
}

// Each row is a line that sshd would not read as exactly one key.
func TestAttackLine(t *testing.T) {
	key, other := Line(newSigner(t, 1).PublicKey()), Line(newSigner(t, 2).PublicKey())
	for name, line := range map[string]string{
		"option":                         "cert-authority " + key,
		"options":                        `principals="root",no-pty ` + key,
		"option with a quoted line feed": "environment=\"A=b\nC=d\" " + key,
		"forced command":                 `command="/bin/sh" ` + key,
		"option after a tab":             "cert-authority\t" + key,
		"marker of known_hosts":          "@cert-authority * " + key,
		"host of known_hosts":            "example.com " + key,
		"second line":                    key + "\n" + other,
		"second line after CR":           key + "\r" + other,
		"junk, then the key":             "junk\n" + key,
		"comment, then the key":          "#\n" + key,
		"comment only":                   "# " + key,
		"private key":                    "-----BEGIN OPENSSH PRIVATE KEY-----",
		"configuration":                  "TrustedUserCAKeys /etc/passwd",
		"empty":                          "",
		"blank":                          " \t",
		"only the type":                  "ssh-ed25519",
		"only the key":                   strings.TrimPrefix(key, "ssh-ed25519 "),
		"type and key disagree":          strings.Replace(key, "ssh-ed25519", "ssh-rsa", 1),
		"certificate's type, plain key":  strings.Replace(key, "ssh-ed25519", "ssh-ed25519-cert-v01@openssh.com", 1),
		"type in another case":           strings.Replace(key, "ssh-ed25519", "SSH-ED25519", 1),
		"cut short":                      key[:len(key)-8],
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := Parse(line); err == nil {
				t.Errorf("%q was taken for a %s key", line, got.Type())
			}
		})
	}
}

func TestParse(t *testing.T) {
	key, certificate := newSigner(t, 1).PublicKey(), newCertificate(t)
	for _, test := range []struct {
		line    string
		want    ssh.PublicKey
		comment string
	}{
		{Line(key), key, ""},
		{Line(key) + "\n", key, ""},
		{" " + Line(key) + "\r\n", key, ""},
		{Line(key) + " a  comment", key, "a  comment"},
		{strings.Replace(Line(key), " ", "\t", 1), key, ""},
		{Line(certificate), certificate, ""},
	} {
		got, comment, err := ParseWithComment(test.line)
		if err != nil || Line(got) != Line(test.want) || comment != test.comment {
			t.Errorf("%q: %v, comment %q, error %v", test.line, got, comment, err)
		}
	}
}

func TestCheckKind(t *testing.T) {
	if err := CheckKind(newSigner(t, 1).PublicKey()); err != nil {
		t.Error(err)
	}
	if err := CheckKind(newCertificate(t)); err == nil {
		t.Error("a certificate was accepted")
	}
	const securityKey = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIJjzc2a20RjCvN/0ibH6UpGuN9F9hDvD7x182bOesNhHAAAABHNzaDo="
	key, err := Parse(securityKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckKind(key); err == nil || !strings.Contains(err.Error(), "sk-ssh-ed25519") {
		t.Errorf("a security key: %v", err)
	}
}

func TestIsFingerprint(t *testing.T) {
	good := ssh.FingerprintSHA256(newSigner(t, 1).PublicKey())
	for text, want := range map[string]bool{
		good: true, good + "=": false, good + " ": false, good + "\n": false, good[:20] + "\n" + good[20:]: false, good[:len(good)-1]: false, "": false,
		"SHA256:": false, strings.TrimPrefix(good, "SHA256:"): false, strings.ToLower(good): false,
		good[:len(good)-1] + "/":                              false, // bits without meaning
		"MD5:16:27:ac:a5:76:28:2d:36:63:1b:56:4d:eb:df:a6:48": false,
	} {
		if got := IsFingerprint(text); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestLists(t *testing.T) {
	a, b, c := newSigner(t, 1).PublicKey(), newSigner(t, 2).PublicKey(), newSigner(t, 3).PublicKey()
	keys := []ssh.PublicKey{a, b}
	if got := Lines(keys); !slices.Equal(got, []string{Line(a), Line(b)}) {
		t.Errorf("lines %q", got)
	}
	certificate := newCertificate(t)
	if got := string(File(a, certificate, b)); got != Line(a)+"\n"+Line(certificate)+"\n"+Line(b)+"\n" {
		t.Errorf("file %q", got)
	}
	if got := Fingerprints(keys); !slices.Equal(got, []string{ssh.FingerprintSHA256(a), ssh.FingerprintSHA256(b)}) {
		t.Errorf("fingerprints %q", got)
	}
	if !Contains(keys, b) || Contains(keys, c) {
		t.Error("Contains is wrong")
	}
}

func TestRSABits(t *testing.T) {
	if bits := RSABits(newSigner(t, 1).PublicKey()); bits != 0 {
		t.Errorf("an Ed25519 key has %d bits", bits)
	}
	public, err := ssh.NewPublicKey(&rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 3071), E: 65537})
	if err != nil {
		t.Fatal(err)
	}
	if bits := RSABits(public); bits != 3072 {
		t.Errorf("an RSA key of 3072 bits has %d", bits)
	}
}

func FuzzParse(f *testing.F) {
	key := Line(newSigner(f, 1).PublicKey())
	for _, seed := range []string{key, key + " comment", "cert-authority " + key, key + "\n" + key, Line(newCertificate(f))} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		key, err := Parse(line)
		if err != nil {
			return
		}
		again, err := Parse(Line(key))
		if err != nil || !slices.Equal(again.Marshal(), key.Marshal()) {
			t.Errorf("%q: read again as %v, error %v", line, again, err)
		}
	})
}
