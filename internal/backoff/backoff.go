// Package backoff decides how long to wait before the next attempt, and waits.
package backoff

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// LongestHonored bounds a pause that the other side asks for, for example with a Retry-After
// header: no answer can silence a caller for longer.
const LongestHonored = time.Hour

// Growth says how pauses grow: First after the first failure, twice as much after each
// further failure, up to Longest.
type Growth struct {
	First, Longest time.Duration
}

// Limit returns the longest pause after a number of consecutive failures, at least one.
func (g Growth) Limit(failures int) time.Duration {
	limit := g.First
	for ; failures > 1 && limit < g.Longest; failures-- {
		limit *= 2
	}
	return min(limit, g.Longest)
}

// Pause returns a random part of Limit, in addition to what the other side asked for. random
// is in [0, 1). The random part spreads callers that all failed at the same moment ("full
// jitter").
func (g Growth) Pause(failures int, asked time.Duration, random float64) time.Duration {
	return honored(asked) + time.Duration(random*float64(g.Limit(failures)))
}

func honored(asked time.Duration) time.Duration { return min(max(asked, 0), LongestHonored) }

// Wait waits, or returns the context's error if it ends first.
func Wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// Policy repeats attempts that may succeed later.
type Policy struct {
	Growth
	// Random returns a number in [0, 1). Without it, every pause is as long as its limit.
	Random func() float64
	// Wait waits, or returns the context's error. Without it, Do uses the function Wait.
	Wait func(context.Context, time.Duration) error
	// Now is the clock that Wait uses. With it, Do returns at once if the context's deadline
	// leaves no time for the next pause. Without it, Do waits until the context ends.
	Now func() time.Time
	// Log, if set, receives a line before each pause.
	Log func(format string, args ...any)
}

// Do calls attempt until it succeeds, does not ask for another attempt, has been called
// attempts times, or the context ends. attempt returns whether to try again, and the minimum
// wait that the other side asked for. Do returns attempt's last error: "deadline exceeded"
// would explain nothing.
func (p Policy) Do(ctx context.Context, attempts int, attempt func(context.Context) (again bool, after time.Duration, err error)) error {
	for failures := 1; ; failures++ {
		again, after, err := attempt(ctx)
		if err == nil || !again || failures >= attempts {
			return err
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return fmt.Errorf("interrupted: %w", err)
		}
		pause := p.pause(failures, after)
		if p.isTooLong(ctx, pause) {
			return err
		}
		if p.Log != nil {
			p.Log("%v; retrying in %s", err, pause.Round(100*time.Millisecond))
		}
		if p.wait(ctx, pause) != nil {
			return err
		}
	}
}

func (p Policy) pause(failures int, after time.Duration) time.Duration {
	if p.Random == nil {
		return honored(after) + p.Limit(failures)
	}
	return p.Pause(failures, after, p.Random())
}

func (p Policy) isTooLong(ctx context.Context, pause time.Duration) bool {
	deadline, ok := ctx.Deadline()
	return ok && p.Now != nil && deadline.Sub(p.Now()) < pause
}

func (p Policy) wait(ctx context.Context, pause time.Duration) error {
	if p.Wait == nil {
		return Wait(ctx, pause)
	}
	return p.Wait(ctx, pause)
}
