package backoff

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestPause(t *testing.T) {
	g := Growth{First: 500 * time.Millisecond, Longest: 30 * time.Second}
	for _, test := range []struct {
		failures int
		asked    time.Duration
		random   float64
		want     time.Duration
	}{
		{1, 0, 0, 0},
		{1, 0, 0.5, 250 * time.Millisecond},
		{4, 0, 0.5, 2 * time.Second},
		{7, 0, 0.5, 15 * time.Second},
		{501, 0, 0.5, 15 * time.Second},
		{1, 10 * time.Second, 0.5, 10250 * time.Millisecond},
		{1, 24 * time.Hour, 0.5, time.Hour + 250*time.Millisecond},
		{1, -time.Hour, 0.5, 250 * time.Millisecond},
	} {
		if got := g.Pause(test.failures, test.asked, test.random); got != test.want {
			t.Errorf("Pause(%d, %s, %v) = %s, want %s", test.failures, test.asked, test.random, got, test.want)
		}
	}
}

func TestLimit(t *testing.T) {
	for g, want := range map[Growth][]time.Duration{
		{First: 2, Longest: 15}: {2, 4, 8, 15, 15},
		{First: 3, Longest: 2}:  {2, 2},
		{First: 5, Longest: 5}:  {5, 5},
	} {
		for n, limit := range want {
			if got := g.Limit(n + 1); got != limit {
				t.Errorf("%v.Limit(%d) = %d, want %d", g, n+1, got, limit)
			}
		}
	}
}

var errMoment = errors.New("busy")

func TestDo(t *testing.T) {
	tests := map[string]struct {
		attempts int
		answers  []error       // the last one again and again
		after    time.Duration // that each answer asks for
		timeout  time.Duration
		now      bool // whether Do knows the time
		calls    int
		took     time.Duration
		want     error
	}{
		"at once":                  {attempts: 4, answers: []error{nil}, calls: 1},
		"at the third attempt":     {attempts: 4, answers: []error{errMoment, errMoment, nil}, calls: 3, took: 3 * time.Second},
		"never":                    {attempts: 4, answers: []error{errMoment}, calls: 4, took: 6 * time.Second, want: errMoment},
		"not to be repeated":       {attempts: 4, answers: []error{errMoment, errors.ErrUnsupported}, calls: 2, took: time.Second, want: errors.ErrUnsupported},
		"after what is asked for":  {attempts: 2, answers: []error{errMoment, nil}, after: time.Minute, calls: 2, took: 61 * time.Second},
		"until the context ends":   {attempts: 4, answers: []error{errMoment}, timeout: 2 * time.Second, calls: 2, took: 2 * time.Second, want: errMoment},
		"until no time is left":    {attempts: 4, answers: []error{errMoment}, timeout: 2 * time.Second, now: true, calls: 2, took: time.Second, want: errMoment},
		"with just the time":       {attempts: 3, answers: []error{errMoment}, timeout: 3 * time.Second, now: true, calls: 3, took: 3 * time.Second, want: errMoment},
		"with time for no attempt": {attempts: 4, answers: []error{errMoment}, timeout: time.Millisecond, now: true, calls: 1, want: errMoment},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, began := t.Context(), time.Now()
				if test.timeout > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, test.timeout)
					defer cancel()
				}
				p := Policy{Growth: Growth{First: time.Second, Longest: 3 * time.Second}}
				if test.now {
					p.Now = time.Now
				}
				calls := 0
				err := p.Do(ctx, test.attempts, func(context.Context) (bool, time.Duration, error) {
					answer := test.answers[min(calls, len(test.answers)-1)]
					calls++
					return errors.Is(answer, errMoment), test.after, answer
				})
				if !errors.Is(err, test.want) || calls != test.calls || time.Since(began) != test.took {
					t.Errorf("%v after %d calls and %s, want %v after %d and %s", err, calls, time.Since(began), test.want, test.calls, test.took)
				}
			})
		})
	}
}

// TestDoUses has a policy with all fields set.
func TestDoUses(t *testing.T) {
	var waits []time.Duration
	lines := 0
	p := Policy{
		Growth: Growth{First: time.Second, Longest: time.Minute},
		Random: func() float64 { return 0.25 },
		Wait: func(_ context.Context, d time.Duration) error {
			waits = append(waits, d)
			return nil
		},
		Now: time.Now,
		Log: func(string, ...any) { lines++ },
	}
	_ = p.Do(t.Context(), 4, func(context.Context) (bool, time.Duration, error) { return true, 0, errMoment })
	if want := []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second}; !slices.Equal(waits, want) || lines != len(want) {
		t.Errorf("waited %v, %d lines; want %v", waits, lines, want)
	}
}

func TestDoIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	err := Policy{}.Do(ctx, 2, func(context.Context) (bool, time.Duration, error) {
		cancel()
		return true, 0, errMoment
	})
	if err == nil || err.Error() != "interrupted: busy" {
		t.Errorf("error %v", err)
	}
}

func TestWait(t *testing.T) {
	if err := Wait(t.Context(), time.Nanosecond); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Wait(ctx, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}
