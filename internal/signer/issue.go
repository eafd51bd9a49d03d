package signer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/ledger"
	"github.com/hallmark-ssh/hallmark/internal/policy"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/teleport"
)

// signerLabel marks a node as this signer's.
const signerLabel = "hallmark/signer"

// grant is what will be issued if the ledger allows it.
type grant struct {
	claim      ledger.Claim
	node       teleport.Node
	cluster    string
	keys       []ssh.PublicKey
	principals []string
	start      time.Time
	lifetime   time.Duration
}

func newGrant(c caller, d policy.Decision, cluster Cluster, now time.Time) grant {
	instance := ledger.Instance{Account: c.document.AccountID, Region: c.document.Region, ID: c.document.InstanceID}
	id := protocol.NodeID(instance.Account, instance.Region, instance.ID)
	end := now.Add(d.Lifetime)
	return grant{
		claim: ledger.Claim{
			Instance:     instance,
			Fingerprints: fingerprints(c.keys),
			Hostname:     d.Hostname,
			// Teleport's clock sets the certificates' end; hostcert.Check lets it be off
			// by this much. The claim must not end before they do.
			End: end.Add(hostcert.MaxClockSkew),
		},
		// The lease: if every event is lost, the node still goes when its certificates
		// do.
		node:       teleport.Node{ID: id, Hostname: d.Hostname, Address: d.Address, Labels: d.Labels, Expires: end},
		cluster:    cluster.ClusterName(),
		keys:       c.keys,
		principals: principals(d.Hostname, id, cluster.ClusterName()),
		start:      now,
		lifetime:   d.Lifetime,
	}
}

// principals are the names that people and the proxy may type. No address is
// among them: private addresses repeat across VPCs.
func principals(hostname, id, cluster string) []string {
	return []string{hostname, id, hostname + "." + cluster, id + "." + cluster}
}

// issue claims, registers the node, has the keys signed, and confirms.
//
// What a failure leaves behind, and why it is not undone:
//
//   - After the claim: the claim. It is the instance's own, and the next attempt
//     finds it.
//   - After the node was written but a certificate failed: a node whose machine
//     cannot prove itself for it, or, at a renewal, one whose certificates are still
//     good. Deleting it would break the second case to tidy up the first. The
//     machine tries again, and the node's lease ends by itself.
//   - After the certificates but before the confirmation: certificates that nobody
//     was given.
//
// One thing is undone: a node of an instance that was off-boarded meanwhile.
// Whoever off-boarded it may have deleted the node before it was written.
func (s *Signer) issue(ctx context.Context, cluster Cluster, g grant, a *audit) (*protocol.Response, error) {
	held, err := s.claim(ctx, g, a)
	if err != nil {
		return nil, err
	}
	if held.ConfirmedHostname != g.claim.Hostname {
		err := a.step(ctx, "lookup", teleportTimeout, func(ctx context.Context) error {
			return s.checkFree(ctx, cluster, g)
		})
		if err != nil {
			return nil, err
		}
	}
	var i issued
	err = a.step(ctx, "teleport", teleportTimeout, func(ctx context.Context) (err error) {
		i, err = register(ctx, cluster, g)
		return err
	})
	if err != nil {
		return nil, refuse(protocol.CodeUpstream, err)
	}
	if err := s.checkIssued(ctx, cluster, g, &i); err != nil {
		return nil, err
	}
	a.certificates = i.certificates
	if err := s.confirm(ctx, cluster, g, held, a); err != nil {
		return nil, err
	}
	return newResponse(g, i, a.request.ID), nil
}

func (s *Signer) claim(ctx context.Context, g grant, a *audit) (ledger.Grant, error) {
	var held ledger.Grant
	err := a.step(ctx, "claim", ledgerTimeout, func(ctx context.Context) (err error) {
		held, err = s.Ledger.Claim(ctx, g.claim, s.Now())
		return err
	})
	return held, refuseLedger(err)
}

func refuseLedger(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ledger.ErrKeyConflict):
		return refuse(protocol.CodeKeyConflict, err)
	case errors.Is(err, ledger.ErrKeyInUse):
		return refuse(protocol.CodeKeyInUse, err)
	case errors.Is(err, ledger.ErrNameInUse):
		return refuse(protocol.CodeNameInUse, err)
	case errors.Is(err, ledger.ErrEnded):
		return refuse(protocol.CodeInstanceEnded, err)
	default:
		return refuse(protocol.CodeUpstream, err)
	}
}

// checkFree refuses what somebody else holds in Teleport: a node of our id that
// another program wrote, and a host name that another node bears. It is asked
// until a claim of this name has been confirmed once, and not only at the first
// claim: an attempt that failed halfway has shown nothing.
func (s *Signer) checkFree(ctx context.Context, cluster Cluster, g grant) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.checkNodeFree(ctx, cluster, g) })
	group.Go(func() error { return checkNameFree(ctx, cluster, g) })
	return group.Wait()
}

