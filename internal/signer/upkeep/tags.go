package upkeep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

// TagChange is an event about a change of an instance's tags.
type TagChange struct {
	Instance ec2ref.Instance
	// Version is the event's own count of changes. It is a hint and decides nothing.
	Version uint64
}

// TagsChanged updates the labels of the instances' nodes, with one call to EC2 for all
// instances of an account and region. It returns an error for each change, nil if it is
// done or nothing needs to be done.
//
// It skips no event because of its version: anyone who can write to the queue chooses the
// version, and a very high one would hide every later change.
func (f *Fleet) TagsChanged(ctx context.Context, changes []TagChange) []error {
	errs := make([]error, len(changes))
	instances := make([]ec2ref.Instance, len(changes))
	within, err := f.scope(ctx)
	if err != nil {
		return failed(errs, err)
	}
	records := make(map[ec2ref.Instance]ledger.Record)
	byPlace := make(map[ec2ref.Place][]int)
	for n, change := range changes {
		i := change.Instance
		if instances[n] = i; !within.serves(ctx, i) {
			continue
		}
		// Announce before asking EC2: an enrollment that read the old tags then finds the
		// note when it confirms.
		record, err := f.Ledger.Announce(ctx, i)
		switch {
		case err != nil:
			errs[n] = err
		case record.IsOut() || record.ConfirmedHostname != "":
			records[i] = record
			at := i.Place()
			byPlace[at] = append(byPlace[at], n)
		}
	}
	if len(byPlace) == 0 {
		return errs
	}
	pass, err := f.newPass(ctx)
	for at, group := range byPlace {
		var found map[ec2ref.InstanceID]*inventory.Instance
		asked := err
		if asked == nil {
			found, asked = f.ask(ctx, at, instances, group)
		}
		for _, n := range group {
			if errs[n] = asked; asked == nil {
				errs[n] = pass.tagsChanged(ctx, instances[n], records[instances[n]], found[instances[n].ID])
			}
		}
	}
	return errs
}

func (p pass) tagsChanged(ctx context.Context, of ec2ref.Instance, record ledger.Record, i *inventory.Instance) error {
	w := p.follow(of)
	w.deletesRefused = true
	_, err := w.relabel(ctx, record, i)
	if !errors.Is(err, policy.ErrIncomplete) {
		return err
	}
	// This state is temporary; the sweep then updates the node.
	p.Log.InfoContext(ctx, "EC2 does not show every fact that the policy needs; node left unchanged", slog.Any("", of), slog.String("reason", err.Error()))
	return nil
}

// maxRelabels bounds how often one event retries because of concurrent changes.
const maxRelabels = 3

// errMoving says that others kept writing about an instance.
var errMoving = errors.New("the instance's record kept changing while its node was written")

// follower keeps one instance's node up to date.
type follower struct {
	pass
	of ec2ref.Instance
	// deletesRefused says that the follower deletes the node if the policy no longer admits
	// the instance: an operator who changes tags that way intends it.
	deletesRefused bool
	// removes says that the follower deletes the node of a stopped instance if the policy
	// says so.
	removes bool
	// deleted says that the follower deleted the node, so it may write the node again.
	deleted bool
}

func (p pass) follow(of ec2ref.Instance) *follower { return &follower{pass: p, of: of} }

