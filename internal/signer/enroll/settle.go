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

// This file keeps the node correct while others write about the same instance: another
// request, tag events, the sweep, an off-boarding. Each of them writes to the ledger
// before it writes the node. A writer that finds the record changed afterwards writes the
// node again. See "Concurrent operations" in docs/architecture.md.

// maxSettles bounds how often one request retries because of concurrent writes.
const maxSettles = 3

// errMoving says that others kept writing about an instance.
var errMoving = errors.New("the instance's record kept changing while its node was written")

// errNotDeleted says that Teleport did not delete a node.
var errNotDeleted = errors.New("cannot delete node")

// isQuiet reports whether others have written about the instance since this request read
// its record and asked EC2.
func isQuiet(g grant, confirmed, read ledger.Record) bool {
	return confirmed.Version == g.held.Version+1 && confirmed.TagsVersion == read.TagsVersion
}

// settle writes the node again from the record and EC2's current answer until the record
// no longer changes. The certificates are good either way: a failure here is left to the
// sweep, unless the instance is retired or the policy no longer admits it.
func (s *Signer) settle(ctx context.Context, cluster Cluster, g grant, record ledger.Record, a *audit) error {
	err := s.settleNode(ctx, cluster, record, a)
	if err == nil || isFinal(err) {
		return err
	}
	s.Log.LogAttrs(ctx, slog.LevelWarn, "node may be out of date until the next sweep",
		slog.String("request_id", a.request.ID), slog.String("node_id", g.node.ID), slog.String("error", shorten(err.Error())))
	return nil
}

// isFinal reports whether an error says that the instance must have no node.
func isFinal(err error) bool {
	code := codeOf(err)
	return code == protocol.CodeInstanceEnded || code == protocol.CodeNotEnrolled ||
		code == protocol.CodePolicyRefused && errors.Is(err, policy.ErrRefused)
}

// settleNode makes the node what the record says, until the record no longer changes. It
// fails with ledger.ErrLeft once there is no node because the instance left. That is not the
// end, as for a retired instance: it may be enrolling again.
func (s *Signer) settleNode(ctx context.Context, cluster Cluster, record ledger.Record, a *audit) error {
	i := a.document.Instance
	for range maxSettles {
		err := s.settleOnce(ctx, cluster, record, a)
		if err != nil && !errors.Is(err, ledger.ErrLeft) {
			return err
		}
		after, unread := s.Ledger.Lookup(ctx, i)
		switch {
		case unread != nil && err != nil:
			return errors.Join(err, fmt.Errorf("%w: %w", errMoving, unread))
		case unread != nil || after.Version == record.Version:
			return errors.Join(err, unread)
		}
		if record, err = s.Ledger.Announce(ctx, i); err != nil {
			return err
		}
	}
	return errMoving
}

// settleOnce writes or deletes the node as the record says.
func (s *Signer) settleOnce(ctx context.Context, cluster Cluster, record ledger.Record, a *audit) error {
	id := a.document.Instance.NodeID()
	if record.Retired {
		return undo(ctx, cluster, id, refuse(protocol.CodeInstanceEnded, ledger.ErrRetired))
	}
	// While this process was frozen, the claim may have expired and another signer
	// may have enrolled the instance. The node then belongs to that signer.
	if record.Signer != "" && record.Signer != s.Audience {
		return fmt.Errorf("%w: %q", ledger.ErrOtherSigner, record.Signer)
	}
	switch {
	case record.Left && a.leaves():
		return s.deleteLeft(ctx, cluster, id)
	case record.Left: // an enrollment, which wrote the node or knows that it is the instance's
		return undo(ctx, cluster, id, refuseLedger(ledger.ErrLeft))
	}
	fresh, err := s.renderAgain(ctx, cluster, record, a)
	switch {
	case err != nil && isFinal(err):
		return undo(ctx, cluster, id, err)
	case err != nil:
		return err
	}
	if err := cluster.UpsertNode(ctx, fresh); err != nil {
		return fmt.Errorf("write node %s again: %w", fresh.ID, err)
	}
	return nil
}

// renderAgain renders the node of the latest confirmed enrollment, with EC2's current
// labels and address.
func (s *Signer) renderAgain(ctx context.Context, cluster Cluster, record ledger.Record, a *audit) (node.Node, error) {
	instance, err := s.describe(ctx, a.document, a)
	if err != nil {
		return node.Node{}, err
	}
	if err := checkInstance(instance, a.document); err != nil {
		return node.Node{}, err
	}
	members, err := s.membership(ctx, a.document, record, a)
	if err != nil {
		return node.Node{}, err
	}
	facts := node.FactsOf(instance, record)
	members.Describe(&facts)
	decision, err := s.decide(ctx, facts, cluster, a)
	if err != nil {
		return node.Node{}, err
	}
	return node.Confirmed(a.document.Instance, record, decision.Address, decision.Labels).WithHealth(record, s.now()), nil
}

// giveUp handles a node that may have been written although the enrollment then failed.
// If the instance was retired or left meanwhile, it deletes the node: the off-boarding may
// have looked before the node existed. If an earlier enrollment is confirmed, it restores that
// enrollment's node; otherwise the node would have a name that no certificate of the
// machine has. The node of a first enrollment stays: the machine retries, and the lease
// ends by itself.
func (s *Signer) giveUp(ctx context.Context, cluster Cluster, g grant, i issued, a *audit, reason error) error {
	// Continue even if the caller has gone or its time is up. The sweep repairs what
	// fails here.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	record, err := s.Ledger.Announce(ctx, g.claim.Instance)
	if err != nil {
		return errors.Join(reason, err)
	}
	if !record.IsOut() && (record.ConfirmedHostname == "" || !record.Lease.After(s.now())) {
		return reason
	}
	// In an outage, more calls only keep the machine waiting. If the node was written
	// anyway, the sweep restores it.
	if !record.IsOut() && !i.written && errors.Is(reason, teleport.ErrUnavailable) {
		return reason
	}
	err = s.settleNode(ctx, cluster, record, a)
	if isFinal(err) {
		return err
	}
	return errors.Join(reason, err)
}

// deleteLeft deletes the node of an instance that left. While the instance has none, another
// program may write one under the same id, which stays: the instance may leave again. Teleport's
// reads lag, so deleteLeft also deletes a node that Teleport does not show.
func (s *Signer) deleteLeft(ctx context.Context, cluster Cluster, id string) error {
	reason := refuseLedger(ledger.ErrLeft)
	found, err := cluster.Node(ctx, id)
	switch {
	case err != nil && !errors.Is(err, teleport.ErrNotFound):
		return errors.Join(reason, fmt.Errorf("%w %s: %w", errNotDeleted, id, err))
	case err == nil && found.Signer() != s.Audience:
		return reason
	}
	return undo(ctx, cluster, id, reason)
}

// undo deletes the node, even if the caller has gone or its time is up.
func undo(ctx context.Context, cluster Cluster, id string, reason error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if err := cluster.DeleteNode(ctx, id); err != nil && !errors.Is(err, teleport.ErrNotFound) {
		return errors.Join(reason, fmt.Errorf("%w %s: %w", errNotDeleted, id, err))
	}
	return reason
}
