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
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// CAs are the public keys of a cluster's CAs. Teleport signs with the first of each list;
// it trusts the others during a rotation.
type CAs struct {
	// OpenSSH signs the user certificates that people present to OpenSSH servers.
	OpenSSH []ssh.PublicKey
	// Host signs host certificates.
	Host []ssh.PublicKey
}

// CAs reads the CAs' public keys from the auth service.
func (c *Client) CAs(ctx context.Context) (CAs, error) {
	var cas CAs
	err := c.do(ctx, "read the CAs of cluster "+c.cluster, func(ctx context.Context, live *connection) error {
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() (err error) {
			cas.OpenSSH, err = c.ca(ctx, live.api, types.OpenSSHCA)
			return err
		})
		group.Go(func() (err error) {
			cas.Host, err = c.ca(ctx, live.api, types.HostCA)
			return err
		})
		return group.Wait()
	})
	if err != nil {
		return CAs{}, err
	}
	return cas, nil
}

// ca reads the keys of the cluster's own CA. A list of all CAs that the cluster knows
// would include those of trusted clusters.
func (c *Client) ca(ctx context.Context, api *client.Client, kind types.CertAuthType) ([]ssh.PublicKey, error) {
	ca, err := api.GetCertAuthority(ctx, types.CertAuthID{Type: kind, DomainName: c.cluster}, false)
	if err != nil {
		return nil, fmt.Errorf("%s CA: %w", kind, err)
	}
	var trusted []ssh.PublicKey
	for _, pair := range ca.GetTrustedSSHKeyPairs() {
		key, err := parseCA(pair.PublicKey)
		if err != nil {
			return nil, fmt.Errorf("%s CA: %w", kind, err)
		}
		trusted = append(trusted, key)
	}
	if len(trusted) == 0 {
		return nil, fmt.Errorf("%s CA: it has no SSH keys", kind)
	}
	return trusted, nil
}

// parseCA reads one plain key.
func parseCA(line []byte) (ssh.PublicKey, error) {
	key, err := sshkey.Parse(string(line))
	if err != nil {
		return nil, err
	}
	return key, sshkey.CheckKind(key)
}

// SignHostKey makes the Host CA certify the key for the principals and for ttl, with one
// of HostRoles. It does not check the result: the caller uses hostcert.Check, with CAs
// that it read at the same time.
func (c *Client) SignHostKey(ctx context.Context, key ssh.PublicKey, principals []string, ttl time.Duration) (*ssh.Certificate, error) {
	switch {
	case ttl <= 0:
		return nil, errors.New("sign host key: no lifetime, which Teleport treats as unlimited")
	case len(principals) == 0:
		return nil, errors.New("sign host key: no principals, which would match every host")
	}
	request := hostCertRequest{
		Key:         sshkey.File(key),
		Principals:  principals,
		ClusterName: c.cluster,
		TTL:         ttl,
	}
	var line string
	err := c.do(ctx, "sign host key", func(ctx context.Context, live *connection) (err error) {
		line, err = live.signHostKey(ctx, request)
		return err
	})
	if err != nil {
		return nil, err
	}
	return hostcert.Parse(line)
}
