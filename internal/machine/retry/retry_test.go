package retry

import (
	"testing"
	"time"
)

func TestWait(t *testing.T) {
	for _, test := range []struct {
		n      int
		after  time.Duration
		random float64
		want   time.Duration
	}{
		{0, 0, 0, 0},
		{0, 0, 0.5, 250 * time.Millisecond},
		{3, 0, 0.5, 2 * time.Second},
		{6, 0, 0.5, 15 * time.Second},
		{500, 0, 0.5, 15 * time.Second},
		{0, 10 * time.Second, 0.5, 10250 * time.Millisecond},
		{0, 24 * time.Hour, 0.5, time.Hour + 250*time.Millisecond},
		{0, -time.Hour, 0.5, 250 * time.Millisecond},
	} {
		r := Policy{Random: func() float64 { return test.random }}
		if got := r.wait(test.n, test.after); got != test.want {
			t.Errorf("wait(%d, %s) with %v = %s, want %s", test.n, test.after, test.random, got, test.want)
		}
	}
}
