//go:build linux

package machine_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/machine"
)

var errNotYet = errors.New("not yet")

func TestPoll(t *testing.T) {
	for name, test := range map[string]struct {
		try  func(ctx context.Context, n int) error
		want error
		took time.Duration
	}{
		"succeeds at last": {try: func(_ context.Context, n int) error {
			if n < 3 {
				return errNotYet
			}
			return nil
		}, took: 100 * time.Millisecond},
		"never succeeds":              {try: func(context.Context, int) error { return errNotYet }, want: errNotYet, took: time.Minute},
		"need not go on":              {try: func(context.Context, int) error { return machine.Fatal(errNotYet) }, want: errNotYet},
		"is cut short when it hangs":  {try: hangs(2), want: errNotYet, took: time.Minute},
		"hangs from the first try on": {try: hangs(1), want: context.DeadlineExceeded, took: time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				began, n := time.Now(), 0
				err := machine.Poll(ctx, time.Minute, func() error {
					n++
					return test.try(ctx, n)
				})
				if !errors.Is(err, test.want) {
					t.Errorf("got %v, want %v", err, test.want)
				}
				if took := time.Since(began); took != test.took {
					t.Errorf("took %v, want %v", took, test.took)
				}
			})
		})
	}
}

// hangs returns a try that does not return before its context ends, from the nth on.
func hangs(from int) func(context.Context, int) error {
	return func(ctx context.Context, n int) error {
		if n < from {
			return errNotYet
		}
		<-ctx.Done()
		return ctx.Err()
	}
}
