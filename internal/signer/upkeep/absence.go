package upkeep

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
)

// An instance that EC2 reports as shutting down or terminated is gone. An instance that
// is missing from EC2's answer may be gone: EC2 forgets a terminated instance after about
// an hour. But a role for another account, a proxy or a fault in EC2 may also hide it. So
// an instance counts as gone only if it is missing twice, some time apart, and only a
// limited number may be off-boarded this way per day.

const (
	// absenceTime is how long an instance must be missing before its record is retired.
	absenceTime = 15 * time.Minute
	// limitTime is the period of the limit.
	limitTime = 24 * time.Hour
	// maxAbsences bounds the remembered instances. At about 75 bytes each they stay below
	// the 400 KB of a DynamoDB item. The rest waits.
	maxAbsences = 4000
	// smallPlace is the largest number of nodes at which an account and region counts as
	// small.
	smallPlace = 40
)

// Notes store a text durably. *stored.Text implements it, and *stored.Memory for tests.
type Notes interface {
	// Update replaces the text with the result of change, which it may call several
	// times.
	Update(ctx context.Context, change func(text []byte) ([]byte, error)) error
}

// absences are the instances that EC2 did not show, by absenceKey.
type absences struct {
	// Missing says since when each instance is missing.
	Missing map[string]time.Time `json:"missing,omitempty"`
	// Retired says when each instance was given up, within limitTime.
	Retired map[string]time.Time `json:"ended,omitempty"`
}

func absenceKey(i ec2ref.Instance) string { return i.String() }

func parseAbsences(text []byte, now time.Time) (absences, error) {
	a := absences{Missing: make(map[string]time.Time), Retired: make(map[string]time.Time)}
	if len(text) > 0 {
		if err := json.Unmarshal(text, &a); err != nil {
			return a, fmt.Errorf("read which instances are missing: %w", err)
		}
	}
	maps.DeleteFunc(a.Retired, func(_ string, at time.Time) bool { return now.Sub(at) >= limitTime })
	return a, nil
}

// note records the missing instances of a place. It forgets the place's other instances
// for which isShown returns true. It returns the instances that have been missing for
// long enough or were given up earlier.
func (a absences) note(at ec2ref.Place, missing []ec2ref.Instance, isShown func(key string) bool, now time.Time) (due []ec2ref.Instance) {
	keys := make(map[string]bool, len(missing))
	for _, i := range missing {
		key := absenceKey(i)
		keys[key] = true
		since, noted := a.Missing[key]
		_, retired := a.Retired[key]
		switch {
		case retired || noted && now.Sub(since) >= absenceTime:
			due = append(due, i)
		case !noted && len(a.Missing)+len(a.Retired) < maxAbsences:
			a.Missing[key] = now
		}
	}
	maps.DeleteFunc(a.Missing, func(key string, _ time.Time) bool {
		return !keys[key] && strings.HasPrefix(key, at.String()+"/") && isShown(key)
	})
	return due
}

// size is the number of nodes, in total and in one place.
type size struct{ all, here int }

// giveUp moves instances from missing to retired, all or none, and reports whether the
// limit allows it. A limit given by an operator replaces the usual one this time.
func (a absences) giveUp(at ec2ref.Place, due []ec2ref.Instance, n size, limit *int, now time.Time) bool {
	here := 0
	for key := range a.Retired {
		if strings.HasPrefix(key, at.String()+"/") {
			here++
		}
	}
	more := 0
	for _, i := range due {
		if _, retired := a.Retired[absenceKey(i)]; !retired {
			more++
		}
	}
	all := len(a.Retired)
	within := all+more <= defaultLimit(n.all+all) && here+more <= placeLimit(n.here+here)
	if limit != nil {
		within = more <= *limit
	}
	if !within {
		return false
	}
	for _, i := range due {
		key := absenceKey(i)
		if _, retired := a.Retired[key]; !retired {
			a.Retired[key] = now
		}
		delete(a.Missing, key)
	}
	return true
}

// defaultLimit is how many nodes of missing instances Hallmark may delete per day: a
// tenth of them, but at least 20. Above that, an operator must decide: a fleet that
// disappears at once looks just like a fault in EC2.
func defaultLimit(nodes int) int { return max(20, nodes/10) }

// placeLimit is how many of them may be in an account and region with this many nodes.
func placeLimit(nodes int) int {
	if nodes >= smallPlace {
		return nodes
	}
	return max(1, nodes/2)
}

// absent notes the instances of a place that EC2 does not show. It returns the ones to
// treat as gone, and how many wait for a second look or for an operator. It calls n only
// if some have been missing for long enough.
func (f *Fleet) absent(ctx context.Context, at ec2ref.Place, missing []ec2ref.Instance, isShown func(key string) bool,
	n func() (size, error), limit *int,
) (gone []ec2ref.Instance, waiting, overLimit int, err error) {
	if len(missing) > 0 {
		// With another account's credentials, every instance would be missing.
		if err := f.Inventory.CheckAccount(ctx, at.Account); err != nil {
			return nil, 0, 0, err
		}
	}
	now := f.Now().UTC().Round(0)
	var due []ec2ref.Instance
	err = f.noteAbsences(ctx, now, func(a absences) { due = a.note(at, missing, isShown, now) })
	if err != nil || len(due) == 0 {
		return nil, len(missing), 0, err
	}
	nodes, err := n()
	if err != nil {
		return nil, 0, 0, err
	}
	within := false
	if err := f.noteAbsences(ctx, now, func(a absences) { within = a.giveUp(at, due, nodes, limit, now) }); err != nil {
		return nil, 0, 0, err
	}
	if within {
		return due, len(missing) - len(due), 0, nil
	}
	f.Log.ErrorContext(ctx, "too many instances are missing from EC2's answers; none off-boarded here; check EC2, then sweep with a higher limit",
		slog.Any("", at), slog.Int("missing", len(due)),
		slog.Int("nodes", nodes.all), slog.Int("nodes_here", nodes.here), slog.Bool("alarm", true))
	return nil, len(missing) - len(due), len(due), nil
}

func (f *Fleet) noteAbsences(ctx context.Context, now time.Time, change func(absences)) error {
	return f.Missing.Update(ctx, func(text []byte) ([]byte, error) {
		a, err := parseAbsences(text, now)
		if err != nil {
			return nil, err
		}
		change(a)
		if len(a.Missing)+len(a.Retired) == 0 {
			return nil, nil // as before anything was noted
		}
		return json.Marshal(a)
	})
}

// isGone reports whether an instance will never run again. Only EC2 can say so: an
// instance that is missing from its answer (nil) may be hidden.
func isGone(i *inventory.Instance) bool {
	return i != nil && (i.State == inventory.StateShuttingDown || i.State == inventory.StateTerminated)
}
