// Package cafile reads and writes lists of CA keys, above all the one that sshd trusts.
package cafile

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

// maxKeys bounds a list of CA keys. A rotation has two; clusters with HSMs
// have one per auth server.
const maxKeys = 16

// ParseKeys reads public keys of CAs: plain keys, distinct, without options.
// A line such as "cert-authority …" or one with a certificate would not mean in
// sshd's file what it seems to say.
func ParseKeys(lines []string) ([]ssh.PublicKey, error) {
	if len(lines) == 0 {
		return nil, errors.New("no keys")
	}
	if len(lines) > maxKeys {
		return nil, fmt.Errorf("%d keys, more than %d", len(lines), maxKeys)
	}
	var keys []ssh.PublicKey
	seen := map[string]bool{}
	for i, line := range lines {
		key, err := parseKey(line)
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", i+1, err)
		}
		if id := string(key.Marshal()); !seen[id] {
			seen[id] = true
			keys = append(keys, key)
		}
	}
	return keys, nil
}

func parseKey(line string) (ssh.PublicKey, error) {
	// The parser passes over lines that it cannot read, so it gets only one.
	if strings.ContainsAny(strings.TrimSpace(line), "\r\n") {
		return nil, errors.New("more than one line")
	}
	key, _, options, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return nil, err
	}
	if len(options) > 0 {
		return nil, fmt.Errorf("option %q before the key", options[0])
	}
	switch key.Type() {
	case ssh.KeyAlgoRSA, ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521:
		return key, nil
	}
	return nil, fmt.Errorf("key type %q cannot be a CA's", key.Type())
}

// Parse reads a CA file as sshd does: empty lines and comments do not
// count.
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

// Render returns the content of a CA file: the cluster's CAs, and extra ones
// that the machine's configuration names. It is made of parsed keys only, so that nothing
// in an answer can add a line.
func Render(keys []ssh.PublicKey, extra ...ssh.PublicKey) []byte {
	var b bytes.Buffer
	b.WriteString("# OpenSSH user CAs of the Teleport cluster. Written by hallmark, which replaces\n")
	b.WriteString("# them when the cluster's change: changes made here are lost.\n")
	for _, key := range keys {
		b.Write(ssh.MarshalAuthorizedKey(key))
	}
	extra = slices.DeleteFunc(slices.Clone(extra), func(e ssh.PublicKey) bool {
		return slices.ContainsFunc(keys, func(k ssh.PublicKey) bool { return bytes.Equal(k.Marshal(), e.Marshal()) })
	})
	if len(extra) > 0 {
		b.WriteString("# Not the cluster's: extra_user_cas in /etc/hallmark/config.yaml.\n")
	}
	for _, key := range extra {
		b.Write(ssh.MarshalAuthorizedKey(key))
	}
	return b.Bytes()
}

// Lines returns keys as lines of an authorized_keys file, without comments.
func Lines(keys []ssh.PublicKey) (lines []string) {
	for _, key := range keys {
		lines = append(lines, Line(key))
	}
	return lines
}

// Line returns a key as a line of an authorized_keys file, without a comment.
func Line(key ssh.PublicKey) string {
	return string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(key)))
}

// Compare returns the fingerprints of the keys that are new in a CA file, and of
// those that are gone. A file that cannot be read trusted nobody.
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
func Fingerprints(caFile []byte) (all []string) {
	keys, err := Parse(caFile)
	if err != nil {
		return nil
	}
	for _, key := range keys {
		all = append(all, ssh.FingerprintSHA256(key))
	}
	return all
}
