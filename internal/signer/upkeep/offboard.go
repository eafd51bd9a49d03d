package upkeep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

// StatesChanged acts on events about changed instance states, with one call to EC2 for
// all instances of an account and region, and another one for those to delete the nodes of
// because they are stopped. If EC2 confirms that an instance is gone,
// StatesChanged retires its record and deletes its node. If EC2 does not show the
// instance, it must first be missing for a while.
//
// It may run any number of times, in any order, and during an enrollment: it retires the
// record first, so an enrollment in progress finds the record retired when it confirms,
// and deletes the node itself. A stopped instance keeps its record, and its node unless
// the policy says otherwise. StatesChanged returns an error for each instance, nil if it
// is done or nothing needs to be done.
func (f *Fleet) StatesChanged(ctx context.Context, instances []ec2ref.Instance) []error {
	errs := make([]error, len(instances))
	within, err := f.scope(ctx)
	if err != nil {
		return failed(errs, err)
	}
	byPlace := make(map[ec2ref.Place][]int)
	for n, i := range instances {
		if within.serves(ctx, i) {
			at := i.Place()
			byPlace[at] = append(byPlace[at], n)
		}
	}
	for at, group := range byPlace {
		found, err := f.ask(ctx, at, instances, group)
		var missing, stopped []int
		for _, n := range group {
			switch i := found[instances[n].ID]; {
			case err != nil:
				errs[n] = err
			case i == nil:
				missing = append(missing, n)
			case isStopped(i):
				stopped = append(stopped, n)
			default:
				errs[n] = f.stateChanged(ctx, instances[n], i)
			}
		}
		f.stopped(ctx, at, instances, stopped, found, errs)
		f.missing(ctx, at, instances, missing, found, errs)
	}
	return errs
}

// failed returns the same error for each.
func failed(errs []error, err error) []error {
	for n := range errs {
		errs[n] = err
	}
	return errs
}

// missing acts on events about instances that EC2 does not show. An instance that never
// enrolled may be too new for EC2 to show, so its record is not retired.
func (f *Fleet) missing(ctx context.Context, at ec2ref.Place, instances []ec2ref.Instance, group []int, found map[ec2ref.InstanceID]*inventory.Instance, errs []error) {
	byInstance := make(map[ec2ref.Instance][]int)
	var known []ec2ref.Instance
	for _, n := range group {
		i := instances[n]
		if byInstance[i] = append(byInstance[i], n); len(byInstance[i]) > 1 {
			continue // two events about one
		}
		record, err := f.Ledger.Lookup(ctx, i)
		switch {
		case err != nil:
			errs[n] = err
		case record.Retired:
			_, errs[n] = f.offboard(ctx, i)
		case record.Generation == 0:
			f.Log.InfoContext(ctx, "EC2 does not show the instance, which never enrolled; nothing to do",
				slog.Any("", i))
		default:
			known = append(known, i)
		}
	}
	if len(known) == 0 {
		return
	}
	isShown := func(key string) bool { return found[ec2ref.InstanceID(key[len(at.String())+1:])] != nil }
	gone, _, _, err := f.absent(ctx, at, known, isShown, func() (size, error) { return f.size(ctx, at) }, nil)
	for _, i := range known {
		end := err
		if slices.Contains(gone, i) {
			_, end = f.offboard(ctx, i)
		} else if err == nil {
			f.Log.WarnContext(ctx, "EC2 does not show the instance; the next sweeps decide", slog.Any("", i))
		}
		for _, n := range byInstance[i] {
			errs[n] = end
		}
	}
}

// size counts this signer's nodes.
func (f *Fleet) size(ctx context.Context, at ec2ref.Place) (size, error) {
	p, err := f.newPass(ctx)
	if err != nil {
		return size{}, err
	}
	nodes, err := p.nodes(ctx)
	if err != nil {
		return size{}, err
	}
	var report Report
	byPlace := p.sort(ctx, nodes, &report)
	return size{all: report.Nodes, here: len(byPlace[at])}, nil
}

