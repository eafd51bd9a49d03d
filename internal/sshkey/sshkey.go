// Package sshkey reads and writes public keys as lines of text, in the form of an
// authorized_keys file (sshd(8), "AUTHORIZED_KEYS FILE FORMAT"): key type, key in base64, and
// optionally a comment.
package sshkey

import (
	"bytes"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

// Parse reads one line with one public key or certificate. Options before the key, a second
// line, and a type that differs from the key's are errors.
func Parse(line string) (ssh.PublicKey, error) {
	key, _, err := ParseWithComment(line)
	return key, err
}

// ParseWithComment is like Parse, and also returns the comment, or "" if there is none.
func ParseWithComment(line string) (key ssh.PublicKey, comment string, err error) {
	line = strings.TrimSpace(line)
	// ssh.ParseAuthorizedKey skips lines that it cannot read, so it could return a key from a
	// second line. sshd would read both.
	if strings.ContainsAny(line, "\r\n") {
		return nil, "", errors.New("more than one line")
	}
	key, comment, options, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil { // the library's error quotes decoders, and text of any length
		return nil, "", errors.New("no key found, or its type is not the one that the line begins with")
	}
	if len(options) > 0 { // sshd would obey it
		return nil, "", fmt.Errorf("option %.100q before the key", options[0])
	}
	if kind, _, _ := strings.Cut(strings.ReplaceAll(line, "\t", " "), " "); kind != key.Type() {
		return nil, "", fmt.Errorf("the line does not begin with the key's type, %q", key.Type())
	}
	return key, comment, nil
}

// CheckKind accepts the kinds of key that sshd generates and that CAs use. A certificate
// brings its own principals, a security key signs more than the message, and DSA is broken.
func CheckKind(key ssh.PublicKey) error {
	switch key.Type() {
	case ssh.KeyAlgoRSA, ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521:
		return nil
	}
	return fmt.Errorf("key type %.64q is not accepted: it must be RSA, Ed25519 or ECDSA, and no certificate", key.Type())
}

// RSABits returns the size of an RSA key, and 0 for other keys.
func RSABits(key ssh.PublicKey) int {
	if k, ok := key.(ssh.CryptoPublicKey); ok {
		if public, ok := k.CryptoPublicKey().(*rsa.PublicKey); ok {
			return public.N.BitLen()
		}
	}
	return 0
}

// Line returns a key or certificate as a line, without comment and newline.
func Line(key ssh.PublicKey) string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(key)), "\n")
}

// Lines returns the Line of each key.
func Lines(keys []ssh.PublicKey) []string {
	lines := make([]string, len(keys))
	for i, key := range keys {
		lines[i] = Line(key)
	}
	return lines
}

// File returns the content of a file with the keys or certificates, each on a line.
func File(keys ...ssh.PublicKey) []byte {
	var b bytes.Buffer
	for _, key := range keys {
		b.Write(ssh.MarshalAuthorizedKey(key))
	}
	return b.Bytes()
}

// Fingerprints returns the fingerprint of each key, as ssh.FingerprintSHA256 writes it.
func Fingerprints(keys []ssh.PublicKey) []string {
	prints := make([]string, len(keys))
	for i, key := range keys {
		prints[i] = ssh.FingerprintSHA256(key)
	}
	return prints
}

// IsFingerprint reports whether a text has the form of ssh.FingerprintSHA256 and of
// `ssh-keygen -l`: "SHA256:" and the hash in base64 without padding.
func IsFingerprint(text string) bool {
	encoded, ok := strings.CutPrefix(text, "SHA256:")
	if !ok || strings.ContainsAny(encoded, "\r\n") { // the decoder ignores it
		return false
	}
	sum, err := base64.RawStdEncoding.Strict().DecodeString(encoded)
	return err == nil && len(sum) == 32
}

// Contains reports whether key is one of keys.
func Contains(keys []ssh.PublicKey, key ssh.PublicKey) bool {
	return slices.ContainsFunc(keys, func(k ssh.PublicKey) bool { return bytes.Equal(k.Marshal(), key.Marshal()) })
}
