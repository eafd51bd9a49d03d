// Package hostcert checks that a host certificate matches the request for it. The signer
// checks before it hands out a certificate, and the machine before it installs one, so neither
// has to trust the other.
package hostcert

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// MaxClockSkew is the largest accepted difference, in either direction, between the clocks of
// the checking side and the signing side.
const MaxClockSkew = 5 * time.Minute

// maxLineBytes bounds a certificate line. An RSA-4096 certificate of an RSA-4096
// CA with twenty principals needs less than 4 KiB.
const maxLineBytes = 32 << 10

// ErrUnknownCA says that a key other than the given CAs signed a certificate. The cluster
// may have rotated its CAs since they were read, so a caller may read them again and
// repeat the check.
var ErrUnknownCA = errors.New("signed by an unknown CA")

// Want describes the expected host certificate.
type Want struct {
	// Key is the host's own public key.
	Key ssh.PublicKey
	// Principals are the names in the certificate, all of them and in any order.
	Principals []string
	// CAs are the public keys of the cluster's Host CA.
	CAs []ssh.PublicKey
	// MaxLifetime bounds the certificate's expiry, from the time of the check, plus
	// MaxClockSkew.
	MaxLifetime time.Duration
	// Roles are the accepted Teleport roles; the certificate must have exactly one. Nil
	// means any: only the signer knows which role it requested.
	Roles []string
}

// RoleExtension is the extension with the Teleport system role of a host certificate.
const RoleExtension = "x-teleport-role"

// Parse reads one certificate in authorized_keys form, as ssh-keygen writes it
// into -cert.pub files. Options before the key, a plain key and a second line
// are errors.
func Parse(line string) (*ssh.Certificate, error) {
	if len(line) > maxLineBytes {
		return nil, fmt.Errorf("parse certificate: %d bytes, more than %d", len(line), maxLineBytes)
	}
	key, err := sshkey.Parse(line)
	if err != nil {
		return nil, fmt.Errorf("parse certificate: %w", err)
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return nil, fmt.Errorf("parse certificate: a plain %s key, not a certificate", key.Type())
	}
	return cert, nil
}

// Check returns nil if the certificate matches want and is valid now. Otherwise its error
// names the first property that does not match. It fails with ErrUnknownCA if that
// property is the signing key.
func Check(cert *ssh.Certificate, want Want, now time.Time) error {
	checks := []func(*ssh.Certificate, Want, time.Time) error{
		checkType, checkKey, checkPrincipals, checkOptions, checkRole, checkValidity, checkCA, checkNotCA, checkSignature,
	}
	for _, check := range checks {
		if err := check(cert, want, now); err != nil {
			return fmt.Errorf("host certificate: %w", err)
		}
	}
	return nil
}

// checkType refuses user certificates: a user certificate lets its holder log in
// elsewhere.
func checkType(cert *ssh.Certificate, _ Want, _ time.Time) error {
	if cert.CertType != ssh.HostCert {
		return fmt.Errorf("certificate type %d is not host (%d)", cert.CertType, ssh.HostCert)
	}
	return nil
}

// checkKey refuses a certificate for a key that someone else holds.
func checkKey(cert *ssh.Certificate, want Want, _ time.Time) error {
	if !bytes.Equal(cert.Key.Marshal(), want.Key.Marshal()) {
		return fmt.Errorf("certified key %s is not the host key %s",
			ssh.FingerprintSHA256(cert.Key), ssh.FingerprintSHA256(want.Key))
	}
	return nil
}

// checkPrincipals refuses unexpected names, and above all an empty list, which OpenSSH
// and this package's library treat as matching every host.
func checkPrincipals(cert *ssh.Certificate, want Want, _ time.Time) error {
	if len(cert.ValidPrincipals) == 0 || len(want.Principals) == 0 {
		return errors.New("principals: an empty list, which matches every host")
	}
	if !slices.Equal(sorted(cert.ValidPrincipals), sorted(want.Principals)) {
		return fmt.Errorf("principals %q are not exactly %q", cert.ValidPrincipals, want.Principals)
	}
	return nil
}

func sorted(names []string) []string {
	names = slices.Clone(names)
	slices.Sort(names)
	return names
}

// checkOptions refuses every critical option: OpenSSH defines none for hosts, and
// a client that meets one refuses the certificate.
func checkOptions(cert *ssh.Certificate, _ Want, _ time.Time) error {
	for name := range cert.CriticalOptions {
		return fmt.Errorf("critical option %q", name)
	}
	return nil
}

