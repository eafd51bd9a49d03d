package fleet

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/emf"
	"github.com/hallmark-ssh/hallmark/internal/teleport"
)

// kinds counts a batch's messages by what they say.
type kinds struct{ states, tags, ignored, dropped int }

// tally counts what happens to nodes.
type tally struct{ deleted, written atomic.Int64 }

// counting is a cluster that counts what went through, whoever asked for it: the
// metrics then say what was done, not what was meant.
type counting struct {
	Cluster
	tally *tally
}

func (c counting) DeleteNode(ctx context.Context, id string) error {
	err := c.Cluster.DeleteNode(ctx, id)
	if err == nil {
		c.tally.deleted.Add(1)
	}
	return err
}

func (c counting) UpsertNode(ctx context.Context, node teleport.Node) error {
	err := c.Cluster.UpsertNode(ctx, node)
	if err == nil {
		c.tally.written.Add(1)
	}
	return err
}

// counted returns the same fleet, with a cluster that counts.
func (f *Fleet) counted() (*Fleet, *tally) {
	t, copied := new(tally), *f
	copied.Connect = func(ctx context.Context) (Cluster, error) {
		cluster, err := f.Connect(ctx)
		if err != nil {
			return nil, err
		}
		return counting{cluster, t}, nil
	}
	return &copied, t
}

// tellBatch writes the line about a batch (docs/audit.md).
func (f *Fleet) tellBatch(ctx context.Context, start time.Time, k kinds, t *tally, failures int) {
	m := emf.By("signer")
	m.Count("state_events", k.states)
	m.Count("tag_events", k.tags)
	m.Count("ignored_events", k.ignored)
	m.Count("dropped_events", k.dropped)
	m.Count("event_failures", failures)
	m.Count("offboarded", int(t.deleted.Load()))
	m.Count("relabeled", int(t.written.Load()))
	f.tell(ctx, "events", failures+k.dropped > 0, start, m, "events_ms")
}

// tellSweep writes the line about a sweep that began.
func (f *Fleet) tellSweep(ctx context.Context, start time.Time, r Report, err error) {
	m := emf.By("signer")
	// Whether all accounts and regions had their turn.
	m.Happened("sweeps", err == nil && r.Next == "")
	m.Count("sweep_nodes", r.Nodes)
	m.Count("sweep_deleted", r.Deleted)
	m.Count("sweep_mended", r.Mended)
	m.Count("sweep_refused", r.Refused)
	m.Count("sweep_unenrolled", r.Unenrolled)
	m.Count("sweep_foreign", r.Foreign)
	m.Count("sweep_over_limit", r.OverLimit)
	failed := r.Failed
	if err != nil {
		failed++
	}
	m.Count("sweep_failed", failed)
	attrs := []slog.Attr{}
	if r.Next != "" {
		attrs = append(attrs, slog.String("next", r.Next))
	}
	f.tell(ctx, "sweep", failed+r.OverLimit > 0, start, m, "sweep_ms", attrs...)
}

func (f *Fleet) tell(ctx context.Context, message string, wrong bool, start time.Time, m *emf.Set, took string, attrs ...slog.Attr) {
	end := f.Now()
	m.Milliseconds(took, end.Sub(start))
	level := slog.LevelInfo
	if wrong {
		level = slog.LevelWarn
	}
	if !f.Log.Enabled(ctx, level) {
		return
	}
	// The line has the time of the clock that the metrics have.
	record := slog.NewRecord(end, level, message, 0)
	record.AddAttrs(slog.String("signer", f.Audience))
	record.AddAttrs(attrs...)
	record.AddAttrs(emf.Attrs(end, m)...)
	// Nobody is left to tell that a line could not be written.
	_ = f.Log.Handler().Handle(ctx, record)
}
