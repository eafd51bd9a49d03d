package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

const (
	firstBackoff  = 500 * time.Millisecond
	longestDelay  = 30 * time.Second // between two attempts, by our own choice
	longestHonor  = time.Hour        // by Retry-After
	manyAttempts  = 1000             // bounded by the deadline instead
	signerTimeout = 30 * time.Second // of one attempt
)

// retry repeats what failed for a moment, after waits that spread machines which
// all failed at the same moment ("full jitter").
type retry struct {
	// sleep waits, or returns the context's error.
	sleep func(context.Context, time.Duration) error
	// now is the clock by which sleep waits.
	now func() time.Time
	// random returns a number in [0, 1).
	random func() float64
	// log is told of every wait.
	log func(format string, args ...any)
}

func newRetry(log func(string, ...any)) retry {
	return retry{sleep: sleep, now: time.Now, random: rand.Float64, log: log}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// do calls attempt until it succeeds, says that trying again is useless, or the
// context's deadline leaves no time for another wait. It returns the last error of
// attempt: "deadline exceeded" helps nobody.
func (r retry) do(ctx context.Context, attempts int, attempt func(context.Context) (again bool, after time.Duration, err error)) error {
	for n := 0; ; n++ {
		again, after, err := attempt(ctx)
		if err == nil || !again || n+1 >= attempts {
			return err
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return fmt.Errorf("interrupted: %w", err)
		}
		wait := r.wait(n, after)
		if deadline, ok := ctx.Deadline(); ok && deadline.Sub(r.now()) < wait {
			return err
		}
		r.log("%v; trying again in %s", err, wait.Round(100*time.Millisecond))
		if r.sleep(ctx, wait) != nil {
			return err
		}
	}
}

// wait returns how long to wait after attempt n, counted from zero: a random part of
// an exponentially growing time, on top of what the server asked for. The
// server's wish is bounded, so that no answer can silence a machine.
func (r retry) wait(n int, after time.Duration) time.Duration {
	limit := longestDelay
	if n < 10 {
		limit = min(firstBackoff<<n, longestDelay)
	}
	return min(max(after, 0), longestHonor) + time.Duration(r.random()*float64(limit))
}
