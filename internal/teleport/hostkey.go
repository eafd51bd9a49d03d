package teleport

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gravitational/teleport/api/client"
	"github.com/gravitational/teleport/api/types"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ssh/hallmark/internal/hostcert"
)

// CAs are the public keys of a cluster's authorities. The first of each list is
// the one that Teleport signs with; others are trusted while a rotation lasts.
type CAs struct {
	// OpenSSH signs the user certificates that OpenSSH servers are shown.
	OpenSSH []ssh.PublicKey
	// Host signs host certificates.
	Host []ssh.PublicKey
}

// CAs reads the authorities' public keys from the auth service.
func (c *Client) CAs(ctx context.Context) (CAs, error) {
	live, err := c.conn(ctx)
	if err != nil {
		return CAs{}, err
	}
	var cas CAs
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		cas.OpenSSH, err = c.authority(ctx, live.api, types.OpenSSHCA)
		return err
	})
	group.Go(func() (err error) {
		cas.Host, err = c.authority(ctx, live.api, types.HostCA)
		return err
	})
	if err := group.Wait(); err != nil {
		return CAs{}, err
	}
	return cas, nil
}

// authority reads the keys of our own cluster's authority. A list of all that the
// cluster knows would hold those of trusted clusters too.
func (c *Client) authority(ctx context.Context, api *client.Client, kind types.CertAuthType) ([]ssh.PublicKey, error) {
	doing := fmt.Sprintf("read the %s authority of cluster %s", kind, c.cluster)
	ca, err := api.GetCertAuthority(ctx, types.CertAuthID{Type: kind, DomainName: c.cluster}, false)
	if err != nil {
		return nil, failed(doing, err)
	}
	var trusted []ssh.PublicKey
	for _, pair := range ca.GetTrustedSSHKeyPairs() {
		key, _, _, _, err := ssh.ParseAuthorizedKey(pair.PublicKey)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", doing, err)
		}
		trusted = append(trusted, key)
	}
	if len(trusted) == 0 {
		return nil, fmt.Errorf("%s: it has no SSH keys", doing)
	}
	return trusted, nil
}

// SignHostKey has the Host CA certify the key for the principals and for ttl. It
// does not judge what comes back: the caller asks hostcert.Check, with CAs that it
// read at the same time.
func (c *Client) SignHostKey(ctx context.Context, key ssh.PublicKey, principals []string, ttl time.Duration) (*ssh.Certificate, error) {
	switch {
	case ttl <= 0:
		return nil, errors.New("sign host key: no lifetime, which Teleport takes for unlimited")
	case len(principals) == 0:
		return nil, errors.New("sign host key: no principals, which would match every host")
	}
	live, err := c.conn(ctx)
	if err != nil {
		return nil, err
	}
	line, err := live.signHostKey(ctx, hostCertRequest{
		Key:         ssh.MarshalAuthorizedKey(key),
		Principals:  principals,
		ClusterName: c.cluster,
		// Nop is enough for the proxy's host check. A certificate of role Node is also
		// a credential for a reverse tunnel, under any of its names.
		Roles: []types.SystemRole{types.RoleNop},
		TTL:   ttl,
	})
	if err != nil {
		return nil, failed("sign host key", err)
	}
	return hostcert.Parse(line)
}
