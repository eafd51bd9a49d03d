package upkeep

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/emf"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

// kinds counts a batch's messages by type.
type kinds struct{ states, tags, ignored, dropped int }

// tally counts changes of nodes, and the time and errors of the services that the fleet
// function calls. Calls may be concurrent.
type tally struct {
	deleted, written      atomic.Int64
	ec2, ledger, teleport service
}

// service is the time and errors of the calls to one service.
type service struct {
	took   atomic.Int64 // nanoseconds
	errors atomic.Int64
}

// watch times a call and counts its error, unless the error is an answer such as "not
// found". A call cut short by the caller's own deadline says nothing about the service.
func (s *service) watch(ctx context.Context, now func() time.Time, answers error, call func() error) error {
	start := now()
	err := call()
	s.took.Add(int64(now().Sub(start)))
	if err != nil && ctx.Err() == nil && !errors.Is(err, answers) {
		s.errors.Add(1)
	}
	return err
}

// addTo adds the service's numbers to a log line's metrics.
func (s *service) addTo(m *emf.Set, name string) {
	m.Milliseconds("fleet_"+name+"_ms", time.Duration(s.took.Load()))
	m.Count(name+"_errors", int(s.errors.Load()))
}

func (t *tally) addTo(m *emf.Set) {
	t.ec2.addTo(m, "ec2")
	t.ledger.addTo(m, "ledger")
	t.teleport.addTo(m, "teleport")
}

// watchedCluster is a cluster that counts successful calls, from any caller: the metrics
// then report what was done, not what was planned.
type watchedCluster struct {
	Cluster
	tally *tally
	now   func() time.Time
}

func (c watchedCluster) watch(ctx context.Context, call func() error) error {
	return c.tally.teleport.watch(ctx, c.now, teleport.ErrNotFound, call)
}

func (c watchedCluster) Node(ctx context.Context, id string) (n *node.Node, err error) {
	err = c.watch(ctx, func() (err error) { n, err = c.Cluster.Node(ctx, id); return err })
	return n, err
}

func (c watchedCluster) NodesWith(ctx context.Context, labels map[string]string) (nodes []node.Node, err error) {
	err = c.watch(ctx, func() (err error) { nodes, err = c.Cluster.NodesWith(ctx, labels); return err })
	return nodes, err
}

func (c watchedCluster) DeleteNode(ctx context.Context, id string) error {
	err := c.watch(ctx, func() error { return c.Cluster.DeleteNode(ctx, id) })
	if err == nil {
		c.tally.deleted.Add(1)
	}
	return err
}

func (c watchedCluster) UpsertNode(ctx context.Context, n node.Node) error {
	err := c.watch(ctx, func() error { return c.Cluster.UpsertNode(ctx, n) })
	if err == nil {
		c.tally.written.Add(1)
	}
	return err
}

type watchedInventory struct {
	Inventory
	calls *service
	now   func() time.Time
}

func (v watchedInventory) Instances(ctx context.Context, at ec2ref.Place, ids []ec2ref.InstanceID) (found map[ec2ref.InstanceID]*inventory.Instance, err error) {
	err = v.calls.watch(ctx, v.now, nil, func() (err error) {
		found, err = v.Inventory.Instances(ctx, at, ids)
		return err
	})
	return found, err
}

func (v watchedInventory) All(ctx context.Context, at ec2ref.Place) (found map[ec2ref.InstanceID]*inventory.Instance, err error) {
	err = v.calls.watch(ctx, v.now, nil, func() (err error) { found, err = v.Inventory.All(ctx, at); return err })
	return found, err
}

func (v watchedInventory) CheckAccount(ctx context.Context, account ec2ref.Account) error {
	return v.calls.watch(ctx, v.now, nil, func() error { return v.Inventory.CheckAccount(ctx, account) })
}

type watchedLedger struct {
	Ledger
	calls *service
	now   func() time.Time
}

func (l watchedLedger) Lookup(ctx context.Context, i ec2ref.Instance) (record ledger.Record, err error) {
	err = l.calls.watch(ctx, l.now, nil, func() (err error) { record, err = l.Ledger.Lookup(ctx, i); return err })
	return record, err
}