// checkRole refuses certificates for roles with more power than a host's name: the proxy
// accepts the holder of a Node certificate as an agent, from anywhere.
func checkRole(cert *ssh.Certificate, want Want, _ time.Time) error {
	role, ok := cert.Extensions[RoleExtension]
	switch {
	case want.Roles == nil:
		return nil
	case !ok:
		return fmt.Errorf("role: no extension %s; want one of %q", RoleExtension, want.Roles)
	case !slices.Contains(want.Roles, role):
		return fmt.Errorf("role %q is none of %q", role, want.Roles)
	}
	return nil
}

// checkValidity refuses certificates that clients would refuse, and those that
// outlast the agreed lifetime: a host certificate cannot be revoked.
func checkValidity(cert *ssh.Certificate, want Want, now time.Time) error {
	if cert.ValidBefore == ssh.CertTimeInfinity {
		return errors.New("validity: no expiry")
	}
	if cert.ValidBefore <= unix(now) {
		return fmt.Errorf("validity: expired %s", timeOf(cert.ValidBefore))
	}
	if latest := now.Add(want.MaxLifetime + MaxClockSkew); cert.ValidBefore > unix(latest) {
		return fmt.Errorf("validity: expires %s, more than %s from now", timeOf(cert.ValidBefore), want.MaxLifetime)
	}
	if cert.ValidAfter > unix(now.Add(MaxClockSkew)) {
		return fmt.Errorf("validity: starts %s, in the future (is the clock right?)", timeOf(cert.ValidAfter))
	}
	if cert.ValidAfter >= cert.ValidBefore {
		return errors.New("validity: expires before it starts")
	}
	return nil
}

// unix returns t in the seconds of certificates, for a time after 1970.
func unix(t time.Time) uint64 { return uint64(max(t.Unix(), 0)) }

func timeOf(seconds uint64) string {
	const year9999 = 253402300799 // the last second that RFC 3339 can write
	if seconds > year9999 {
		return "after the year 9999"
	}
	return time.Unix(int64(seconds), 0).UTC().Format(time.RFC3339)
}

// checkCA refuses certificates that the cluster's Host CA did not sign itself. A
// certificate in place of the CA's key verifies like the key it certifies, so a holder of
// any certificate of the CA could sign in its place (CVE-2025-49825).
func checkCA(cert *ssh.Certificate, want Want, _ time.Time) error {
	if _, nested := cert.SignatureKey.(*ssh.Certificate); nested {
		return errors.New("signed by a certificate, not by a CA's key")
	}
	signer := cert.SignatureKey.Marshal()
	known := func(key ssh.PublicKey) bool { return bytes.Equal(key.Marshal(), signer) }
	if !slices.ContainsFunc(want.CAs, known) {
		return fmt.Errorf("%w: %s", ErrUnknownCA, ssh.FingerprintSHA256(cert.SignatureKey))
	}
	return nil
}

// checkNotCA refuses a CA's own key as a host key. Anyone who can sign the request with it
// holds the cluster's Host CA, and no machine should.
func checkNotCA(cert *ssh.Certificate, want Want, _ time.Time) error {
	own := func(key ssh.PublicKey) bool { return bytes.Equal(key.Marshal(), cert.Key.Marshal()) }
	if slices.ContainsFunc(want.CAs, own) {
		return fmt.Errorf("the host key %s is a CA's own", ssh.FingerprintSHA256(cert.Key))
	}
	return nil
}

// checkSignature verifies the CA's signature. ssh-rsa signs with SHA-1,
// for which collisions have been made, and OpenSSH has refused it since 8.8.
func checkSignature(cert *ssh.Certificate, want Want, _ time.Time) error {
	switch cert.Signature.Format {
	case ssh.KeyAlgoRSA, "ssh-dss":
		return fmt.Errorf("signature: algorithm %s uses SHA-1", cert.Signature.Format)
	}
	checker := ssh.CertChecker{
		// checkValidity has checked the time, with the skew that CertChecker does not
		// support: at its start time the certificate is valid.
		Clock: func() time.Time { return time.Unix(int64(cert.ValidAfter), 0) }, //nolint:gosec // checkValidity has bounded it
	}
	if err := checker.CheckCert(want.Principals[0], cert); err != nil {
		return fmt.Errorf("signature: %w", err)
	}
	return nil
}
