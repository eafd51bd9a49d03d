package explore

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
)

// An operation is the real code, whose calls to EC2, the ledger and Teleport wait until
// the scheduler lets one of them happen. Exactly one happens at a time.

// outcome is what becomes of a call.
type outcome string

const (
	happens     outcome = "happens"
	failsBefore outcome = "fails before it takes effect"
	failsAfter  outcome = "fails after it took effect"
	dies        outcome = "takes effect, and the process dies"
)

var (
	errFailed = errors.New("the call failed")
	errDied   = errors.New("the process died")
)

// use is an object that a call reads or writes: EC2's instance, a record, a node.
type use struct {
	object string
	write  bool
}

// call waits to happen.
type call struct {
	of   *operation
	name string
	uses []use
	do   func() error
	done chan error
}

func (c *call) writes() bool { return slices.ContainsFunc(c.uses, func(u use) bool { return u.write }) }

// operation is one request, event or sweep.
type operation struct {
	name  string
	world *world
	dead  bool
	err   error
}

// world's scheduler.
type scheduler struct {
	mu      sync.Mutex
	pending []*call
	direct  bool // calls happen at once
	failed  bool // the one failure has been used up
}

// at is where a call waits its turn.
func (o *operation) at(name string, uses []use, do func() error) error {
	s := &o.world.scheduler
	s.mu.Lock()
	if o.dead {
		s.mu.Unlock()
		return errDied
	}
	if s.direct {
		s.mu.Unlock()
		return do()
	}
	c := &call{of: o, name: name, uses: uses, do: do, done: make(chan error)}
	s.pending = append(s.pending, c)
	s.mu.Unlock()
	return <-c.done
}

// transition is a call with its outcome.
type transition struct {
	operation, call string
	outcome         outcome
	uses            []use // what it touches, with this outcome
}

func (t transition) String() string { return t.operation + "/" + t.call + "/" + string(t.outcome) }

// independent reports whether two transitions that are both possible may happen in
// either order with the same result: neither writes what the other uses.
func independent(a, b transition) bool {
	if a.outcome != happens && b.outcome != happens {
		return false // at most one of them
	}
	if a.operation == b.operation && (a.outcome != happens || b.outcome != happens) {
		return false // what fails may cancel what else is under way
	}
	for _, u := range a.uses {
		for _, v := range b.uses {
			if u.object == v.object && (u.write || v.write) {
				return false
			}
		}
	}
	return a.String() != b.String()
}

// enabled returns what may happen next, in a fixed order.
func (s *scheduler) enabled() []transition {
	synctest.Wait()
	var all []transition
	for _, c := range s.pending {
		t := transition{operation: c.of.name, call: c.name, outcome: happens, uses: c.uses}
		all = append(all, t)
		if s.failed {
			continue
		}
		before := t
		before.outcome, before.uses = failsBefore, nil
		all = append(all, before)
		if c.writes() { // for a read, it would be the same as failing before
			after, death := t, t
			after.outcome, death.outcome = failsAfter, dies
			all = append(all, after, death)
		}
	}
	slices.SortFunc(all, func(a, b transition) int { return strings.Compare(a.String(), b.String()) })
	return all
}

// step lets one transition happen.
func (s *scheduler) step(t transition) error {
	n := slices.IndexFunc(s.pending, func(c *call) bool { return c.of.name == t.operation && c.name == t.call })
	if n < 0 {
		return fmt.Errorf("no call waits for %s", t)
	}
	c := s.pending[n]
	s.pending = slices.Delete(s.pending, n, n+1)
	s.failed = s.failed || t.outcome != happens
	var err error
	switch t.outcome {
	case happens:
		err = c.do()
	case failsBefore:
		err = errFailed
	case failsAfter:
		_ = c.do()
		err = errFailed
	case dies:
		_ = c.do()
		err = errDied
		s.mu.Lock()
		c.of.dead = true
		s.mu.Unlock()
		for _, other := range s.pending {
			if other.of == c.of {
				other.done <- errDied
			}
		}
		s.pending = slices.DeleteFunc(s.pending, func(other *call) bool { return other.of == c.of })
	}
	c.done <- err
	synctest.Wait()
	return nil
}
