package explore

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	replayed  = flag.String("explore.replay", "", "replay one trace: the pair, then the transitions, separated by semicolons")
	stale     = flag.Bool("explore.stale", false, "explore old reads on top of a failure in pairs of two enrollments, too")
	everyPair = flag.Bool("explore.all", false, "explore the pairs that take minutes, too")
	commuting = flag.Bool("explore.commuting", false, "explore every order, also of calls that commute")
	most      = flag.Int("explore.states", math.MaxInt, "leave a pair after so many states, and say so (1,000 with -short)")
)

// interleavings is the number of orders, up to calls that commute. It changes when an
// operation makes a different call. Check whether it should.
const interleavings = 6352205

// TestInterleavings explores every order of every pair of operations, with at most one
// failure. A failure prints a trace, which -explore.replay takes.
func TestInterleavings(t *testing.T) {
	f := newFixed(t)
	if *replayed != "" {
		testReplayed(t, f, *replayed)
		return
	}
	if isRace {
		t.Skip("too slow with the race detector: make unit runs it without")
	}
	most := *most
	if testing.Short() {
		most = min(most, 1000)
	}
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // most of the memory stays in use
	start := time.Now()
	var total, states, moves, runs, unfinished atomic.Int64
	t.Run("pairs", func(t *testing.T) {
		for _, p := range pairs() {
			if p.takesMinutes() && !*everyPair {
				continue
			}
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				found, err := explore(t, f, p, *commuting, most)
				if errors.Is(err, errTooMany) {
					t.Logf("left after %d states, without a violation", found.states)
					unfinished.Add(1)
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%d orders, %d states", found.orders, found.states)
				total.Add(int64(found.orders)) //nolint:gosec // far less
				states.Add(int64(found.states))
				moves.Add(int64(found.moves))
				runs.Add(int64(found.runs))
			})
		}
	})
	if t.Failed() {
		return
	}
	t.Logf("explored %d interleavings in %.0f s: %d states, %d changes, %d runs of the operations' code",
		total.Load(), time.Since(start).Seconds(), states.Load(), moves.Load(), runs.Load())
	if n := unfinished.Load(); n > 0 {
		t.Logf("%d pairs have more than %d states, and were left there", n, most)
	}
	if !*commuting && !*everyPair && !*stale && most == math.MaxInt && total.Load() != interleavings {
		t.Errorf("%d interleavings, want %d", total.Load(), interleavings)
	}
}

// skipIfSlow skips tests that take too long with the race detector and have nothing for it to
// find. make unit runs them without it.
func skipIfSlow(t *testing.T) {
	t.Helper()
	if isRace {
		t.Skip("too slow with the race detector")
	}
}

// findings are the results for a pair.
type findings struct {
	orders              uint64
	states, moves, runs int
	ends                map[string]bool
}

// explore explores a pair: all its orders, or one of those that differ only in calls that
// commute. It fails with errTooMany at a pair of more states than most.
func explore(t *testing.T, f *fixed, p pair, all bool, most int) (found findings, err error) {
	synctest.Test(t, func(*testing.T) {
		var g *graph
		var first *vertex
		if g, first, err = newGraph(f, p, all); err != nil {
			return
		}
		defer g.close()
		o := &orders{graph: g, all: all, ends: make(map[*vertex]bool), most: most}
		found.orders, err = o.count(first, sleepers{})
		found.states, found.moves, found.runs = len(g.vertices), len(g.steps), g.runs
		found.ends = make(map[string]bool)
		for n := range o.ends {
			found.ends[n.text()] = true
		}
	})
	return found, err
}

// text describes how an order ended.
func (n *vertex) text() string {
	return fmt.Sprintln(n.world.text(), n.ops[0].err, n.ops[1].err)
}

// short are the pairs whose orders take little time to explore.
func short() []pair {
	return slices.DeleteFunc(pairs(), func(p pair) bool {
		return !slices.Contains([]string{
			"enroll, off-board", "renew, off-board", "renew, release", "off-board, off-board", "off-board, tag", "tag, tag",
			"off-board, sweep", "sweep, release", "off-board, another's enroll", "release, another's enroll, late", "renew, second signer, late",
			"off-board, tag, and the clock moves",
		}, p.name)
	})
}

// TestReduction compares how orders end with and without the reduction, which skips orders
// that differ only in calls that commute.
func TestReduction(t *testing.T) {
	skipIfSlow(t)
	f := newFixed(t)
	for _, p := range short() {
		t.Run(p.name, func(t *testing.T) {
			fewer, err := explore(t, f, p, false, math.MaxInt)
			if err != nil {
				t.Fatal(err)
			}
			all, err := explore(t, f, p, true, math.MaxInt)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d of %d orders, %d of %d states, %d ends", fewer.orders, all.orders, fewer.states, all.states, len(all.ends))
			if !maps.Equal(fewer.ends, all.ends) {
				t.Errorf("%d ends, want %d", len(fewer.ends), len(all.ends))
			}
			if fewer.orders >= all.orders {
				t.Errorf("%d orders, no fewer than all %d", fewer.orders, all.orders)
			}
		})
	}
}

// TestIndependence makes each two independent transitions in both orders, in all states of
// some pairs. The world, the answers and the next calls must be the same.
func TestIndependence(t *testing.T) {
	skipIfSlow(t)
	f := newFixed(t)
	kinds := make(map[string]bool)
	for _, p := range short() {
		t.Run(p.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, first, err := newGraph(f, p, true)
				if err != nil {
					t.Fatal(err)
				}
				defer g.close()
				if _, err := (&orders{graph: g, all: true, ends: make(map[*vertex]bool), most: math.MaxInt}).count(first, sleepers{}); err != nil {
					t.Fatal(err)
				}
				for _, n := range slices.Collect(maps.Values(g.vertices)) {
					if err := g.checkIndependence(n, kinds); err != nil {
						t.Fatal(err)
					}
				}
			})
		})
	}
	t.Logf("%d kinds of pairs", len(kinds))
	if len(kinds) < 100 {
		t.Errorf("only %d kinds of pairs were tried", len(kinds))
	}
}

