package identity

import (
	"bytes"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

const (
	// Sizes of RSA host keys in bits. Below the minimum they are weak. Above the maximum,
	// verifying a signature costs the signer more than making it costs an attacker.
	minRSABits = 2048
	maxRSABits = 8192

	// An RSA key of 8192 bits needs a line of 1.4 KB, and its SSHSIG 3 KB.
	maxHostKeyLine     = 2 << 10
	maxHostKeySSHSIG   = 4 << 10
	sshsigArmorPrefix  = "-----BEGIN " + sshsig.PEMType + "-----\n"
	sshsigHash         = sshsig.HashSHA512
	sshsigRSASignature = ssh.KeyAlgoRSASHA512
)

// ParseHostKeys parses the host keys of a request, in authorized_keys form:
// between one and protocol.MaxHostKeys, all distinct, each a plain Ed25519, ECDSA
// or RSA key without options or comment.
func ParseHostKeys(lines []string) ([]ssh.PublicKey, error) {
	if len(lines) == 0 {
		return nil, errors.New("no host keys")
	}
	if len(lines) > protocol.MaxHostKeys {
		return nil, fmt.Errorf("%d host keys, more than %d", len(lines), protocol.MaxHostKeys)
	}
	keys := make([]ssh.PublicKey, 0, len(lines))
	seen := make(map[string]bool, len(lines))
	for i, line := range lines {
		key, err := parseHostKey(line)
		if err != nil {
			return nil, fmt.Errorf("host key %d: %w", i+1, err)
		}
		if seen[line] {
			return nil, fmt.Errorf("host key %d: given twice", i+1)
		}
		seen[line] = true
		keys = append(keys, key)
	}
	return keys, nil
}

func parseHostKey(line string) (ssh.PublicKey, error) {
	if len(line) > maxHostKeyLine {
		return nil, fmt.Errorf("line has %d bytes, more than %d", len(line), maxHostKeyLine)
	}
	key, err := sshkey.Parse(line)
	if err != nil {
		return nil, fmt.Errorf("not a public key in authorized_keys form: %w", err)
	}
	if err := checkHostKey(key); err != nil {
		return nil, err
	}
	// Each key has exactly one line. This leaves no room for a comment, or for an encoding
	// that would make one key look like two.
	if sshkey.Line(key) != line {
		return nil, errors.New("line holds more than key type and key, or is not in canonical form")
	}
	return key, nil
}

// checkHostKey accepts the kinds of key that sshd generates for itself, of limited size.
func checkHostKey(key ssh.PublicKey) error {
	if err := sshkey.CheckKind(key); err != nil {
		return err
	}
	if key.Type() == ssh.KeyAlgoRSA {
		return checkRSASize(key)
	}
	return nil
}

func checkRSASize(key ssh.PublicKey) error {
	holder, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return errors.New("RSA key of unknown size")
	}
	public, ok := holder.CryptoPublicKey().(*rsa.PublicKey)
	if !ok {
		return errors.New("RSA key of unknown size")
	}
	if n := public.N.BitLen(); n < minRSABits || n > maxRSABits {
		return fmt.Errorf("RSA key has %d bits, not %d to %d", n, minRSABits, maxRSABits)
	}
	return nil
}

// SignBinding signs the binding with a host key, as
// "ssh-keygen -Y sign -n hallmark-enroll" does over the binding's text
// (OpenSSH PROTOCOL.sshsig).
func SignBinding(signer ssh.Signer, b protocol.Binding) (armored string, err error) {
	return signIn(protocol.SignatureNamespace, signer, b)
}

// SignHealth signs the binding of a health report, as SignBinding does that of a request,
// in a namespace of its own.
func SignHealth(signer ssh.Signer, b protocol.Binding) (armored string, err error) {
	return signIn(protocol.HealthNamespace, signer, b)
}

func signIn(namespace string, signer ssh.Signer, b protocol.Binding) (armored string, err error) {
	if err := checkHostKey(signer.PublicKey()); err != nil {
		return "", fmt.Errorf("sign binding: %w", err)
	}
	sig, err := sshsig.Sign(bytes.NewReader(b.Message()), signer, sshsigHash, namespace)
	if err != nil {
		return "", fmt.Errorf("sign binding: %w", err)
	}
	return string(sshsig.Armor(sig)), nil
}

// VerifyBinding checks that the private key of a host key signed the binding. It accepts only
// one form: SHA-512, the namespace protocol.SignatureNamespace, this very key inside the
// signature, and nothing else.
func VerifyBinding(key ssh.PublicKey, b protocol.Binding, armored string) error {
	return verifyIn(protocol.SignatureNamespace, key, b, armored)
}

// VerifyHealth is VerifyBinding for a signature of SignHealth.
func VerifyHealth(key ssh.PublicKey, b protocol.Binding, armored string) error {
	return verifyIn(protocol.HealthNamespace, key, b, armored)
}

func verifyIn(namespace string, key ssh.PublicKey, b protocol.Binding, armored string) error {
	if err := checkHostKey(key); err != nil {
		return err
	}
	sig, err := parseSSHSIG(armored)
	if err != nil {
		return fmt.Errorf("SSH signature: %w", err)
	}
	if !bytes.Equal(sig.PublicKey.Marshal(), key.Marshal()) {
		return errors.New("SSH signature is by another key")
	}
	// The signature format ssh-rsa hides SHA-1, and SHA-256 would be a second form without
	// benefit.
	if sig.HashAlgorithm != sshsigHash {
		return fmt.Errorf("SSH signature hashes with %.32q, not %q", sig.HashAlgorithm, sshsigHash)
	}
	if key.Type() == ssh.KeyAlgoRSA && sig.Signature.Format != sshsigRSASignature {
		return fmt.Errorf("SSH signature has format %.32q, not %q", sig.Signature.Format, sshsigRSASignature)
	}
	if err := sshsig.Verify(bytes.NewReader(b.Message()), sig, key, sshsigHash, namespace); err != nil {
		return fmt.Errorf("SSH signature: %w", err)
	}
	return nil
}

// parseSSHSIG decodes an armored signature. The library skips text around the armor and
// ignores the reserved field; this function refuses both.
func parseSSHSIG(armored string) (*sshsig.Signature, error) {
	if len(armored) > maxHostKeySSHSIG {
		return nil, fmt.Errorf("has %d bytes, more than %d", len(armored), maxHostKeySSHSIG)
	}
	block, rest := pem.Decode([]byte(armored))
	if block == nil || !strings.HasPrefix(armored, sshsigArmorPrefix) || len(block.Headers) > 0 || len(rest) > 0 {
		return nil, errors.New("is not exactly one armored signature")
	}
	sig, err := sshsig.ParseSignature(block.Bytes)
	if err != nil {
		return nil, err
	}
	if len(sig.Signature.Rest) > 0 || !bytes.Equal(sig.Marshal(), block.Bytes) {
		return nil, errors.New("is not in canonical form")
	}
	return sig, nil
}
