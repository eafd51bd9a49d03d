package teleport

import (
	"testing"
	"time"
)

// The clock that a client gets may have a monotonic reading; the times that it keeps have
// none.
func TestWallClockHasNoMonotonicReading(t *testing.T) {
	for name, clock := range map[string]func() time.Time{"the default": nil, "a given one": time.Now} {
		if now := wallClock(clock)(); now != now.Round(0) {
			t.Errorf("%s: %v", name, now)
		}
	}
}

func TestIsRecent(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for rested, want := range map[time.Duration]bool{
		0: true, idleLimit - 1: true, idleLimit: false, 45 * time.Minute: false, -time.Second: false,
	} {
		if got := isRecent(now.Add(-rested), now); got != want {
			t.Errorf("rested %s: %t, want %t", rested, got, want)
		}
	}
}