func (g *graph) checkIndependence(n *vertex, kinds map[string]bool) error {
	g.expand(n)
	moves := n.moves
	for k, a := range moves {
		for _, b := range moves[k+1:] {
			free, err := g.independentAt(n, a, b)
			if err != nil {
				return err
			}
			if !free {
				continue
			}
			kinds[a.kind()+" and "+b.kind()] = true
			ab, err := g.both(n, a, b)
			if err != nil {
				return err
			}
			ba, err := g.both(n, b, a)
			if err != nil {
				return err
			}
			if !ab.isLike(ba) {
				return fmt.Errorf("%s and %s: the order makes a difference", a, b)
			}
		}
	}
	return nil
}

// kind is the transition without its objects.
func (t *transition) kind() string {
	verb, _, _ := strings.Cut(t.call, " ")
	return verb + " " + string(t.outcome)
}

// both makes two transitions.
func (g *graph) both(n *vertex, a, b *transition) (*vertex, error) {
	for _, t := range []*transition{a, b} {
		g.expand(n)
		move := slices.IndexFunc(n.moves, t.is)
		if move < 0 {
			return nil, fmt.Errorf("%s is not possible after the other", t)
		}
		var err error
		if n, err = g.follow(n, move); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// isLike compares states. Histories differ if a process got its answers in a different order,
// so isLike compares what the process does next.
func (n *vertex) isLike(m *vertex) bool {
	for k, h := range n.ops {
		i := m.ops[k]
		if names(h.calls) != names(i.calls) || fmt.Sprint(h.err) != fmt.Sprint(i.err) || h.died != i.died {
			return false
		}
	}
	return n.world == m.world && n.failure == m.failure && n.stale == m.stale
}

// TestReplay runs some orders of each pair again, with both operations at once. The results
// must be the same.
func TestReplay(t *testing.T) {
	f := newFixed(t)
	for _, p := range pairs() {
		t.Run(p.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, first, err := newGraph(f, p, false)
				if err != nil {
					t.Fatal(err)
				}
				defer g.close()
				for seed := range uint64(3) {
					end, err := g.walk(first, rand.New(rand.NewPCG(seed, 1))) //nolint:gosec // a sample
					if err != nil {
						t.Fatal(err)
					}
					w, err := p.world(f)
					if err != nil {
						t.Fatal(err)
					}
					r := newReplay(p, w)
					if err := r.all(g.path); err != nil {
						t.Fatal(g.trace(err))
					}
					if got := fmt.Sprintln(r.world.text(), r.processes[0].result(), r.processes[1].result()); got != end.text() {
						t.Error(g.trace(fmt.Errorf("replayed:\n%s\nexplored:\n%s", got, end.text())))
					}
				}
			})
		})
	}
}

// walk follows one random order to its end.
func (g *graph) walk(n *vertex, by *rand.Rand) (*vertex, error) {
	g.path = nil
	for {
		if g.expand(n); len(n.moves) == 0 {
			return n, nil
		}
		move := by.IntN(len(n.moves))
		g.path = append(g.path, n.moves[move])
		var err error
		if n, err = g.follow(n, move); err != nil {
			return nil, err
		}
	}
}

// TestFindsFaults plants faults. The explorer must find them, and its traces must reproduce
// them.
func TestFindsFaults(t *testing.T) {
	f := newFixed(t)
	renewal := operations(1, "")[1]
	for _, test := range []struct {
		name string
		run  run
		want string
	}{
		{"takes a stranger's node", takeStranger, "a node of nobody became"},
		{"never ends", lookForever, "still makes calls"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := pair{name: test.name, ops: [2]operation{{name: test.name, run: test.run, instance: 1}, renewal}, fresh: [2]bool{false, true}}
			_, err := explore(t, f, p, false, math.MaxInt)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("found %v, want %s", err, test.want)
			}
			if !errors.Is(err, errTraced) {
				t.Fatalf("no trace: %v", err)
			}
			if _, trace, _ := strings.Cut(err.Error(), errTraced.Error()+": "); test.want != "still makes calls" {
				if err := replay(t, f, p, trace); err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("the trace gives %v, want %s", err, test.want)
				}
			}
		})
	}
}

// testReplayed replays the trace of a failure.
func testReplayed(t *testing.T, f *fixed, trace string) {
	name, _, _ := strings.Cut(trace, ";")
	n := slices.IndexFunc(pairs(), func(p pair) bool { return p.name == name })
	if n < 0 {
		t.Fatalf("no pair %q", name)
	}
	if err := replay(t, f, pairs()[n], trace); err != nil {
		t.Error(err)
	}
}

// replay runs a trace and checks the invariants on the way.
func replay(t *testing.T, f *fixed, p pair, trace string) (err error) {
	synctest.Test(t, func(t *testing.T) {
		var w *world
		if w, err = p.world(f); err != nil {
			return
		}
		r, j := newReplay(p, w), newJudge()
		defer r.close()
		for _, step := range strings.Split(trace, ";")[1:] {
			t.Log(step)
			before := r.world
			var done *transition
			if done, err = r.step(step); err != nil {
				return
			}
			if err = errors.Join(checkStep(before, r.world), j.world(r.world)); err != nil {
				return
			}
			r.note(done)
		}
		if s := r.state(); s.ops[0].retired() && s.ops[1].retired() {
			err = j.retire(p, s)
		}
	})
	return err
}

// plus adds, and stops at the largest number.
func plus(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}
