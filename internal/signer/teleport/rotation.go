package teleport

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"time"

	"github.com/gravitational/teleport/api/types"
	"golang.org/x/sync/errgroup"
)

// rotationPause is how often the client compares a login with the cluster's CAs. A phase
// of a rotation lasts hours; a faster rotation locks others out, too.
const rotationPause = 5 * time.Minute

// followRotation logs in again if the cluster is rotating the CAs of this login, while it
// trusts both the old and the new ones. From Teleport 18 on, connections survive a
// rotation, so none would break in time as a warning. If any of this fails, the client
// keeps the old connection.
func (c *Client) followRotation(ctx context.Context, now time.Time) {
	if now.Sub(c.looked) < rotationPause {
		return
	}
	c.looked = now
	retiring, err := c.loginRetires(ctx)
	if err != nil {
		c.config.Log.LogAttrs(ctx, slog.LevelWarn, "cannot check whether Teleport is rotating this login's CAs", slog.String("error", err.Error()))
		return
	}
	if !retiring {
		return
	}
	old := c.identity
	c.identity.renew = now
	if err := c.open(ctx, now); err != nil {
		c.config.Log.LogAttrs(ctx, slog.LevelWarn, "logging in to Teleport again failed", slog.String("error", err.Error()))
		return
	}
	if c.identity.equal(old) {
		c.config.Log.LogAttrs(ctx, slog.LevelWarn, "Teleport is rotating this login's CAs; renew the login before the rotation ends",
			slog.Time("end", old.expires))
	}
}

// loginRetires reports whether the cluster now signs logins with a key other than this
// login's, or trusts a server CA that the login does not have.
func (c *Client) loginRetires(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, renewLimit)
	defer cancel()
	var user, host types.CertAuthority
	group, ctx := errgroup.WithContext(ctx)
	for kind, ca := range map[types.CertAuthType]*types.CertAuthority{types.UserCA: &user, types.HostCA: &host} {
		group.Go(func() (err error) {
			*ca, err = c.live.api.GetCertAuthority(ctx, types.CertAuthID{Type: kind, DomainName: c.identity.cluster}, false)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return false, fmt.Errorf("read the cluster's TLS CAs: %w", err)
	}
	signing := certificatesOf(user.GetActiveKeys().TLS)
	servers := certificatesOf(host.GetTrustedTLSKeyPairs())
	return !signedByAny(c.identity.leaf, signing) || !knowsAll(rootPool(c.identity.roots, c.config.RootsPEM), servers), nil
}

// certificatesOf leaves out entries that are not certificates: Teleport cannot use them
// either, so they are no reason to log in again.
func certificatesOf(pairs []*types.TLSKeyPair) []*x509.Certificate {
	var all []*x509.Certificate
	for _, pair := range pairs {
		block, _ := pem.Decode(pair.Cert)
		if block == nil {
			continue
		}
		if certificate, err := x509.ParseCertificate(block.Bytes); err == nil {
			all = append(all, certificate)
		}
	}
	return all
}

// signedByAny reports whether one of the CAs signed the certificate. Without any CA, it
// reports true.
func signedByAny(leaf *x509.Certificate, cas []*x509.Certificate) bool {
	for _, ca := range cas {
		if leaf.CheckSignatureFrom(ca) == nil {
			return true
		}
	}
	return len(cas) == 0
}

// knowsAll reports whether each of the CAs is one of the roots. It ignores their validity
// periods.
func knowsAll(roots *x509.CertPool, cas []*x509.Certificate) bool {
	for _, ca := range cas {
		_, err := ca.Verify(x509.VerifyOptions{
			Roots: roots, CurrentTime: ca.NotAfter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		})
		if err != nil {
			return false
		}
	}
	return true
}
