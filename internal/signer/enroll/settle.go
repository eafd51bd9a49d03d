package enroll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

// This file keeps the node true while others write about the same instance: another
// request of it, tag events, the sweep, the end. Each of them writes to the ledger
// before it writes the node, so whoever reads a record that has changed since writes
// the node once more. See "Concurrent operations" in docs/architecture.md.

// maxSettles bounds how often one request follows what others write meanwhile.
const maxSettles = 3

// errMoving says that others kept writing about an instance.
var errMoving = errors.New("the instance's record kept changing while its node was written")

// isQuiet reports whether nobody has written about the instance since this request read
// its record and asked EC2.
func isQuiet(g grant, confirmed, read ledger.Record) bool {
	return confirmed.Version == g.held.Version+1 && confirmed.TagsVersion == read.TagsVersion
}

// settle writes the node again from the record and from what EC2 says now, until the
// record stays as it is. The certificates are good either way: unless the instance has
// ended or the policy no longer admits it, what fails here is left to the sweep.
func (s *Signer) settle(ctx context.Context, cluster Cluster, g grant, record ledger.Record, a *audit) error {
	err := s.settleNode(ctx, cluster, g, record, a)
	if err == nil || isFinal(err) {
		return err
	}
	s.Log.LogAttrs(ctx, slog.LevelWarn, "the node may be out of date until the next sweep",
		slog.String("request_id", a.request.ID), slog.String("node_id", g.node.ID), slog.String("error", shorten(err.Error())))
	return nil
}

// isFinal reports whether an error says that the instance must have no node.
func isFinal(err error) bool {
	code := codeOf(err)
	return code == protocol.CodeInstanceEnded || code == protocol.CodePolicyRefused && errors.Is(err, policy.ErrRefused)
}

func (s *Signer) settleNode(ctx context.Context, cluster Cluster, g grant, record ledger.Record, a *audit) error {
	for range maxSettles {
		if record.Retired {
			return undo(ctx, cluster, g, refuse(protocol.CodeInstanceEnded, ledger.ErrRetired))
		}
		// While this process was frozen, the claim may have run out and another signer may
		// have enrolled the instance. The node is the other signer's then.
		if record.Signer != "" && record.Signer != s.Audience {
			return fmt.Errorf("%w: %q", ledger.ErrOtherSigner, record.Signer)
		}
		fresh, err := s.renderAgain(ctx, cluster, g, record, a)
		switch {
		case err != nil && isFinal(err):
			return undo(ctx, cluster, g, err)
		case err != nil:
			return err
		}
		if err := cluster.UpsertNode(ctx, fresh); err != nil {
			return fmt.Errorf("write node %s again: %w", fresh.ID, err)
		}
		after, err := s.Ledger.Lookup(ctx, g.claim.Instance)
		if err != nil || after.Version == record.Version {
			return err
		}
		if record, err = s.Ledger.Announce(ctx, g.claim.Instance); err != nil {
			return err
		}
	}
	return errMoving
}

// renderAgain makes the node of the latest confirmed enrollment, with labels and address
// as EC2 has them now.
func (s *Signer) renderAgain(ctx context.Context, cluster Cluster, g grant, record ledger.Record, a *audit) (node.Node, error) {
	instance, err := s.describe(ctx, a.document, a)
	if err != nil {
		return node.Node{}, err
	}
	if err := checkInstance(instance, a.document); err != nil {
		return node.Node{}, err
	}
	decision, err := s.decide(ctx, node.FactsOf(instance, record), cluster, a)
	if err != nil {
		return node.Node{}, err
	}
	return node.Confirmed(g.claim.Instance, record, decision.Address, decision.Labels), nil
}

// giveUp deals with a node that may have been written though the enrollment then failed.
// If the instance has ended meanwhile, the node goes: whoever ended it may have looked
// before it was written. If an earlier enrollment stands, the node becomes what that one
// made it, or else it would bear a name that no certificate of the machine has. The node
// of a first enrollment stays: the machine tries again, and the lease ends by itself.
func (s *Signer) giveUp(ctx context.Context, cluster Cluster, g grant, i issued, a *audit, reason error) error {
	// Even if the caller has gone or its time is up. What fails here is left to the sweep.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	record, err := s.Ledger.Announce(ctx, g.claim.Instance)
	if err != nil {
		return errors.Join(reason, err)
	}
	if !record.Retired && (record.ConfirmedHostname == "" || !record.Lease.After(s.now())) {
		return reason
	}
	// In an outage, asking more only keeps the machine waiting. If the node was written all
	// the same, the sweep restores it.
	if !record.Retired && !i.written && errors.Is(reason, teleport.ErrUnavailable) {
		return reason
	}
	err = s.settleNode(ctx, cluster, g, record, a)
	if isFinal(err) {
		return err
	}
	return errors.Join(reason, err)
}

// undo deletes the node, even if the caller has gone or its time is up.
func undo(ctx context.Context, cluster Cluster, g grant, reason error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if err := cluster.DeleteNode(ctx, g.node.ID); err != nil && !errors.Is(err, teleport.ErrNotFound) {
		return errors.Join(reason, fmt.Errorf("delete node %s again: %w", g.node.ID, err))
	}
	return reason
}
