package agent

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// maxAuthorities bounds a list of CA keys. A rotation has two; clusters with HSMs
// have one per auth server.
const maxAuthorities = 16

// parseAuthorities reads public keys of CAs: plain keys, distinct, without options.
// A line such as "cert-authority …" or one with a certificate would not mean in
// sshd's file what it seems to say.
func parseAuthorities(lines []string) ([]ssh.PublicKey, error) {
	if len(lines) == 0 {
		return nil, errors.New("no keys")
	}
	if len(lines) > maxAuthorities {
		return nil, fmt.Errorf("%d keys, more than %d", len(lines), maxAuthorities)
	}
	var keys []ssh.PublicKey
	seen := map[string]bool{}
	for i, line := range lines {
		key, err := parseAuthority(line)
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

func parseAuthority(line string) (ssh.PublicKey, error) {
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

// parseAuthorityFile reads a CA file as sshd does: empty lines and comments do not
// count.
func parseAuthorityFile(data []byte) ([]ssh.PublicKey, error) {
	var lines []string
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return parseAuthorities(lines)
}

// renderAuthorities returns the content of a CA file. It is made of parsed keys
// only, so that nothing in an answer can add a line.
func renderAuthorities(keys []ssh.PublicKey) []byte {
	var b bytes.Buffer
	b.WriteString("# OpenSSH user CAs of the Teleport cluster. Written by hallmark, which replaces\n")
	b.WriteString("# them at enrollment: changes made here are lost.\n")
	for _, key := range keys {
		b.Write(ssh.MarshalAuthorizedKey(key))
	}
	return b.Bytes()
}
