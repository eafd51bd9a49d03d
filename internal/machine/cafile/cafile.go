// Package cafile reads and writes lists of CA keys, above all the list that sshd trusts.
package cafile

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// maxKeys bounds a list of CA keys. A rotation has two; clusters with HSMs
// have one per auth server.
const maxKeys = 16

// ParseKeys reads public keys of CAs, and drops duplicates.
func ParseKeys(lines []string) ([]ssh.PublicKey, error) {
	if len(lines) == 0 {
		return nil, errors.New("no keys")
	}
	if len(lines) > maxKeys {
		return nil, fmt.Errorf("%d keys, more than %d", len(lines), maxKeys)
	}
	var keys []ssh.PublicKey
	for i, line := range lines {
		key, err := ParseKey(line)
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", i+1, err)
		}
		if !sshkey.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// ParseKey reads the public key of a CA: a plain key without options. In sshd's file, a line
// such as "cert-authority …" or one with a certificate would not mean what it seems to say.
func ParseKey(line string) (ssh.PublicKey, error) {
	key, err := sshkey.Parse(line)
	if err != nil {
		return nil, err
	}
	return key, sshkey.CheckKind(key)
}

// Parse reads a CA file as sshd does: it skips empty lines and comments.
func Parse(data []byte) ([]ssh.PublicKey, error) {
	var lines []string
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return ParseKeys(lines)
}

// Render returns the content of a CA file: the cluster's CAs, and extra ones that the
// machine's configuration names. It writes only parsed keys, so nothing in an answer can add a
// line.
func Render(keys []ssh.PublicKey, extra ...ssh.PublicKey) []byte {
	var b bytes.Buffer
	b.WriteString("# OpenSSH user CAs of the Teleport cluster. Written by hallmark, which replaces\n")
	b.WriteString("# them when the cluster's change: changes made here are lost.\n")
	b.Write(sshkey.File(keys...))
	extra = slices.DeleteFunc(slices.Clone(extra), func(e ssh.PublicKey) bool { return sshkey.Contains(keys, e) })
	if len(extra) > 0 {
		b.WriteString("# Not the cluster's: extra_user_cas in /etc/hallmark/config.yaml.\n")
	}
	b.Write(sshkey.File(extra...))
	return b.Bytes()
}

// Compare returns the fingerprints of the keys that a CA file gained, and of those that it
// lost. A file that cannot be read counts as one without keys.
func Compare(before, after []byte) (trusted, retired []string) {
	was, is := Fingerprints(before), Fingerprints(after)
	for _, f := range is {
		if !slices.Contains(was, f) {
			trusted = append(trusted, f)
		}
	}
	for _, f := range was {
		if !slices.Contains(is, f) {
			retired = append(retired, f)
		}
	}
	return trusted, retired
}

// Fingerprints returns the SHA-256 fingerprints of the keys in a CA file, in its order.
func Fingerprints(caFile []byte) []string {
	keys, err := Parse(caFile)
	if err != nil {
		return nil
	}
	return sshkey.Fingerprints(keys)
}
