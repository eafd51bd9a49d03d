package upkeep

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

// An instance may disappear without an event and without a node: the event was lost, and
// the node's lease ended before a sweep. Its record then keeps its names. So each sweep
// also takes a small step through the ledger's records whose certificates have all
// expired, and asks EC2 about their instances. These records have no nodes, but some
// belong to machines that were stopped for a long time: retiring such a record would lock
// the machine out. So the rules for missing instances apply here, too, with a separate
// limit.

// forgetAbsence is how long the walk remembers a missing instance between two looks:
// longer than a walk through any ledger takes.
const forgetAbsence = 60 * 24 * time.Hour

// Records walks the records whose certificates have all expired. *ledger.DynamoDB
// implements it.
type Records interface {
	// Expired returns one step of the walk. From is the Next of an earlier step.
	Expired(ctx context.Context, from string, now time.Time) (ledger.Expired, error)
	// RetireExpired retires a record if it is still expired, and reports whether it did.
	RetireExpired(ctx context.Context, i ec2ref.Instance, now time.Time) (bool, error)
}

// walk is the position of the walk and the missing instances found so far.
type walk struct {
	// Next is where the next step begins; empty means from the start.
	Next string `json:"next,omitempty"`
	absences
}

// ExpiredReport is the result of one step of the walk.
type ExpiredReport struct {
	// Records counts the expired records in this step that belong to this signer.
	Records int
	// Retired counts records retired because their instances are gone.
	Retired int
	// Missing counts instances that EC2 does not show and that must be missing again
	// later.
	Missing int
	// OverLimit counts instances that wait because of the daily limit.
	OverLimit int
	// Failed counts the accounts and regions that EC2 did not answer for, and the records
	// that could not be retired. The walk comes back to them.
	Failed int
}

// step is one step of the walk in progress.
type step struct {
	scope
	now    time.Time
	report *ExpiredReport
}

// RetireExpired takes one step of the walk through expired records, and retires those
// whose instances are gone. It asks EC2 once for each account and region in the step,
// which has at most ledger.MaxExpired records.
func (f *Fleet) RetireExpired(ctx context.Context) (ExpiredReport, error) {
	now := f.Now().UTC().Round(0)
	var from string
	if err := f.noteWalk(ctx, now, func(w *walk) { from = w.Next }); err != nil {
		return ExpiredReport{}, err
	}
	within, err := f.scope(ctx)
	if err != nil {
		return ExpiredReport{}, err
	}
	found, err := f.Records.Expired(ctx, from, now)
	if err != nil {
		return ExpiredReport{}, err
	}
	var report ExpiredReport
	s := step{within, now, &report}
	for at, instances := range s.ownRecords(found.Records) {
		if err := s.settle(ctx, at, instances); err != nil && ctx.Err() == nil {
			report.Failed++
			f.Log.ErrorContext(ctx, "cannot check expired records; left unchanged", slog.Any("", at), slog.Int("records", len(instances)), slog.Any("error", err))
		}
	}
	if ctx.Err() == nil { // or the same step comes again
		err = f.noteWalk(ctx, now, func(w *walk) { w.Next = found.Next })
	}
	f.logExpired(ctx, report)
	return report, errors.Join(err, ctx.Err())
}

// ownRecords groups this signer's records by account and region. It leaves out accounts
// and regions that are not listed, and records of another signer that shares the ledger.
func (s step) ownRecords(records map[ec2ref.Instance]ledger.Record) map[ec2ref.Place][]ec2ref.Instance {
	byPlace := make(map[ec2ref.Place][]ec2ref.Instance)
	for i, r := range records {
		if s.has(i.Place()) && (r.Signer == "" || r.Signer == s.Audience) {
			at := i.Place()
			byPlace[at] = append(byPlace[at], i)
			s.report.Records++
		}
	}
	return byPlace
}

