package sshd

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
)

// notLoaded returns those of the host keys that sshd cannot read.
//
// Which forms of a private key sshd reads depends on its version and on OpenSSL: before 9.6, no
// Ed25519 key in PKCS #8. It skips even a key of ssh-keygen's without the last line break, or
// with Windows line breaks. Only sshd can tell, so Hallmark asks it about each key that does not
// look like ssh-keygen's.
func (s *Server) notLoaded(ctx context.Context, keys []string) (paths []string) {
	alone := &Server{Program: s.Program, Root: s.Root} // other options could name other keys
	for _, path := range keys {
		data, err := readBounded(filepath.Join("/", s.Root, path))
		usual := err != nil || isUsual(data)
		clear(data)
		if usual {
			continue
		}
		_, err = alone.run(ctx, "-t", "-f", "/dev/null", "-h", path)
		if errors.Is(err, ErrNoHostKeys) {
			paths = append(paths, path)
		}
	}
	return paths
}

// isUsual reports whether every version of sshd reads this form of a private key, which
// ssh-keygen has written since 7.8. A file without a private key needs no answer from sshd, so it
// counts as usual.
func isUsual(data []byte) bool {
	const begin, end = "-----BEGIN OPENSSH PRIVATE KEY-----\n", "\n-----END OPENSSH PRIVATE KEY-----\n"
	return bytes.HasPrefix(data, []byte(begin)) && bytes.HasSuffix(data, []byte(end)) ||
		!bytes.Contains(data, []byte("PRIVATE KEY-----"))
}
