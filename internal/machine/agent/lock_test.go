package agent

import (
	"errors"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

func TestOneRunAtATime(t *testing.T) {
	m := newMachine(t)
	began := time.Now()
	unlock, err := state.Lock(m.stateDir, began)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		after   time.Duration
		kind    fault.Kind
		running bool // the timer's run exits with 0
		message string
		hint    string
	}{
		{0, fault.Temporary, true, "another run of hallmark is still in progress", "wait for it to end"},
		{state.LongestRun, fault.Temporary, true, "another run", "wait for it to end"},
		{-time.Hour, fault.Temporary, true, "another run", "wait for it to end"}, // the clock was set back
		{state.LongestRun + time.Second, fault.Failed, false, "since " + began.UTC().Format("2006-01-02"), "stop it"},
	} {
		m.now = func() time.Time { return began.Add(test.after) }
		_, err := m.Renew(t.Context())
		machinetest.WantError(t, err, test.kind, test.message, test.hint)
		if errors.Is(err, state.ErrRunning) != test.running {
			t.Errorf("after %s: %v, want it taken for running: %v", test.after, err, test.running)
		}
	}
	unlock()
	m.now = time.Now
	if _, err := m.Enroll(t.Context()); err != nil {
		t.Error(err)
	}
}
