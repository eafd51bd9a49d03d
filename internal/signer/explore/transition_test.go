package explore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

// outcome is the result of a call.
type outcome string

const (
	happens     outcome = "happens"
	isStale     outcome = "reads the state before the last write"
	failsBefore outcome = "fails before it takes effect"
	failsAfter  outcome = "fails after it took effect"
	isRefused   outcome = "is refused"
	dies        outcome = "takes effect, and the process dies"
	// The process no longer waits for this call, because another one failed.
	isCanceled outcome = "is canceled before it takes effect"
	isLate     outcome = "takes effect, though canceled"
)

// isFailure reports whether it is the one failure that an order may have.
func (o outcome) isFailure() bool {
	return o == failsBefore || o == failsAfter || o == isRefused || o == dies
}

var errFailed = errors.New("the call failed")

// timekeeper stands for the operation that moves the clock.
const timekeeper = "clock"

// jumps are how far the clock may move at once: to the renewal, past the end of the lease and
// the certificates, and past the end of the claims. A frozen process sees such jumps.
func jumps() []time.Duration {
	life := policy.DefaultLifetime
	return []time.Duration{life / 3, life + time.Second, life + 10*time.Minute}
}

// transition is a call with its outcome, or a move of the clock.
type transition struct {
	operation, call string
	outcome         outcome
	uses            []use // what it touches, with this outcome
	of              *call
	jump            time.Duration
	number          int // the same for the same transition, in one graph
}

// is reports whether both are equal.
func (t transition) is(s *transition) bool {
	return s.operation == t.operation && s.call == t.call && s.outcome == t.outcome
}

// process is the operation's number.
func (t transition) process() int { return int(t.operation[0] - 'A') }

// failure is the failure, if there is one.
func (t transition) failure() failure {
	switch {
	case t.operation == timekeeper:
		return skipped
	case t.outcome == dies:
		return died
	case t.outcome.isFailure():
		return failed
	}
	return none
}

func (t transition) String() string { return t.operation + "/" + t.call + "/" + string(t.outcome) }

// takesTheFailure reports whether this order may have no other failure.
func (t transition) takesTheFailure() bool { return t.outcome.isFailure() || t.operation == timekeeper }

// outcomes returns the possible outcomes of a call.
func (c waiting) outcomes() []outcome {
	if c.canceled {
		if c.isWrite() {
			return []outcome{isCanceled, isLate, happens}
		}
		return []outcome{isCanceled}
	}
	all := []outcome{happens, failsBefore}
	if c.service == inTeleport {
		if c.maybeRefused {
			all = append(all, isRefused)
		}
		if !c.isWrite() && len(c.uses) > 0 {
			all = append(all, isStale)
		}
	}
	if c.isWrite() { // a read that fails or dies afterwards is like one that fails before
		all = append(all, failsAfter, dies)
	}
	return all
}

// transitions returns what may happen to the calls of a process with this history.
func (h *history) transitions(operation string) []transition {
	var all []transition
	for _, c := range h.calls {
		for _, o := range c.outcomes() {
			t := transition{operation: operation, call: c.name, outcome: o, uses: c.uses, of: c.call}
			if o == failsBefore || o == isRefused || o == isCanceled {
				t.uses = nil
			}
			all = append(all, t)
		}
	}
	return all
}

func clockMoves() []transition {
	var all []transition
	for _, jump := range jumps() {
		all = append(all, transition{operation: timekeeper, call: jump.String(), outcome: happens, jump: jump})
	}
	return all
}

// independent reports whether two possible transitions have the same result in either order:
// neither writes what the other uses.
func independent(a, b *transition) bool {
	switch {
	case a.operation == timekeeper || b.operation == timekeeper:
		return false // each answer comes with the time
	case a.takesTheFailure() && b.takesTheFailure():
		return false // at most one of them
	case a.operation == b.operation && (a.call == b.call || a.outcome.isFailure() || b.outcome.isFailure()):
		return false // what fails or is refused may cancel what else is under way
	}
	for _, u := range a.uses {
		for _, v := range b.uses {
			if u.object == v.object && (u.write || v.write) {
				return false
			}
		}
	}
	return true
}

// take returns the world after a transition, which is the same one if nothing changed, and the
// answer to the call.
func (w *world) take(t *transition) (*world, answer) {
	switch t.outcome {
	case failsBefore, isRefused, isCanceled:
		return w, w.failure(t)
	case isStale:
		return w, t.of.make(w.lagging())
	default: // the others change the world
	}
	if t.of == nil {
		next := w.clone()
		next.advance(t.jump)
		return next, answer{}
	}
	next := w
	if t.of.changes {
		next = w.clone()
	}
	a := t.of.make(next)
	if t.outcome != happens {
		a = w.failure(t)
	}
	return next, a
}

func (w *world) failure(t *transition) answer {
	err := errFailed
	switch {
	case t.outcome == isCanceled || t.outcome == isLate:
		err = context.Canceled
	case t.outcome == isRefused:
		err = teleport.ErrDenied
	case t.of.service == inTeleport:
		err = fmt.Errorf("%w: %w", teleport.ErrUnavailable, errFailed)
	}
	if t.of.service == inTeleport && errors.Is(err, context.Canceled) {
		err = fmt.Errorf("%w: %w", teleport.ErrUnavailable, err)
	}
	return answer{err: err, text: string(t.outcome) + err.Error()}
}

// lagging is the world in which Teleport does not yet show each node's last write.
func (w *world) lagging() *world {
	behind := *w
	behind.nodes = maps.Clone(w.nodes)
	for id, old := range w.before {
		if old == nil {
			delete(behind.nodes, id)
		} else {
			behind.nodes[id] = *old
		}
	}
	return &behind
}

// isOff reports whether the transition cannot happen or changes nothing.
func (w *world) isOff(t *transition) bool {
	if t.outcome != isStale {
		return false
	}
	if !slices.ContainsFunc(t.uses, func(u use) bool { return w.hasChanged(u.object) }) {
		return true
	}
	_, stale := w.take(t)
	now := *t
	now.outcome = happens
	_, fresh := w.take(&now)
	return stale.text == fresh.text
}
