package teleport

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/gravitational/teleport/api/constants"
	"github.com/gravitational/teleport/api/identityfile"
)

// Login is a way to log in to a cluster: IdentityFile, IdentitySecret or Bot.
type Login interface {
	// identity returns credentials that are valid now. The client calls it again when
	// they are due for renewal. Its errors say what to change.
	identity(ctx context.Context, config Config) (*identity, error)
}

// identity is a client certificate of a cluster, with its key.
type identity struct {
	certificate tls.Certificate
	leaf        *x509.Certificate // its first
	roots       *x509.CertPool    // that sign the auth service's certificate
	cluster     string
	expires     time.Time
	renew       time.Time // when to request a new one
}

// equal reports whether both are the same certificate. A nil other is not.
func (id *identity) equal(other *identity) bool {
	return other != nil && bytes.Equal(id.certificate.Certificate[0], other.certificate.Certificate[0])
}

// tlsConfig returns the TLS configuration for calls to the auth service with this
// identity.
func (id *identity) tlsConfig(moreRootsPEM []byte) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: constants.APIDomain, // a name that all auth services have
		RootCAs:    rootPool(id.roots, moreRootsPEM),
		// Not Certificates: Go would present none that the server's list of CAs does not
		// include, and during a rotation that list may be outdated.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &id.certificate, nil
		},
	}
}

// IdentityFile is the path of an identity file, as written by `tctl auth sign` and tbot.
// The client reads it at every call, so it uses a new file at once.
type IdentityFile string

func (path IdentityFile) identity(_ context.Context, config Config) (*identity, error) {
	if err := checkRoots(config.RootsPEM); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(string(path))
	if err != nil {
		return nil, fmt.Errorf("read Teleport identity file (teleport.login.file): %w: %w", ErrDenied, err)
	}
	id, err := parseIdentity(data, config.Now())
	if err != nil {
		return nil, fmt.Errorf("%w: Teleport identity file %s (teleport.login.file): %w", ErrDenied, path, err)
	}
	return id, nil
}

// Check reports why nobody can log in with the file, without a call.
func (path IdentityFile) Check(now time.Time) error {
	data, err := os.ReadFile(string(path))
	if err != nil {
		return err
	}
	if _, err = parseIdentity(data, now); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// secretRefresh is how long the client uses the content of a secret before it reads it
// again.
const secretRefresh = 5 * time.Minute

// IdentitySecret is an identity file stored elsewhere, and read again every few minutes.
type IdentitySecret struct {
	Name string // for messages
	// Read returns the file's content.
	Read func(ctx context.Context) ([]byte, error)
}

func (s IdentitySecret) identity(ctx context.Context, config Config) (*identity, error) {
	if err := checkRoots(config.RootsPEM); err != nil {
		return nil, err
	}
	data, err := s.Read(ctx)
	if err != nil {
		return nil, fmt.Errorf("read Teleport identity %s (teleport.login.secret): %w: %w", s.Name, ErrUnavailable, err)
	}
	now := config.Now()
	id, err := parseIdentity(data, now)
	if err != nil {
		return nil, fmt.Errorf("%w: Teleport identity %s (teleport.login.secret): %w", ErrDenied, s.Name, err)
	}
	id.renew = now.Add(secretRefresh)
	return id, nil
}

// parseIdentity reads an identity file and checks it, so that the error can say what is
// wrong: a server only hangs up on a client with an expired certificate.
func parseIdentity(data []byte, now time.Time) (*identity, error) {
	file, err := identityfile.FromString(string(data))
	if err != nil {
		return nil, fmt.Errorf("not an identity file: %w", err)
	}
	config, err := file.TLSConfig()
	if err != nil {
		return nil, err
	}
	return newIdentity(config.Certificates[0], config.RootCAs, now)
}

// newIdentity returns an identity that is due for renewal at once.
func newIdentity(certificate tls.Certificate, roots *x509.CertPool, now time.Time) (*identity, error) {
	leaf, err := x509.ParseCertificate(certificate.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("TLS certificate: %w", err)
	}
	if !now.Before(leaf.NotAfter) {
		return nil, fmt.Errorf("%w at %s; create a new one", ErrExpired, leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	if now.Before(leaf.NotBefore) {
		return nil, fmt.Errorf("it is valid from %s, but this clock says %s: set the clock",
			leaf.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if len(leaf.Issuer.Organization) == 0 {
		return nil, errors.New("TLS certificate: its issuer names no cluster")
	}
	return &identity{
		certificate: certificate,
		leaf:        leaf,
		roots:       roots,
		cluster:     leaf.Issuer.Organization[0], // Teleport writes the cluster's name there
		expires:     leaf.NotAfter,
		renew:       now,
	}, nil
}
