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

// An instance may end without an event and without a node: the event was lost, and the
// node's lease ran out before a sweep. Its record stays, and holds its names. So the
// ledger is walked in small steps, one with each sweep, for records whose certificates
// have all ended, and EC2 is asked about their instances. No node hangs on these records,
// but a machine that was stopped for long does: to end its record keeps it out for good.
// So the rules for missing instances count here, too, with a limit of their own, which
// takes nothing from that of the nodes.

// forgetAbsence is how long an instance is remembered as missing without being looked at
// again: longer than a walk through any ledger takes.
const forgetAbsence = 60 * 24 * time.Hour

// Records walks the records whose certificates have all ended. *ledger.DynamoDB is one.
type Records interface {
	// Expired returns one step of the walk, from what an earlier step named as Next.
	Expired(ctx context.Context, from string, now time.Time) (ledger.Expired, error)
	// RetireExpired ends a record if it is still expired, and reports whether it did.
	RetireExpired(ctx context.Context, i ec2ref.Instance, now time.Time) (bool, error)
}

// walk is where the walk stands, and which instances EC2 did not show on the way.
type walk struct {
	// Next is where the next step begins; empty is the beginning.
	Next string `json:"next,omitempty"`
	absences
}

// ExpiredReport is what one step of the walk came to.
type ExpiredReport struct {
	// Records are the expired records of the step that are ours to ask about.
	Records int
	// Retired are those whose instances are gone.
	Retired int
	// Missing are those that EC2 does not show, and that have to be missing again later.
	Missing int
	// OverLimit are those that wait because as many as may have ended within a day.
	OverLimit int
	// Failed are the accounts and regions that could not be asked about, and records that
	// could not be ended. The walk comes back to them.
	Failed int
}

// step is one step of the walk on its way.
type step struct {
	*Fleet
	now    time.Time
	report *ExpiredReport
}

// RetireExpired makes one step of the walk through expired records, and ends those whose
// instances are gone. It asks EC2 once about each account and region in the step, which
// has at most ledger.MaxExpired records.
func (f *Fleet) RetireExpired(ctx context.Context) (ExpiredReport, error) {
	now := f.Now().UTC().Round(0)
	var from string
	if err := f.noteWalk(ctx, now, func(w *walk) { from = w.Next }); err != nil {
		return ExpiredReport{}, err
	}
	found, err := f.Records.Expired(ctx, from, now)
	if err != nil {
		return ExpiredReport{}, err
	}
	var report ExpiredReport
	s := step{f, now, &report}
	for at, instances := range s.ownRecords(found.Records) {
		if err := s.settle(ctx, at, instances); err != nil && ctx.Err() == nil {
			report.Failed++
			f.Log.ErrorContext(ctx, "expired records could not be judged: they stay as they are", slog.Any("", at), slog.Int("records", len(instances)), slog.Any("error", err))
		}
	}
	if ctx.Err() == nil { // or the same step comes again
		err = f.noteWalk(ctx, now, func(w *walk) { w.Next = found.Next })
	}
	f.logExpired(ctx, report)
	return report, errors.Join(err, ctx.Err())
}

// ownRecords groups records by account and region. It leaves out what cannot be asked about, and
// what another signer with the same ledger enrolled, which asks itself.
func (s step) ownRecords(records map[ec2ref.Instance]ledger.Record) map[ec2ref.Place][]ec2ref.Instance {
	byPlace := make(map[ec2ref.Place][]ec2ref.Instance)
	for i, r := range records {
		listed := slices.Contains(s.Accounts, i.Account) && slices.Contains(s.Regions, i.Region)
		if listed && (r.Signer == "" || r.Signer == s.Audience) {
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
		// Credentials of another account would make everything missing.
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

// due notes which instances are missing, forgets those that are shown, and returns those
// that are to be taken for gone: as many as the limit leaves.
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
		// One after the other: a whole step that is over the limit must not wait for ever.
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
		s.Log.InfoContext(ctx, "an instance is gone and had no node: its record ends, and its names are free", slog.Any("", i))
	}
	return nil
}

// noteWalk changes what is remembered of the walk.
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

// logExpired writes a line about a step that found anything.
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