// relabel writes the node of an enrolled instance as it should be, or deletes the node of
// one that is retired, left or, if it removes, stopped, and reports whether it changed
// anything. It fails with
// policy.ErrIncomplete, and with policy.ErrRefused for a running instance that the policy
// does not admit unless deletesRefused is set. It changes nothing for an instance that is not
// enrolled or has no node of this signer.
//
// The record is from the announcement of the write, before the call to EC2. Meanwhile
// others may write: events about the same instance, an enrollment, an off-boarding. Each
// of them writes to the ledger before it writes the node. So relabel reads the record
// again after its write, and starts over if the record has changed. Teleport's reads lag,
// so they only decide who owns the node.
func (w *follower) relabel(ctx context.Context, record ledger.Record, i *inventory.Instance) (written bool, err error) {
	for range maxRelabels {
		wrote, err := w.once(ctx, record, i)
		if err != nil || !wrote {
			return written, err
		}
		written = true
		after, err := w.Ledger.Lookup(ctx, w.of)
		if err != nil || after.Version == record.Version {
			return written, err
		}
		if record, err = w.Ledger.Announce(ctx, w.of); err != nil {
			return written, err
		}
		if i, err = w.instance(ctx, w.of); err != nil {
			return written, err
		}
	}
	return written, fmt.Errorf("%w: %s", errMoving, w.of.ID)
}

// once makes one attempt, based on one read of the ledger and EC2.
func (w *follower) once(ctx context.Context, record ledger.Record, i *inventory.Instance) (wrote bool, err error) {
	switch {
	case record.Retired:
		return w.deleteOwn(ctx, w.cluster, w.of.NodeID())
	case record.Left:
		return w.remove(ctx) // unlike a retired instance, it may be enrolling again right now
	case i == nil || isGone(i): // its own event, or the sweep, off-boards it
		return false, nil
	case w.removes && w.isRemoved(i, record):
		return w.remove(ctx) // it may be starting again right now
	case record.ConfirmedHostname == "" || !node.Lease(record).After(w.Now()):
		return false, nil
	}
	there, err := w.cluster.Node(ctx, w.of.NodeID())
	switch {
	case errors.Is(err, teleport.ErrNotFound) && w.deleted:
		there = new(node.Node)
	case errors.Is(err, teleport.ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	case there.Signer() != w.Audience:
		return false, nil
	}
	want, err := w.render(i, record)
	switch {
	case err != nil && i.State != inventory.StateRunning:
		return false, nil // it may lack an address because it is not running
	case errors.Is(err, policy.ErrRefused) && w.deletesRefused:
		return w.deleteRefused(ctx, err)
	case err != nil:
		return false, err
	case isSame(want, *there, record) && !w.deleted:
		return false, nil
	}
	return w.write(ctx, want)
}

func (w *follower) write(ctx context.Context, want node.Node) (bool, error) {
	if err := w.cluster.UpsertNode(ctx, want); err != nil {
		return false, err
	}
	w.deleted = false
	w.Log.InfoContext(ctx, "node updated", slog.Any("", w.of), slog.String("node_id", want.ID), slog.String("hostname", want.Hostname),
		slog.String("address", want.Address), slog.Any("labels", want.Labels))
	return true, nil
}

// deleteRefused deletes the node of an instance that the policy no longer admits.
func (w *follower) deleteRefused(ctx context.Context, reason error) (bool, error) {
	w.Log.WarnContext(ctx, "policy no longer admits the instance; its node will be deleted", slog.Any("", w.of), slog.String("node_id", w.of.NodeID()), slog.String("reason", reason.Error()))
	return w.remove(ctx)
}

// remove deletes the node of an instance that may get it back.
func (w *follower) remove(ctx context.Context) (bool, error) {
	deleted, err := w.deleteOwn(ctx, w.cluster, w.of.NodeID())
	w.deleted = w.deleted || deleted
	return deleted, err
}

// isRemoved reports whether an instance is stopped, and the policy removes its node.
func (p pass) isRemoved(i *inventory.Instance, record ledger.Record) bool {
	return isStopped(i) && p.rules.RemovesStopped(p.factsOf(i, record), p.Now())
}

// isSame compares all fields of a node. The ledger stores leases in whole seconds, and
// old records store none.
func isSame(want, n node.Node, r ledger.Record) bool {
	lease := r.Lease.IsZero() || want.Expires.Sub(n.Expires).Abs() < time.Second
	return lease && want.Hostname == n.Hostname && want.Address == n.Address && maps.Equal(want.Labels, n.Labels)
}
