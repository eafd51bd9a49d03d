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

// TagChange is an event that says that an instance's tags have changed.
type TagChange struct {
	Instance ec2ref.Instance
	// Version is the event's own count of the changes. It is a hint and decides nothing.
	Version uint64
}

// TagsChanged brings the labels of the instances' nodes up to date, with one
// question to EC2 for all instances of an account and region. It returns an error
// for each change, nil where it is done or there is nothing to do.
//
// No event is skipped for its version: whoever can write to the queue chooses it, and
// one that is far ahead would hide every true change after it.
func (f *Fleet) TagsChanged(ctx context.Context, changes []TagChange) []error {
	errs := make([]error, len(changes))
	instances := make([]ec2ref.Instance, len(changes))
	records := make(map[ec2ref.Instance]ledger.Record)
	byPlace := make(map[ec2ref.Place][]int)
	for n, change := range changes {
		i := change.Instance
		if instances[n] = i; !f.serves(ctx, i) {
			continue
		}
		// Announced before EC2 is asked: an enrollment that read the old tags finds the
		// note when it confirms.
		record, err := f.Ledger.Announce(ctx, i)
		switch {
		case err != nil:
			errs[n] = err
		case record.Retired || record.ConfirmedHostname != "":
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
	_, err := p.follow(of, true).relabel(ctx, record, i)
	if !errors.Is(err, policy.ErrIncomplete) {
		return err
	}
	// It passes by itself, and the sweep then brings the node up to date.
	p.Log.InfoContext(ctx, "EC2 does not show all that the policy needs: the node stays as it is", slog.Any("", of), slog.String("reason", err.Error()))
	return nil
}

// maxRelabels bounds how often one event follows changes that happen while it writes.
const maxRelabels = 3

// errMoving says that others kept writing about an instance.
var errMoving = errors.New("the instance's record kept changing while its node was written")

// follower keeps the node of one instance as it should be.
type follower struct {
	pass
	of ec2ref.Instance
	// dismisses says that the node goes if the policy no longer admits the instance: who
	// tags a machine out of reach means it.
	dismisses bool
	// dismissed says that the follower deleted the node, and so may write it again.
	dismissed bool
}

func (p pass) follow(of ec2ref.Instance, dismisses bool) *follower {
	return &follower{pass: p, of: of, dismisses: dismisses}
}

// relabel writes the node of an enrolled instance as it should be, deletes that of one
// that ended, and reports whether it had to. It fails with policy.ErrRefused for an
// instance that runs and that the policy does not admit, unless it dismisses, and with
// policy.ErrIncomplete. An instance that is not enrolled, or has no node of ours, is
// left alone.
//
// The record is from when the write was announced, before EC2 was asked. Others may
// write meanwhile: events of the same instance, an enrollment, the end. Each of them
// writes to the ledger before it writes the node. So after a write the record is read
// again, and if it has changed, what was written may be old: it is all done again.
// Nodes that are read back decide nothing but whose they are, for reads lag behind.
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

// once does what one reading of ledger and EC2 says.
func (w *follower) once(ctx context.Context, record ledger.Record, i *inventory.Instance) (wrote bool, err error) {
	switch {
	case record.Retired:
		return w.deleteOwn(ctx, w.cluster, w.of.NodeID())
	case i == nil || isGone(i): // its own event, or the sweep, off-boards it
		return false, nil
	case record.ConfirmedHostname == "" || !node.Lease(record).After(w.Now()):
		return false, nil
	}
	there, err := w.cluster.Node(ctx, w.of.NodeID())
	switch {
	case errors.Is(err, teleport.ErrNotFound) && w.dismissed:
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
		return false, nil // it may lack an address because it does not run
	case errors.Is(err, policy.ErrRefused) && w.dismisses:
		return w.dismiss(ctx, err)
	case err != nil:
		return false, err
	case isSame(want, *there, record) && !w.dismissed:
		return false, nil
	}
	return w.write(ctx, want)
}

func (w *follower) write(ctx context.Context, want teleport.Node) (bool, error) {
	if err := w.cluster.UpsertNode(ctx, want); err != nil {
		return false, err
	}
	w.dismissed = false
	w.Log.InfoContext(ctx, "the node was brought up to date", slog.Any("", w.of), slog.String("node_id", want.ID), slog.String("hostname", want.Hostname),
		slog.String("address", want.Address), slog.Any("labels", want.Labels))
	return true, nil
}

// dismiss deletes the node of an instance that the policy no longer admits.
func (w *follower) dismiss(ctx context.Context, reason error) (bool, error) {
	w.Log.WarnContext(ctx, "the policy no longer admits the instance: its node goes", slog.Any("", w.of), slog.String("node_id", w.of.NodeID()), slog.String("reason", reason.Error()))
	deleted, err := w.deleteOwn(ctx, w.cluster, w.of.NodeID())
	w.dismissed = w.dismissed || deleted
	return deleted, err
}

// isSame compares all that a node says. The ledger keeps whole seconds of a lease, and
// older records none.
func isSame(want, node teleport.Node, r ledger.Record) bool {
	lease := r.Lease.IsZero() || want.Expires.Sub(node.Expires).Abs() < time.Second
	return lease && want.Hostname == node.Hostname && want.Address == node.Address && maps.Equal(want.Labels, node.Labels)
}