// settle asks EC2 about the instances of one account and region.
func (s step) settle(ctx context.Context, at ec2ref.Place, instances []ec2ref.Instance) error {
	slices.SortFunc(instances, func(a, b ec2ref.Instance) int { return cmp.Compare(a.ID, b.ID) })
	ids := make([]ec2ref.InstanceID, len(instances))
	for n, i := range instances {
		ids[n] = i.ID
	}
	shown, err := s.Inventory.Instances(ctx, at, ids)
	if err != nil {
		return fmt.Errorf("ask EC2: %w", err)
	}
	var missing, gone []ec2ref.Instance
	for _, i := range instances {
		switch found := shown[i.ID]; {
		case found == nil:
			missing = append(missing, i)
		case isGone(found):
			gone = append(gone, i)
		}
	}
	if len(missing) > 0 {
		// With another account's credentials, every instance would be missing.
		if err := s.Inventory.CheckAccount(ctx, at.Account); err != nil {
			return err
		}
	}
	due, err := s.due(ctx, at, missing, instances)
	if err != nil {
		return err
	}
	for _, i := range slices.Concat(gone, due) {
		if err := s.retire(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// due notes missing instances, forgets those that EC2 shows, and returns the ones to
// treat as gone, within the limit.
func (s step) due(ctx context.Context, at ec2ref.Place, missing, asked []ec2ref.Instance) (due []ec2ref.Instance, err error) {
	isAsked := make(map[string]bool, len(asked))
	for _, i := range asked {
		isAsked[absenceKey(i)] = true
	}
	err = s.noteWalk(ctx, s.now, func(w *walk) {
		due = w.note(at, missing, func(key string) bool { return isAsked[key] }, s.now)
	})
	s.report.Missing += len(missing) - len(due)
	if err != nil || len(due) == 0 {
		return nil, err
	}
	nodes, err := s.size(ctx, at)
	if err != nil {
		return nil, err
	}
	nodes.all += len(asked)
	nodes.here += len(asked)
	all := due
	err = s.noteWalk(ctx, s.now, func(w *walk) {
		// One at a time: a whole step above the limit must not wait forever.
		due = nil
		for _, i := range all {
			left := size{nodes.all - len(due), nodes.here - len(due)}
			if w.giveUp(at, []ec2ref.Instance{i}, left, nil, s.now) {
				due = append(due, i)
			}
		}
	})
	s.report.OverLimit += len(all) - len(due)
	return due, err
}

func (s step) retire(ctx context.Context, i ec2ref.Instance) error {
	retired, err := s.Records.RetireExpired(ctx, i, s.now)
	if err != nil {
		return err
	}
	if retired {
		s.report.Retired++
		s.Log.InfoContext(ctx, "instance is gone and had no node; record retired, names released", slog.Any("", i))
	}
	return nil
}

// noteWalk updates the stored state of the walk.
func (f *Fleet) noteWalk(ctx context.Context, now time.Time, change func(*walk)) error {
	return f.Walk.Update(ctx, func(text []byte) ([]byte, error) {
		w, err := parseWalk(text, now)
		if err != nil {
			return nil, err
		}
		change(&w)
		if w.Next == "" && len(w.Missing)+len(w.Retired) == 0 {
			return nil, nil // as before anything was noted
		}
		return json.Marshal(w)
	})
}

func parseWalk(text []byte, now time.Time) (walk, error) {
	a, err := parseAbsences(text, now)
	var place struct{ Next string }
	if err == nil && len(text) > 0 {
		err = json.Unmarshal(text, &place)
	}
	if err != nil {
		return walk{}, fmt.Errorf("read where the walk through expired records stands: %w", err)
	}
	w := walk{place.Next, a}
	maps.DeleteFunc(w.Missing, func(_ string, since time.Time) bool { return now.Sub(since) >= forgetAbsence })
	return w, nil
}

// logExpired logs a step that found anything.
func (f *Fleet) logExpired(ctx context.Context, r ExpiredReport) {
	if r == (ExpiredReport{}) {
		return
	}
	level := slog.LevelInfo
	if r.Failed > 0 {
		level = slog.LevelWarn
	}
	f.Log.Log(ctx, level, "expired records", slog.String("signer", f.Audience), slog.Int("records", r.Records), slog.Int("ended", r.Retired),
		slog.Int("missing", r.Missing), slog.Int("over_limit", r.OverLimit), slog.Int("failed", r.Failed))
}
