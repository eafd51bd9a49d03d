package explore

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

// The graph of a pair has a state for each combination of a world and the answers to both
// processes. Each transition from each state happens once, however many orders lead there.

// state is a position in an order.
type state struct {
	world *world
	ops   [2]*history
	// failure is the one failure of an order, if it has happened yet.
	failure failure
	// stale says that a call read old data from Teleport.
	stale bool
}

type failure int8

const (
	none    failure = iota
	failed          // a call
	left            // a call by which an enrollment repairs a node: it is left to the sweep
	died            // a process
	skipped         // the clock was moved
	misled          // something read an old state, where that counts
)

// vertex is a state and what is known about it.
type vertex struct {
	state
	moves  []*transition // what may happen there, while the vertex is being looked at
	next   []*vertex     // after each of the moves; nil if not known yet
	counts []counted
}

// counted is the number of orders from a vertex on.
type counted struct {
	asleep sleepers
	orders uint64
}

func (n *vertex) ended() bool { return n.ops[0].retired() && n.ops[1].retired() }

// died is the history of a process that died.
func (h *history) death() *history { return &history{run: h.run, died: true, err: errDied} }

// taking is the input that determines taken.
type taking struct {
	world      *world
	transition *transition
}

type taken struct {
	world  *world
	answer answer
}

// graph has all states of a pair that were reached.
type graph struct {
	histories
	pair     pair
	worlds   map[string]*world
	vertices map[state]*vertex
	steps    map[taking]taken
	moves    []*transition // by number, of each kind one
	free     []sleepers    // by number, which others may happen in either order
	clock    []*transition
	dead     [2]*history
	judge    *judge
	path     []*transition
}

func (g *graph) intern(w *world) (*world, bool) {
	text := w.text()
	if known, ok := g.worlds[text]; ok {
		return known, false
	}
	g.worlds[text] = w
	return w, true
}

func (g *graph) vertex(s state) *vertex {
	if n, ok := g.vertices[s]; ok {
		return n
	}
	n := &vertex{state: s}
	g.vertices[s] = n
	return n
}

// newGraph returns the graph of a pair, and its first vertex. A graph that keeps each order
// merges nothing and skips nothing.
func newGraph(f *fixed, p pair, each bool) (*graph, *vertex, error) {
	g := &graph{
		histories: histories{fixed: f, answers: make(map[*history]answer), endings: make(map[ending]*history), each: each},
		pair:      p, worlds: make(map[string]*world), vertices: make(map[state]*vertex), steps: make(map[taking]taken), judge: newJudge(),
	}
	w, err := p.world(f)
	if err != nil {
		return nil, nil, err
	}
	w, _ = g.intern(w)
	if err := g.judge.world(w); err != nil {
		return nil, nil, fmt.Errorf("at first: %w", err)
	}
	g.clock = g.number(clockMoves())
	s := state{world: w}
	for n, op := range p.ops {
		s.ops[n] = g.begin(op.run, w.now)
		g.dead[n] = s.ops[n].death()
	}
	return g, g.vertex(s), nil
}

func operationName(n int) string { return string(rune('A' + n)) }

// expand finds the possible transitions.
func (g *graph) expand(n *vertex) {
	if n.moves != nil || n.ended() {
		return
	}
	clock := n.failure == none && g.pair.moves
	for k, h := range n.ops {
		if h.moves == nil {
			h.moves = g.number(h.transitions(operationName(k)))
		}
		if !g.each && !clock && h.isAlone(n.ops[1-k]) {
			n.moves = nil
		}
		for _, t := range h.moves {
			if n.failure != none && g.pair.takesTheFailure(t) || n.world.isOff(t) {
				continue
			}
			n.moves = append(n.moves, t)
		}
		if !g.each && !clock && h.isAlone(n.ops[1-k]) {
			break
		}
	}
	if clock {
		n.moves = append(n.moves, g.clock...)
	}
	n.next = make([]*vertex, len(n.moves))
}