func (l watchedLedger) LookupAll(ctx context.Context, instances []ec2ref.Instance) (found map[ec2ref.Instance]ledger.Record, err error) {
	err = l.calls.watch(ctx, l.now, nil, func() (err error) { found, err = l.Ledger.LookupAll(ctx, instances); return err })
	return found, err
}

func (l watchedLedger) Retire(ctx context.Context, i ec2ref.Instance) error {
	return l.calls.watch(ctx, l.now, nil, func() error { return l.Ledger.Retire(ctx, i) })
}

func (l watchedLedger) Announce(ctx context.Context, i ec2ref.Instance) (record ledger.Record, err error) {
	err = l.calls.watch(ctx, l.now, nil, func() (err error) { record, err = l.Ledger.Announce(ctx, i); return err })
	return record, err
}

// watched returns the same fleet with a tally of its calls.
func (f *Fleet) watched() (*Fleet, *tally) {
	t, copied := new(tally), *f
	copied.Inventory = watchedInventory{f.Inventory, &t.ec2, f.Now}
	copied.Ledger = watchedLedger{f.Ledger, &t.ledger, f.Now}
	copied.Connect = func(ctx context.Context) (cluster Cluster, err error) {
		err = t.teleport.watch(ctx, f.Now, nil, func() (err error) { cluster, err = f.Connect(ctx); return err })
		if err != nil {
			return nil, err
		}
		return watchedCluster{cluster, t, f.Now}, nil
	}
	return &copied, t
}

// logBatch logs a batch (docs/audit.md).
func (f *Fleet) logBatch(ctx context.Context, start time.Time, k kinds, t *tally, failures int) {
	m := emf.By("signer")
	m.Count("state_events", k.states)
	m.Count("tag_events", k.tags)
	m.Count("ignored_events", k.ignored)
	m.Count("dropped_events", k.dropped)
	m.Count("event_failures", failures)
	m.Count("offboarded", int(t.deleted.Load()))
	m.Count("relabeled", int(t.written.Load()))
	t.addTo(m)
	f.logLine(ctx, "events", failures+k.dropped > 0, start, m, "events_ms")
}

// logSweep logs a sweep.
func (f *Fleet) logSweep(ctx context.Context, start time.Time, r Report, t *tally, err error) {
	m := emf.By("signer")
	// Whether the sweep covered all accounts and regions.
	m.Happened("sweeps", err == nil && r.Next == "")
	m.Count("sweep_nodes", r.Nodes)
	m.Count("sweep_deleted", r.Deleted)
	m.Count("sweep_mended", r.Repaired)
	m.Count("sweep_refused", r.Refused)
	m.Count("sweep_incomplete", r.Incomplete)
	m.Count("sweep_unenrolled", r.Unenrolled)
	m.Count("sweep_foreign", r.Foreign)
	m.Count("sweep_missing", r.Missing)
	m.Count("sweep_over_limit", r.OverLimit)
	failed := r.Failed
	if err != nil {
		failed++
	}
	m.Count("sweep_failed", failed)
	m.Count("health_changed_percent", changedPercent(r.HealthChanged, r.Nodes))
	t.addTo(m)
	attrs := []slog.Attr{}
	if r.Next != "" {
		attrs = append(attrs, slog.String("next", r.Next))
	}
	f.logLine(ctx, "sweep", failed+r.OverLimit > 0, start, m, "sweep_ms", attrs...)
}

func (f *Fleet) logLine(ctx context.Context, message string, wrong bool, start time.Time, m *emf.Set, took string, attrs ...slog.Attr) {
	end := f.Now()
	m.Milliseconds(took, end.Sub(start))
	level := slog.LevelInfo
	if wrong {
		level = slog.LevelWarn
	}
	if !f.Log.Enabled(ctx, level) {
		return
	}
	// The line has the same time as the metrics.
	record := slog.NewRecord(end, level, message, 0)
	record.AddAttrs(slog.String("signer", f.Audience))
	record.AddAttrs(attrs...)
	record.AddAttrs(emf.Attrs(end, m)...)
	// If writing the log line fails, there is nowhere to report it.
	_ = f.Log.Handler().Handle(ctx, record)
}
