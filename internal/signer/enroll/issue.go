package enroll

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// issue registers the node, has the keys signed, and confirms the claim.
//
// A failure leaves behind:
//
//   - Before the node was written: the claim. It belongs to the instance, and the next
//     attempt finds it.
//   - After the node may have been written: see giveUp.
//   - After the certificates but before the confirmation: certificates that the signer
//     handed to no one.
func (s *Signer) issue(ctx context.Context, cluster Cluster, g grant, a *audit) (*protocol.Response, error) {
	i, record, err := s.issueAndConfirm(ctx, cluster, g, a)
	if err != nil {
		return nil, s.giveUp(ctx, cluster, g, i, a, err)
	}
	if !isQuiet(g, record, a.record) {
		if err := s.settle(ctx, cluster, g, record, a); err != nil {
			return nil, err
		}
	}
	return newResponse(g, i, a.request.ID), nil
}

func (s *Signer) issueAndConfirm(ctx context.Context, cluster Cluster, g grant, a *audit) (issued, ledger.Record, error) {
	var i issued
	err := a.step(ctx, "teleport", teleportTimeout, func(ctx context.Context) (err error) {
		i, err = register(ctx, cluster, g)
		return err
	})
	if err != nil {
		return i, ledger.Record{}, unanswered(serviceTeleport, err)
	}
	if err := s.checkIssued(ctx, cluster, g, &i); err != nil {
		return i, ledger.Record{}, err
	}
	a.certificates = i.certificates
	if err := s.outlast(ctx, g, i, a); err != nil {
		return i, ledger.Record{}, err
	}
	record, err := s.confirm(ctx, g, a)
	return i, record, err
}

// issued is the cluster's answer.
type issued struct {
	written      bool               // the node was written
	certificates []*ssh.Certificate // in the keys' order
	cas          teleport.CAs
}

// register writes the node, has every key signed and reads the CAs, all concurrently.
func register(ctx context.Context, cluster Cluster, g grant) (issued, error) {
	group, ctx := errgroup.WithContext(ctx)
	i := issued{certificates: make([]*ssh.Certificate, len(g.keys))}
	group.Go(func() error {
		if err := cluster.UpsertNode(ctx, g.node); err != nil {
			return fmt.Errorf("write node %s: %w", g.node.ID, err)
		}
		i.written = true
		return nil
	})
	for n, key := range g.keys {
		group.Go(func() (err error) {
			if i.certificates[n], err = cluster.SignHostKey(ctx, key, g.principals, g.lifetime); err != nil {
				return fmt.Errorf("sign host key %s: %w", ssh.FingerprintSHA256(key), err)
			}
			return nil
		})
	}
	group.Go(func() (err error) {
		if i.cas, err = cluster.CAs(ctx); err != nil {
			return fmt.Errorf("read the cluster's CAs: %w", err)
		}
		return nil
	})
	err := group.Wait()
	return i, err
}

// checkIssued refuses certificates that differ from the request. The CAs were read while
// the keys were signed. A rotation in between is no reason to fail, so checkIssued reads
// them again before it calls a CA unknown.
func (s *Signer) checkIssued(ctx context.Context, cluster Cluster, g grant, i *issued) error {
	err := checkCertificates(g, i, s.now())
	if errors.Is(err, hostcert.ErrUnknownCA) {
		ctx, cancel := context.WithTimeout(ctx, teleportTimeout)
		defer cancel()
		if i.cas, err = cluster.CAs(ctx); err != nil {
			return unanswered(serviceTeleport, fmt.Errorf("read the cluster's CAs again: %w", err))
		}
		err = checkCertificates(g, i, s.now())
	}
	if err != nil {
		return refuse(protocol.CodeInternal, err)
	}
	return nil
}

// outlast extends the claim if a certificate expires after it. That happens if Teleport's
// clock is ahead by the whole accepted skew and signing took a while. No other instance
// may get the names until the certificate expires.
func (s *Signer) outlast(ctx context.Context, g grant, i issued, a *audit) error {
	end := g.claim.ValidUntil
	for _, certificate := range i.certificates {
		// hostcert.Check has bounded it.
		if last := time.Unix(int64(certificate.ValidBefore), 0).UTC(); last.After(end) { //nolint:gosec // see above
			end = last
		}
	}
	if end.Equal(g.claim.ValidUntil) {
		return nil
	}
	g.claim.ValidUntil = end
	err := a.step(ctx, "claim", ledgerTimeout, func(ctx context.Context) error {
		_, err := s.Ledger.Claim(ctx, g.claim, s.now())
		return err
	})
	if errors.Is(err, ledger.ErrRetired) {
		return nil // the confirmation fails, too, and undoes the write
	}
	return refuseLedger(err)
}

func checkCertificates(g grant, i *issued, now time.Time) error {
	for n, certificate := range i.certificates {
		want := hostcert.Want{
			Key:         g.keys[n],
			Principals:  g.principals,
			CAs:         i.cas.Host,
			MaxLifetime: g.lifetime,
			Roles:       teleport.HostRoles(),
		}
		if err := hostcert.Check(certificate, want, now); err != nil {
			return err
		}
	}
	return nil
}

func (s *Signer) confirm(ctx context.Context, g grant, a *audit) (ledger.Record, error) {
	var record ledger.Record
	err := a.step(ctx, "confirm", ledgerTimeout, func(ctx context.Context) (err error) {
		record, err = s.Ledger.Complete(ctx, g.claim, g.held, s.now())
		return err
	})
	return record, refuseLedger(err)
}

// newResponse returns the answer, except for its version and the metadata options.
func newResponse(g grant, i issued, requestID string) *protocol.Response {
	r := &protocol.Response{
		RequestID: requestID,
		Node: protocol.Node{
			ID:       g.node.ID,
			Hostname: g.node.Hostname,
			Address:  g.node.Address,
			Cluster:  g.cluster,
		},
		Principals: g.principals,
		OpenSSHCAs: sshkey.Lines(i.cas.OpenSSH),
		HostCAs:    sshkey.Lines(i.cas.Host),
		// The machine adds jitter: only it knows how many others there are.
		RenewAfter: g.start.Add(g.lifetime / 3).UTC().Truncate(time.Second),
	}
	for _, certificate := range i.certificates {
		r.Certificates = append(r.Certificates, sshkey.Line(certificate))
	}
	return r
}
