// Package retry repeats what failed for a moment.
package retry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

const (
	firstBackoff = 500 * time.Millisecond
	longestDelay = 30 * time.Second // between two attempts, by our own choice
	// LongestHonor bounds a delay that a Retry-After header asks for.
	LongestHonor = time.Hour
)

// Policy repeats what failed for a moment, after waits that spread machines which
// all failed at the same moment ("full jitter").
type Policy struct {
	// Sleep waits, or returns the context's error.
	Sleep func(context.Context, time.Duration) error
	// Now is the clock by which sleep waits.
	Now func() time.Time
	// Random returns a number in [0, 1).
	Random func() float64
	// Log receives a line for every wait.
	Log func(format string, args ...any)
}

// New returns a policy that sleeps by the system's clock and logs each retry.
func New(log func(string, ...any)) Policy {
	return Policy{Sleep: Sleep, Now: time.Now, Random: rand.Float64, Log: log}
}

// Sleep waits, or returns the context's error if it ends first.
func Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// Do calls attempt until it succeeds, says that trying again is useless, or the
// context's deadline leaves no time for another wait. It returns the last error of
// attempt: "deadline exceeded" helps nobody.
func (r Policy) Do(ctx context.Context, attempts int, attempt func(context.Context) (again bool, after time.Duration, err error)) error {
	for n := 0; ; n++ {
		again, after, err := attempt(ctx)
		if err == nil || !again || n+1 >= attempts {
			return err
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return fmt.Errorf("interrupted: %w", err)
		}
		wait := r.wait(n, after)
		if deadline, ok := ctx.Deadline(); ok && deadline.Sub(r.Now()) < wait {
			return err
		}
		r.Log("%v; retrying in %s", err, wait.Round(100*time.Millisecond))
		if r.Sleep(ctx, wait) != nil {
			return err
		}
	}
}

// wait returns how long to wait after attempt n, counted from zero: a random part of
// an exponentially growing time, on top of what the server asked for. The
// server's wish is bounded, so that no answer can silence a machine.
func (r Policy) wait(n int, after time.Duration) time.Duration {
	limit := longestDelay
	if n < 10 {
		limit = min(firstBackoff<<n, longestDelay)
	}
	return min(max(after, 0), LongestHonor) + time.Duration(r.Random()*float64(limit))
}
