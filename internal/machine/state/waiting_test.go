package state

import (
	"testing"
	"time"
)

func TestWaiting(t *testing.T) {
	now := time.Unix(1_800_000_000, 0).UTC()
	end := now.Add(10 * time.Hour)
	presented := &State{Presented: true, Certificates: []Certificate{{ValidBefore: end}}}
	w := NextWaiting(presented, "x", now)
	if !w.Since.Equal(now) || !w.AccessEnds.Equal(end) {
		t.Errorf("%+v", w)
	}
	for at, urgent := range map[time.Duration]bool{0: false, 5*time.Hour - 1: false, 5 * time.Hour: true, 20 * time.Hour: true} {
		if w.Urgent(now.Add(at)) != urgent {
			t.Errorf("after %s: urgent %v", at, !urgent)
		}
	}
	later := NextWaiting(&State{Waiting: w}, "y", now.Add(time.Hour))
	if !later.Since.Equal(now) || !later.AccessEnds.Equal(end) || later.Reason != "y" {
		t.Errorf("the next time: %+v", later)
	}
	for name, before := range map[string]*State{"never enrolled": nil, "ended": {Presented: true}, "not in use": {Certificates: presented.Certificates}} {
		if w := NextWaiting(before, "x", now); !w.AccessEnds.IsZero() || !w.Urgent(now) {
			t.Errorf("%s: %+v", name, w)
		}
	}
}