func (f *Fleet) stateChanged(ctx context.Context, i ec2ref.Instance, found *inventory.Instance) error {
	if !isGone(found) {
		f.Log.InfoContext(ctx, "instance still exists; nothing to do", slog.Any("", i), slog.String("state", found.State))
		return nil
	}
	if _, err := f.offboard(ctx, i); err != nil {
		return fmt.Errorf("off-board %s: %w", i.ID, err)
	}
	return nil
}

// stopped deletes the nodes of stopped instances if the policy says so. The ledger keeps their
// records: an instance may start again with its keys and names, even before its node is deleted.
// So stopped announces the writes and asks EC2 again, as every writer of a node does.
func (f *Fleet) stopped(ctx context.Context, at ec2ref.Place, instances []ec2ref.Instance, group []int, found map[ec2ref.InstanceID]*inventory.Instance, errs []error) {
	records := make(map[ec2ref.Instance]ledger.Record)
	var p pass
	var due []int
	for _, n := range group {
		i := instances[n]
		record, err := f.Ledger.Lookup(ctx, i)
		if err == nil && (record.IsOut() || record.ConfirmedHostname == "") {
			f.Log.InfoContext(ctx, "the instance is stopped and not enrolled; nothing to do", slog.Any("", i))
			continue
		}
		if err == nil && p.rules == nil {
			p, err = f.newPass(ctx)
		}
		if err == nil && !p.isRemoved(found[i.ID], record) {
			f.Log.InfoContext(ctx, "the instance is stopped, and its node stays until its lease expires", slog.Any("", i))
			continue
		}
		if err == nil {
			records[i], err = f.Ledger.Announce(ctx, i)
		}
		if errs[n] = err; err == nil {
			due = append(due, n)
		}
	}
	if len(due) == 0 {
		return
	}
	again, err := f.ask(ctx, at, instances, due)
	for _, n := range due {
		if errs[n] = err; err == nil {
			errs[n] = p.removeStopped(ctx, instances[n], records[instances[n]], again[instances[n].ID])
		}
	}
}

func (p pass) removeStopped(ctx context.Context, of ec2ref.Instance, record ledger.Record, i *inventory.Instance) error {
	if !isStopped(i) {
		p.Log.InfoContext(ctx, "the instance is no longer stopped; nothing to do", slog.Any("", of))
		return nil
	}
	w := p.follow(of)
	w.removes = true
	changed, err := w.relabel(ctx, record, i)
	if err != nil {
		return fmt.Errorf("delete the node of %s, which is stopped: %w", of.ID, err)
	}
	p.Log.InfoContext(ctx, "the instance is stopped; its node will be deleted", slog.Any("", of), slog.String("node_id", of.NodeID()), slog.Bool("node_deleted", changed && w.deleted))
	return nil
}

// offboard retires the record, then deletes the node if this signer wrote it, and logs that.
func (f *Fleet) offboard(ctx context.Context, i ec2ref.Instance) (deleted bool, err error) {
	if err := f.Ledger.Retire(ctx, i); err != nil {
		return false, err
	}
	cluster, err := f.Connect(ctx)
	if err != nil {
		return false, err
	}
	if deleted, err = f.deleteOwn(ctx, cluster, i.NodeID()); err != nil {
		return false, err
	}
	f.Log.InfoContext(ctx, "off-boarded", slog.Any("", i), slog.String("node_id", i.NodeID()), slog.Bool("node_deleted", deleted))
	return deleted, nil
}

// deleteOwn deletes a node if it has this signer's label, and reports whether there was
// one.
func (f *Fleet) deleteOwn(ctx context.Context, cluster Cluster, id string) (bool, error) {
	there, err := cluster.Node(ctx, id)
	switch {
	case errors.Is(err, teleport.ErrNotFound):
		// Teleport reads from a cache that lags, so a new node may not show yet. The
		// enrollment that wrote it finds the record retired; the sweep handles everything
		// else.
		return false, nil
	case err != nil:
		return false, err
	case there.Signer() != f.Audience:
		return false, nil // another program's node, even with this id
	}
	err = cluster.DeleteNode(ctx, id)
	if errors.Is(err, teleport.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}