func (s *Signer) checkNodeFree(ctx context.Context, cluster Cluster, g grant) error {
	node, err := cluster.Node(ctx, g.node.ID)
	switch {
	case errors.Is(err, teleport.ErrNotFound):
		return nil
	case err != nil:
		return refuse(protocol.CodeUpstream, fmt.Errorf("look up node %s: %w", g.node.ID, err))
	case node.Labels[signerLabel] != s.Audience:
		return refuse(protocol.CodeNameInUse, fmt.Errorf("node %s exists and is of signer %q", g.node.ID, node.Labels[signerLabel]))
	}
	return nil
}

func checkNameFree(ctx context.Context, cluster Cluster, g grant) error {
	named, err := cluster.NodesNamed(ctx, g.node.Hostname)
	if err != nil {
		return refuse(protocol.CodeUpstream, fmt.Errorf("look up nodes named %s: %w", g.node.Hostname, err))
	}
	for _, other := range named {
		if other.ID != g.node.ID {
			return refuse(protocol.CodeNameInUse, fmt.Errorf("node %s is named %s", other.ID, g.node.Hostname))
		}
	}
	return nil
}

// issued is what the cluster answered.
type issued struct {
	certificates []*ssh.Certificate // in the order of the keys
	cas          teleport.CAs
}

// register writes the node, has every key signed and reads the CAs, all at once.
func register(ctx context.Context, cluster Cluster, g grant) (issued, error) {
	group, ctx := errgroup.WithContext(ctx)
	i := issued{certificates: make([]*ssh.Certificate, len(g.keys))}
	group.Go(func() error {
		if err := cluster.UpsertNode(ctx, g.node); err != nil {
			return fmt.Errorf("write node %s: %w", g.node.ID, err)
		}
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
	return i, group.Wait()
}

// checkIssued refuses to hand out a certificate that is not what was asked for.
// The CAs were read while the keys were signed: a rotation in between is no
// reason to fail, so they are read again before one is called unknown.
func (s *Signer) checkIssued(ctx context.Context, cluster Cluster, g grant, i *issued) error {
	err := checkCertificates(g, i, s.Now())
	if errors.Is(err, hostcert.ErrUnknownAuthority) {
		ctx, cancel := context.WithTimeout(ctx, teleportTimeout)
		defer cancel()
		if i.cas, err = cluster.CAs(ctx); err != nil {
			return refuse(protocol.CodeUpstream, fmt.Errorf("read the cluster's CAs again: %w", err))
		}
		err = checkCertificates(g, i, s.Now())
	}
	if err != nil {
		return refuse(protocol.CodeInternal, err)
	}
	return nil
}

func checkCertificates(g grant, i *issued, now time.Time) error {
	for n, certificate := range i.certificates {
		want := hostcert.Want{
			Key:         g.keys[n],
			Principals:  g.principals,
			Authorities: i.cas.Host,
			MaxLifetime: g.lifetime,
		}
		if err := hostcert.Check(certificate, want, now); err != nil {
			return err
		}
	}
	return nil
}

func (s *Signer) confirm(ctx context.Context, cluster Cluster, g grant, held ledger.Grant, a *audit) error {
	err := a.step(ctx, "confirm", ledgerTimeout, func(ctx context.Context) error {
		return s.Ledger.Confirm(ctx, g.claim, held)
	})
	if !errors.Is(err, ledger.ErrEnded) {
		return refuseLedger(err)
	}
	// Undone even if the caller has gone or its time is up; what fails here ends
	// with the node's lease.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if undo := cluster.DeleteNode(ctx, g.node.ID); undo != nil && !errors.Is(undo, teleport.ErrNotFound) {
		err = errors.Join(err, fmt.Errorf("delete node %s again: %w", g.node.ID, undo))
	}
	return refuse(protocol.CodeInstanceEnded, err)
}

func newResponse(g grant, i issued, requestID string) *protocol.Response {
	r := &protocol.Response{
		Version:   protocol.Version,
		RequestID: requestID,
		Node: protocol.Node{
			ID:       g.node.ID,
			Hostname: g.node.Hostname,
			Address:  g.node.Address,
			Cluster:  g.cluster,
		},
		Principals: g.principals,
		OpenSSHCAs: lines(i.cas.OpenSSH),
		HostCAs:    lines(i.cas.Host),
		// The machine adds the jitter: only it knows how many others there are.
		RenewAfter: g.start.Add(g.lifetime / 3).UTC().Truncate(time.Second),
	}
	for _, certificate := range i.certificates {
		r.Certificates = append(r.Certificates, line(certificate))
	}
	return r
}

// line returns a key or certificate in authorized_keys form.
func line(key ssh.PublicKey) string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(key)), "\n")
}

func lines(keys []ssh.PublicKey) []string {
	list := make([]string, len(keys))
	for i, key := range keys {
		list[i] = line(key)
	}
	return list
}
