// Package sshkeytest generates SSH keys for tests.
package sshkeytest

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"testing"

	"golang.org/x/crypto/ssh"
)

// NewSigner generates an Ed25519 key.
func NewSigner(t testing.TB) ssh.Signer {
	t.Helper()
	return NewSignerOf(t, "ed25519")
}

// NewSignerOf generates a key of a kind: ed25519, ecdsa-256, ecdsa-384, ecdsa-521, rsa-2048
// or rsa-3072.
func NewSignerOf(t testing.TB, kind string) ssh.Signer {
	t.Helper()
	private, err := newPrivateKey(kind)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatalf("generate a key of kind %q: %v", kind, err)
	}
	return signer
}

func newPrivateKey(kind string) (any, error) {
	switch kind {
	case "ed25519":
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	case "ecdsa-256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ecdsa-384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ecdsa-521":
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "rsa-2048":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "rsa-3072":
		return rsa.GenerateKey(rand.Reader, 3072)
	}
	return nil, nil
}
