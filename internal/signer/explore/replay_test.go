package explore

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// replaying runs both operations of a pair at once, in a given order of their calls. It uses
// nothing from the exploration.
type replaying struct {
	world     *world
	processes [2]*process
	failure   failure
	stale     bool
	histories [2]*history // only what the judge asks of them
}

func newReplay(p pair, w *world) *replaying {
	r := &replaying{world: w}
	for n, op := range p.ops {
		r.processes[n] = start(w.fixed, w.now, op.run)
		r.histories[n] = &history{run: op.run}
	}
	return r
}

// all makes transitions, by their names.
func (r *replaying) all(path []*transition) error {
	defer r.close()
	for _, t := range path {
		if _, err := r.step(t.String()); err != nil {
			return err
		}
	}
	return nil
}

func (r *replaying) close() {
	for _, p := range r.processes {
		p.kill()
	}
}

// step makes one transition.
func (r *replaying) step(name string) (*transition, error) {
	first, last := strings.Index(name, "/"), strings.LastIndex(name, "/")
	if first < 0 || first == last {
		return nil, fmt.Errorf("%q is no transition", name)
	}
	t := &transition{operation: name[:first], call: name[first+1 : last], outcome: outcome(name[last+1:])}
	if t.operation == timekeeper {
		jump, err := time.ParseDuration(t.call)
		if err != nil {
			return nil, err
		}
		t.jump = jump
		r.world, _ = r.world.take(t)
		return t, nil
	}
	if t.operation != "A" && t.operation != "B" {
		return nil, fmt.Errorf("%q is of neither operation", name)
	}
	p := r.processes[t.process()]
	n := slices.IndexFunc(p.pending, func(c *call) bool { return c.name == t.call })
	if n < 0 {
		return nil, fmt.Errorf("%s: no such call waits, but %s", name, names(p.waiting()))
	}
	t.of = p.pending[n]
	next, a := r.world.take(t)
	r.world = next
	if t.outcome == dies {
		p.kill()
		return t, nil
	}
	p.give(t.call, a, next.now)
	if len(p.handed) > 0 {
		r.world = r.world.clone()
		err := r.world.handOut(p.handed)
		p.handed = nil
		return t, err
	}
	return t, nil
}

// note records what the judge needs to know about an order.
func (r *replaying) note(t *transition) {
	r.stale = r.stale || t.outcome == isStale
	if t.operation == timekeeper {
		r.failure = skipped
		return
	}
	k := t.process()
	if t.takesTheFailure() {
		if r.failure = t.failure(); r.failure == failed && r.histories[k].repairs() {
			r.failure = left
		}
	}
	h := r.histories[k]
	r.histories[k] = &history{run: h.run, parent: h, event: event{call: t.call}}
	for _, c := range r.processes[k].waiting() {
		r.histories[k].calls = append(r.histories[k].calls, waiting{call: c})
	}
	if r.histories[k].err = r.processes[k].result(); t.outcome == dies {
		r.histories[k].died = true
	}
}

func (r *replaying) state() state {
	return state{world: r.world, ops: r.histories, failure: r.failure, stale: r.stale}
}

// result is the operation's result, or that it died.
func (p *process) result() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead && p.died {
		return errDied
	}
	return p.err
}

// Operations with faults.

func takeStranger(ctx context.Context, p *process) error {
	return cluster{p}.UpsertNode(ctx, node.Node{ID: foreign, Hostname: "shared"})
}

func lookForever(ctx context.Context, p *process) error {
	for {
		if _, err := (records{p}).Lookup(ctx, ref(1)); err != nil {
			return err
		}
	}
}
