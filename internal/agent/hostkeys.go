package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/sshd"
)

// hostKey is one of sshd's host keys that can have a certificate.
type hostKey struct {
	path        string // of the private key
	public      ssh.PublicKey
	certificate *ssh.Certificate // what its certificate file holds, or nil
	algorithms  []string         // by which sshd would present a certificate
}

// line returns the public key in authorized_keys form, without comment.
func (k hostKey) line() string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(k.public)), "\n")
}

// certificatePath is derived from the key's own path and nothing else: no answer
// of anyone chooses where hallmark writes.
func (k hostKey) certificatePath() string { return k.path + "-cert.pub" }

const hintInstall = "run 'hallmark install' on this machine, or bake it into the image"

// findHostKeys returns the keys that sshd uses, for which a certificate line was
// baked, and of which a certificate is any use. The private keys stay unread.
func findHostKeys(conf *sshd.Effective) ([]hostKey, error) {
	var keys []hostKey
	var passed []string
	for _, path := range conf.HostKeys {
		key, why, err := readHostKey(path, conf)
		if err != nil {
			return nil, err
		}
		if why != "" {
			passed = append(passed, fmt.Sprintf("%s: %s", path, why))
			continue
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, failf(Temporary, "see that 'ssh-keygen -A' or cloud-init made host keys, and that 'hallmark install' was run",
			"none of sshd's host keys can be certified (%s)", strings.Join(passed, "; "))
	}
	return keys[:min(len(keys), protocol.MaxHostKeys)], nil
}

// readHostKey reads a public host key and its certificate. why says what keeps a
// key from being certified.
func readHostKey(path string, conf *sshd.Effective) (key hostKey, why string, err error) {
	data, err := os.ReadFile(path + ".pub")
	if errors.Is(err, fs.ErrNotExist) {
		return hostKey{}, "there is no " + path + ".pub", nil
	}
	if err != nil {
		return hostKey{}, "", fmt.Errorf("read host key: %w", err)
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey(data)
	if err != nil {
		return hostKey{}, "", fmt.Errorf("read host key %s.pub: %w", path, err)
	}
	key = hostKey{path: path, public: public}
	if why := unacceptable(key); why != "" {
		return hostKey{}, why, nil
	}
	if !slices.Contains(conf.HostCertificates, key.certificatePath()) {
		return hostKey{}, "sshd's configuration has no line HostCertificate " + key.certificatePath(), nil
	}
	if key.algorithms = conf.CertAlgorithms(public.Type()); len(key.algorithms) == 0 {
		return hostKey{}, "sshd's HostKeyAlgorithms rule out its certificates", nil
	}
	key.certificate = readCertificate(key.certificatePath())
	return key, "", nil
}

// unacceptable returns why the signer would refuse a key, for example DSA.
func unacceptable(key hostKey) string {
	if _, err := identity.ParseHostKeys([]string{key.line()}); err != nil {
		return err.Error()
	}
	return ""
}

// readCertificate returns the certificate in a file, or nil if there is none that
// can be read: either way a new one is needed.
func readCertificate(path string) *ssh.Certificate {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	cert, err := hostcert.Parse(string(data))
	if err != nil {
		return nil
	}
	return cert
}

// signBinding proves that this machine holds the host keys. Only here are private
// keys read; they are used and forgotten.
func signBinding(keys []hostKey, b protocol.Binding) ([]string, error) {
	signatures := make([]string, 0, len(keys))
	for _, key := range keys {
		data, err := os.ReadFile(key.path)
		if err != nil {
			return nil, fmt.Errorf("read host key: %w", err)
		}
		signer, err := ssh.ParsePrivateKey(data)
		clear(data)
		if err != nil {
			return nil, fmt.Errorf("read host key %s: %w", key.path, err)
		}
		if string(signer.PublicKey().Marshal()) != string(key.public.Marshal()) {
			return nil, failf(Failed, fmt.Sprintf("make the public key again: ssh-keygen -y -f %s > %s.pub", key.path, key.path),
				"%s.pub is not the public key of %s", key.path, key.path)
		}
		signature, err := identity.SignBinding(signer, b)
		if err != nil {
			return nil, fmt.Errorf("sign with %s: %w", key.path, err)
		}
		signatures = append(signatures, signature)
	}
	return signatures, nil
}
