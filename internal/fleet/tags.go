package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"

	"github.com/hallmark-ssh/hallmark/internal/inventory"
	"github.com/hallmark-ssh/hallmark/internal/ledger"
	"github.com/hallmark-ssh/hallmark/internal/policy"
	"github.com/hallmark-ssh/hallmark/internal/teleport"
)

// TagChange is an event that says that an instance's tags have changed.
type TagChange struct {
	Instance ledger.Instance
	// Version orders the changes of one instance's tags.
	Version uint64
}

// place is where one question to EC2 reaches.
type place struct{ account, region string }

// TagsChanged brings the labels of the instances' nodes up to date, with one
// question to EC2 for all instances of an account and region. It returns an error
// for each change, nil where it is done or there is nothing to do.
func (f *Fleet) TagsChanged(ctx context.Context, changes []TagChange) []error {
	errs := make([]error, len(changes))
	instances := make([]ledger.Instance, len(changes))
	byPlace := make(map[place][]int)
	for n, change := range changes {
		i := change.Instance
		if instances[n] = i; !f.serves(ctx, i) {
			continue
		}
		// Seen first, read and written after: see relabel.
		err := f.Ledger.SeeTags(ctx, i, change.Version)
		switch {
		case errors.Is(err, ledger.ErrSeen):
			continue
		case err != nil:
			errs[n] = fmt.Errorf("note the version of the tags of %s: %w", i.ID, err)
			continue
		}
		at := place{i.Account, i.Region}
		byPlace[at] = append(byPlace[at], n)
	}
	if len(byPlace) == 0 {
		return errs
	}
	pass, err := f.newPass(ctx)
	for at, group := range byPlace {
		var found map[string]*inventory.Instance
		asked := err
		if asked == nil {
			found, asked = f.ask(ctx, at, instances, group)
		}
		for _, n := range group {
			if errs[n] = asked; asked == nil {
				errs[n] = pass.tagsChanged(ctx, changes[n], found[instances[n].ID])
			}
		}
	}
	return errs
}

func (p pass) tagsChanged(ctx context.Context, change TagChange, i *inventory.Instance) error {
	_, err := p.relabel(ctx, change.Instance, change.Version, i)
	switch {
	case errors.Is(err, policy.ErrRefused):
		return p.dismiss(ctx, change.Instance, err)
	case errors.Is(err, policy.ErrIncomplete):
		// It passes by itself, and the sweep then brings the node up to date.
		p.Log.InfoContext(ctx, "EC2 does not show all that the policy needs: the node stays as it is", slog.String("account", change.Instance.Account),
			slog.String("region", change.Instance.Region), slog.String("instance", change.Instance.ID), slog.String("reason", err.Error()))
		return nil
	}
	return err
}

// maxRelabels bounds how often one event chases the next ones. Each of those comes
// with an event of its own.
const maxRelabels = 3

// relabel writes the node of an enrolled instance as it should be, and reports
// whether it had to. It fails with policy.ErrRefused for an instance that runs and
// that the policy does not admit. An instance that is not enrolled, or has no node of
// ours, is left alone.
//
// Two events of one instance may be acted on at once, and the one that read the
// older tags may write last. So each notes its version before it reads, and looks
// after it has written whether a later one was noted: then what it wrote may be old,
// and it reads and writes again.
func (p pass) relabel(ctx context.Context, of ledger.Instance, version uint64, i *inventory.Instance) (written bool, err error) {
	for range maxRelabels {
		if isGone(i) {
			return written, nil // its own event, or the sweep, off-boards it
		}
		before, err := p.Ledger.Lookup(ctx, of)
		if err != nil {
			return written, err
		}
		if before.Ended || before.ConfirmedHostname == "" || !before.End.After(p.Now()) {
			return written, nil
		}
		wrote, refused := p.mendOwn(ctx, of, i, before)
		if refused != nil && !errors.Is(refused, policy.ErrRefused) {
			return written, refused
		}
		written = written || wrote
		after, err := p.Ledger.Lookup(ctx, of)
		switch {
		case err != nil:
			return written, err
		case after.Ended:
			// Off-boarded while the node was written: an event must not bring it back.
			return false, p.deleteEnded(ctx, of)
		case after.TagsVersion <= version:
			return written, refused
		}
		version = after.TagsVersion
		if i, err = p.instance(ctx, of); err != nil {
			return written, err
		}
	}
	return written, nil
}

// mendOwn writes the instance's node anew if it is ours and not as it should be.
func (p pass) mendOwn(ctx context.Context, of ledger.Instance, i *inventory.Instance, record ledger.Record) (written bool, err error) {
	node, err := p.cluster.Node(ctx, nodeID(of))
	switch {
	case errors.Is(err, teleport.ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	case node.Labels[signerLabel] != p.Audience:
		return false, nil
	}
	want, err := p.render(i, record)
	switch {
	case err != nil && i.State != inventory.StateRunning:
		return false, nil // it may lack an address because it does not run
	case err != nil:
		return false, err
	case isSame(want, *node):
		return false, nil
	}
	if err := p.cluster.UpsertNode(ctx, want); err != nil {
		return false, err
	}
	p.Log.InfoContext(ctx, "the node was brought up to date", slog.String("account", of.Account), slog.String("region", of.Region),
		slog.String("instance", of.ID), slog.String("node_id", node.ID), slog.String("address", want.Address), slog.Any("labels", want.Labels))
	return true, nil
}

// dismiss deletes the node of an instance whose tags have changed so that the policy
// no longer admits it: who tags a machine out of reach means it.
func (p pass) dismiss(ctx context.Context, of ledger.Instance, reason error) error {
	p.Log.WarnContext(ctx, "the policy no longer admits the instance: its node goes", slog.String("account", of.Account),
		slog.String("region", of.Region), slog.String("instance", of.ID), slog.String("node_id", nodeID(of)), slog.String("reason", reason.Error()))
	_, err := p.deleteOwn(ctx, p.cluster, nodeID(of))
	return err
}

// isSame compares what may change between two renewals.
func isSame(a, b teleport.Node) bool {
	return a.Address == b.Address && maps.Equal(a.Labels, b.Labels)
}

func (p pass) deleteEnded(ctx context.Context, i ledger.Instance) error {
	if err := p.cluster.DeleteNode(ctx, nodeID(i)); err != nil && !errors.Is(err, teleport.ErrNotFound) {
		return err
	}
	return nil
}