// isAlone reports whether the waiting calls and all that the other operation may still do are
// independent. Then exploring these calls first is enough (a persistent set, in Godefroid's
// terms).
func (h *history) isAlone(other *history) bool {
	if h.retired() {
		return false
	}
	for _, c := range h.calls {
		for _, u := range c.uses {
			if u.write || c.service != inEC2 || other.changesEC2() {
				return false
			}
		}
	}
	return true
}

// repairs reports whether the operation is an enrollment that has finished or given up, and
// now repairs the node that it wrote.
func (h *history) repairs() bool {
	claimed, over := false, false
	for ; h.parent != nil; h = h.parent {
		claimed = claimed || strings.HasPrefix(h.event.call, "Claim ")
		over = over || strings.HasPrefix(h.event.call, "Complete ") || strings.HasPrefix(h.event.call, "Announce ")
	}
	return claimed && over
}

// changesEC2 reports whether the operation may still change EC2, which only its first call
// does.
func (h *history) changesEC2() bool {
	return slices.ContainsFunc(h.calls, func(c waiting) bool { return c.service == inEC2 && c.isWrite() })
}

// number returns the same number for equal transitions.
func (g *graph) number(all []transition) []*transition {
	numbered := make([]*transition, len(all))
	for n, t := range all {
		if t.number = slices.IndexFunc(g.moves, t.is); t.number < 0 {
			g.add(&t)
		}
		numbered[n] = &t
	}
	return numbered
}

// add assigns a new number.
func (g *graph) add(t *transition) {
	t.number = len(g.moves)
	g.moves, g.free = append(g.moves, t), append(g.free, sleepers{})
	for _, other := range g.moves {
		if g.pair.independent(t, other) {
			g.free[t.number] = g.free[t.number].with(other)
			g.free[other.number] = g.free[other.number].with(t)
		}
	}
}

// follow makes one of the moves.
func (g *graph) follow(n *vertex, move int) (*vertex, error) {
	if n.next[move] != nil {
		return n.next[move], nil
	}
	next, err := g.make(n.state, n.moves[move])
	if err != nil {
		return nil, err
	}
	n.next[move] = g.vertex(next)
	return n.next[move], nil
}

func (g *graph) take(w *world, t *transition) (taken, error) {
	key := taking{w, t}
	if done, ok := g.steps[key]; ok {
		return done, nil
	}
	next, a := w.take(t)
	done := taken{next, a}
	if next != w {
		var isNew bool
		if done.world, isNew = g.intern(next); isNew {
			if err := g.judge.world(next); err != nil {
				return taken{}, err
			}
		}
		if err := checkStep(w, next); err != nil {
			return taken{}, err
		}
	}
	g.steps[key] = done
	return done, nil
}

func (g *graph) make(s state, t *transition) (state, error) {
	done, err := g.take(s.world, t)
	if err != nil {
		return state{}, err
	}
	s.world = done.world
	s.stale = s.stale || t.outcome == isStale
	if t.outcome == isStale && g.pair.takesTheFailure(t) {
		s.failure = misled
	}
	if t.takesTheFailure() {
		if s.failure = t.failure(); s.failure == failed && s.ops[t.process()].repairs() {
			s.failure = left
		}
	}
	if t.operation == timekeeper {
		return s, nil
	}
	k := t.process()
	if t.outcome == dies {
		s.ops[k] = g.dead[k]
		return s, nil
	}
	s.ops[k], err = g.after(s.ops[k], t.call, done.answer, s.world.now)
	if err == nil && len(s.ops[k].handed) > 0 {
		s.world, err = g.handOut(s.world, s.ops[k].handed, g.pair.ops[k].instance)
	}
	return s, err
}

// handOut returns the world in which a machine has its certificates.
func (g *graph) handOut(w *world, certificates []*ssh.Certificate, instance int) (*world, error) {
	next := w.clone()
	if err := next.handOut(certificates); err != nil {
		return nil, err
	}
	next, _ = g.intern(next)
	return next, errors.Join(g.judge.world(next), next.checkHeld(instance))
}

