package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/hallmark-ssh/hallmark/internal/inventory"
	"github.com/hallmark-ssh/hallmark/internal/ledger"
	"github.com/hallmark-ssh/hallmark/internal/teleport"
)

// StatesChanged acts on events that say that instances' states have changed, with one
// question to EC2 for all instances of an account and region. If EC2 agrees that an
// instance is gone, it ends the ledger's record and deletes the node. It may be called
// any number of times, in any order, and in the middle of an enrollment: the record
// ends first, so an enrollment that is under way finds it ended when it confirms, and
// deletes the node itself. An instance that is stopped keeps its record, and its node
// too unless the policy says otherwise. It returns an error for each instance, nil
// where it is done or there is nothing to do.
func (f *Fleet) StatesChanged(ctx context.Context, instances []ledger.Instance) []error {
	errs := make([]error, len(instances))
	byPlace := make(map[place][]int)
	for n, i := range instances {
		if f.serves(ctx, i) {
			at := place{i.Account, i.Region}
			byPlace[at] = append(byPlace[at], n)
		}
	}
	for at, group := range byPlace {
		found, err := f.ask(ctx, at, instances, group)
		for _, n := range group {
			if errs[n] = err; err == nil {
				errs[n] = f.stateChanged(ctx, instances[n], found[instances[n].ID])
			}
		}
	}
	return errs
}

func (f *Fleet) stateChanged(ctx context.Context, i ledger.Instance, found *inventory.Instance) error {
	log := f.Log.With(slog.String("account", i.Account), slog.String("region", i.Region), slog.String("instance", i.ID))
	switch {
	case isGone(found):
	case isStopped(found):
		return f.stopped(ctx, i, found, log)
	default:
		log.InfoContext(ctx, "the instance lives on", slog.String("state", found.State))
		return nil
	}
	deleted, err := f.offboard(ctx, i)
	if err != nil {
		return fmt.Errorf("off-board %s: %w", i.ID, err)
	}
	log.InfoContext(ctx, "off-boarded", slog.String("node_id", nodeID(i)), slog.Bool("node_deleted", deleted))
	return nil
}

// stopped deletes the node of an instance that is stopped, if the policy says so. The
// ledger's record stays: the instance may be started again, with its keys and names.
func (f *Fleet) stopped(ctx context.Context, i ledger.Instance, found *inventory.Instance, log *slog.Logger) error {
	record, err := f.Ledger.Lookup(ctx, i)
	if err != nil {
		return err
	}
	if record.Ended || record.ConfirmedHostname == "" {
		log.InfoContext(ctx, "an instance that is not enrolled is stopped")
		return nil
	}
	p, err := f.newPass(ctx)
	if err != nil {
		return err
	}
	if !p.rules.RemovesStopped(factsOf(found, record), f.Now()) {
		log.InfoContext(ctx, "the instance is stopped, and its node stays until its lease ends")
		return nil
	}
	deleted, err := f.deleteOwn(ctx, p.cluster, nodeID(i))
	if err != nil {
		return fmt.Errorf("delete the node of %s, which is stopped: %w", i.ID, err)
	}
	log.InfoContext(ctx, "the instance is stopped: its node goes", slog.String("node_id", nodeID(i)), slog.Bool("node_deleted", deleted))
	return nil
}

// offboard ends the record, then deletes the node if it is ours.
func (f *Fleet) offboard(ctx context.Context, i ledger.Instance) (deleted bool, err error) {
	if err := f.Ledger.End(ctx, i); err != nil {
		return false, err
	}
	cluster, err := f.Connect(ctx)
	if err != nil {
		return false, err
	}
	return f.deleteOwn(ctx, cluster, nodeID(i))
}

// deleteOwn deletes a node if it bears our label, and reports whether there was one.
func (f *Fleet) deleteOwn(ctx context.Context, cluster Cluster, id string) (bool, error) {
	node, err := cluster.Node(ctx, id)
	switch {
	case errors.Is(err, teleport.ErrNotFound):
		// Teleport reads from a cache that lags: a node written just now may not show.
		// The enrollment that wrote it finds the record ended; for all else there is the
		// sweep.
		return false, nil
	case err != nil:
		return false, err
	case node.Labels[signerLabel] != f.Audience:
		return false, nil // somebody else's, whatever its id
	}
	err = cluster.DeleteNode(ctx, id)
	if errors.Is(err, teleport.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}
