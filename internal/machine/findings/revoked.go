package findings

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // the format has it
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"golang.org/x/crypto/ssh"
)

// Revokes reports whether the content of a RevokedKeys file revokes a key. The content is a
// list of public keys, or a key revocation list (OpenSSH's PROTOCOL.krl). If it revokes a CA,
// it revokes all of that CA's certificates. The error says what is wrong with the content: sshd
// then refuses all keys.
func Revokes(data []byte, key ssh.PublicKey) (bool, error) {
	if list, ok := bytes.CutPrefix(data, []byte("SSHKRL\n\x00")); ok {
		return krlRevokes(list, key)
	}
	found := false
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		// sshd (sshkey_in_file) skips only these lines. It does not skip an empty line that ends as on Windows.
		line = strings.TrimLeft(strings.TrimSuffix(line, "\n"), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		revoked, err := sshkey.Parse(line)
		if err != nil {
			return false, fmt.Errorf("line %d is not a public key", number)
		}
		found = found || bytes.Equal(revoked.Marshal(), key.Marshal())
	}
	return found, nil
}

var errKRL = errors.New("key revocation list is damaged")

// Sections of a key revocation list.
const (
	krlExplicitKeys = 2
	krlSHA1         = 3
	krlSHA256       = 5
)

// krlRevokes reads what follows the magic number.
func krlRevokes(list []byte, key ssh.PublicKey) (bool, error) {
	var header struct {
		Format           uint32
		Version, Date    uint64
		Flags            uint64
		Reserved, Commnt string
		Sections         []byte `ssh:"rest"`
	}
	if err := ssh.Unmarshal(list, &header); err != nil {
		return false, fmt.Errorf("%w: %w", errKRL, err)
	}
	blob := key.Marshal()
	sum1, sum256 := sha1.Sum(blob), sha256.Sum256(blob) //nolint:gosec // the format has it
	wanted := map[byte][]byte{krlExplicitKeys: blob, krlSHA1: sum1[:], krlSHA256: sum256[:]}
	for rest := header.Sections; len(rest) > 0; {
		kind := rest[0]
		section, after, ok := cutString(rest[1:])
		if !ok {
			return false, errKRL
		}
		rest = after
		for want := wanted[kind]; want != nil && len(section) > 0; {
			entry, next, ok := cutString(section)
			if !ok {
				return false, errKRL
			}
			if bytes.Equal(entry, want) {
				return true, nil
			}
			section = next
		}
	}
	return false, nil
}

// cutString takes a string (RFC 4251, section 5) from the front.
func cutString(data []byte) (s, rest []byte, ok bool) {
	var m struct {
		S    []byte
		Rest []byte `ssh:"rest"`
	}
	if err := ssh.Unmarshal(data, &m); err != nil {
		return nil, nil, false
	}
	return m.S, m.Rest, true
}