// orders counts the orders from a vertex on. Of orders that differ only in independent
// transitions, it counts one (sleep sets: P. Godefroid, Partial-Order Methods for the
// Verification of Concurrent Systems, 1996). It visits each vertex with each sleep set once.
type orders struct {
	*graph
	all  bool // also those that differ only in what is independent
	ends map[*vertex]bool
	most int // states to look at before the rest is left
}

// errTooMany means that a pair has more states than the limit.
var errTooMany = errors.New("too many states")

// sleepers are the numbers of transitions that can be skipped.
type sleepers [4]uint64

func (s sleepers) has(t *transition) bool { return s[t.number/64]&(1<<(t.number%64)) != 0 }

func (s sleepers) and(other sleepers) sleepers {
	for n := range s {
		s[n] &= other[n]
	}
	return s
}

func (s sleepers) without(t *transition) sleepers {
	s[t.number/64] &^= 1 << (t.number % 64)
	return s
}

func (s sleepers) with(t *transition) sleepers {
	s[t.number/64] |= 1 << (t.number % 64)
	return s
}

func (o *orders) count(n *vertex, asleep sleepers) (uint64, error) {
	for _, c := range n.counts {
		if c.asleep == asleep {
			return c.orders, nil
		}
	}
	if len(o.vertices) > o.most {
		return 0, errTooMany
	}
	o.expand(n)
	total, err := o.countMoves(n, asleep)
	if err != nil {
		return 0, err
	}
	n.counts = append(n.counts, counted{asleep, total})
	n.moves, n.next = nil, nil // found again if need be: there are many vertices
	return total, nil
}

func (o *orders) countMoves(n *vertex, asleep sleepers) (total uint64, err error) {
	if n.ended() {
		return 1, o.retire(n)
	}
	for move, t := range n.moves {
		if !o.all && asleep.has(t) {
			continue
		}
		o.path = append(o.path, t)
		next, err := o.follow(n, move)
		if err != nil {
			return 0, o.trace(err)
		}
		var still sleepers
		if !o.all {
			if still, err = o.still(n, asleep, t); err != nil {
				return 0, o.trace(err)
			}
			asleep = asleep.with(t)
		}
		count, err := o.count(next, still)
		if err != nil {
			return 0, err
		}
		total = plus(total, count)
		o.path = o.path[:len(o.path)-1]
	}
	return total, nil
}

func (o *orders) retire(n *vertex) error {
	if o.ends[n] {
		return nil
	}
	o.ends[n] = true
	if err := o.judge.retire(o.pair, n.state); err != nil {
		return o.trace(err)
	}
	return nil
}

// still returns the sleepers that are independent of a transition.
func (o *orders) still(n *vertex, asleep sleepers, t *transition) (sleepers, error) {
	still := asleep.and(o.free[t.number])
	for _, s := range n.moves {
		if s.operation != t.operation || !still.has(s) {
			continue
		}
		if free, err := o.independentAt(n, s, t); err != nil {
			return still, err
		} else if !free {
			still = still.without(s)
		}
	}
	return still, nil
}

// independentAt reports whether two transitions that are possible at a vertex have the same
// result in either order. Two of one operation do if it waits for both answers, whichever
// comes first.
func (g *graph) independentAt(n *vertex, s, t *transition) (bool, error) {
	if !g.pair.independent(s, t) || s.operation != t.operation {
		return g.pair.independent(s, t), nil
	}
	for _, t := range []*transition{s, t} {
		next, err := g.follow(n, slices.IndexFunc(n.moves, t.is))
		if err != nil {
			return false, err
		}
		if k := t.process(); !next.ops[k].waitsOn(n.ops[k]) {
			return false, nil
		}
	}
	return true, nil
}

var errTraced = errors.New("trace")

func (g *graph) trace(err error) error {
	if errors.Is(err, errTraced) {
		return err
	}
	steps := []string{g.pair.name}
	for _, t := range g.path {
		steps = append(steps, t.String())
	}
	return fmt.Errorf("%w\n%w: %s", err, errTraced, strings.Join(steps, ";"))
}
