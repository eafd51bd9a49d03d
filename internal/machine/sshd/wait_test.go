package sshd

import (
	"cmp"
	"context"
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/backoff"
)

var errBusy = errors.New("busy")

func TestWait(t *testing.T) {
	errLast := errors.New("still busy")
	tests := map[string]struct {
		answers []error // the last one again and again
		slow    bool    // whether each check lasts until the context ends
		calls   int
		took    time.Duration
		want    error
	}{
		"at once":                  {answers: []error{nil}, calls: 1},
		"at the third check":       {answers: []error{errBusy, errBusy, nil}, calls: 3, took: 30 * time.Millisecond},
		"the last error":           {answers: []error{errBusy, errBusy, errLast}, calls: 12, took: 10 * time.Second, want: errLast},
		"a check that is too slow": {answers: []error{errBusy}, slow: true, calls: 1, took: 10 * time.Second, want: errBusy},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				began, calls := time.Now(), 0
				err := Wait(ctx, func(ctx context.Context) error {
					if calls++; test.slow {
						<-ctx.Done()
					}
					return test.answers[min(calls, len(test.answers))-1]
				})
				if took := time.Since(began); !errors.Is(err, test.want) || calls != test.calls || took != test.took {
					t.Errorf("%v after %d checks and %s; want %v after %d and %s", err, calls, took, test.want, test.calls, test.took)
				}
			})
		})
	}
}

// A check that the end of the context cuts short hides no earlier reason.
func TestWaitKeepsTheReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		calls := 0
		err := Wait(ctx, func(ctx context.Context) error {
			if calls++; calls == 1 {
				return errBusy
			}
			<-ctx.Done()
			return ctx.Err()
		})
		if !errors.Is(err, errBusy) || calls != 2 {
			t.Errorf("%v after %d checks", err, calls)
		}
	})
}

// A connection with the context's deadline may fail a moment before the context ends.
func TestWaitKeepsTheReasonAtTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 1015*time.Millisecond)
		defer cancel()
		early := deadlineContext{ctx, time.Now().Add(time.Second)}
		calls := 0
		err := Wait(early, func(ctx context.Context) error {
			if calls++; calls == 1 {
				return errBusy
			}
			return cmp.Or(backoff.Wait(ctx, time.Second), os.ErrDeadlineExceeded)
		})
		if !errors.Is(err, errBusy) || calls != 2 {
			t.Errorf("%v after %d checks", err, calls)
		}
	})
}

// deadlineContext is a context whose timer fires after its deadline.
type deadlineContext struct {
	context.Context
	deadline time.Time
}

func (c deadlineContext) Deadline() (time.Time, bool) { return c.deadline, true }
