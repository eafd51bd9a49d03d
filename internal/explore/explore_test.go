package explore

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/fleet"
	"github.com/hallmark-ssh/hallmark/internal/inventory"
	"github.com/hallmark-ssh/hallmark/internal/ledger"
)

var (
	replay  = flag.String("explore.replay", "", "replay one trace: the pair, then the transitions, separated by semicolons")
	noLimit = flag.Bool("explore.commuting", false, "explore every order, also of calls that commute")
	allOf   = flag.Bool("explore.all", false, "explore the pairs that take minutes, too")
)

// interleavings is how many orders there are. It changes when an operation makes another
// call; then look whether it should.
const interleavings = 2199

// enroll sends a request and reports what a machine would get.
func (o *operation) enroll(ctx context.Context, n int, key, to string) error {
	r, err := o.world.request(n, key, to)
	if err != nil {
		return err
	}
	if answer := o.signerFor(to).Enroll(ctx, r); answer.Status != http.StatusOK {
		return fmt.Errorf("status %d: %s", answer.Status, answer.Body)
	}
	return nil
}

type run = func(ctx context.Context, o *operation) error

func enroll(n int) run {
	return func(ctx context.Context, o *operation) error { return o.enroll(ctx, n, fmt.Sprint(n), audience) }
}

// rename has somebody change the host name by tag before the machine renews.
func rename(n int, name string) run {
	return func(ctx context.Context, o *operation) error {
		err := o.change(n, "rename", func(i *inventory.Instance) { i.Tags["TeleportHostname"] = name })
		return errors.Join(err, o.enroll(ctx, n, fmt.Sprint(n), audience))
	}
}

func offboard(ctx context.Context, o *operation) error {
	if err := o.change(1, "terminate", func(i *inventory.Instance) { i.State = inventory.StateTerminated }); err != nil {
		return err
	}
	return errors.Join(o.fleet().StatesChanged(ctx, []ledger.Instance{ref(1)})...)
}

func tag(ctx context.Context, o *operation) error {
	if err := o.change(1, "tag", func(i *inventory.Instance) { i.Tags["env"] = "staging" }); err != nil {
		return err
	}
	return errors.Join(o.fleet().TagsChanged(ctx, []fleet.TagChange{{Instance: ref(1), Version: 7}})...)
}

func sweep(ctx context.Context, o *operation) error {
	_, err := o.fleet().Sweep(ctx, "", 0)
	return err
}

// rekey permits other keys, which the machine then comes with.
func rekey(ctx context.Context, o *operation) error {
	p := ledger.Permit{Fingerprint: ssh.FingerprintSHA256(o.world.keys["1 again"].PublicKey()), End: o.world.now.Add(time.Hour), By: "somebody"}
	if err := (records{o}).Permit(ctx, ref(1), p); err != nil {
		return err
	}
	return o.enroll(ctx, 1, "1 again", audience)
}

func release(ctx context.Context, o *operation) error {
	_, err := records{o}.Release(ctx, "shared", "somebody", o.world.now)
	return err
}

func elsewhere(ctx context.Context, o *operation) error { return o.enroll(ctx, 1, "1", second) }

// pair is two operations. The first instance is enrolled already unless fresh.
type pair struct {
	name  string
	fresh bool
	runs  [2]run
}

// isShort reports whether a pair takes seconds: two writers that follow each other, or a
// sweep, take minutes.
func (p pair) isShort() bool {
	a, b, _ := strings.Cut(p.name, ", ")
	return a != "rename" && (b == "off-board" || b == "release") || a == "off-board" && b == "tag" || b == "a second signer"
}

func pairs() []pair {
	type named struct {
		name string
		run  run
	}
	ops := []named{
		{"renew", enroll(1)}, {"rename", rename(1, "renamed")}, {"off-board", offboard}, {"tag", tag},
		{"sweep", sweep}, {"re-key", rekey}, {"release", release},
	}
	var all []pair
	for n, a := range ops {
		all = append(all, pair{"enroll, " + a.name, true, [2]run{enroll(1), a.run}})
		for _, b := range ops[n:] {
			all = append(all, pair{a.name + ", " + b.name, false, [2]run{a.run, b.run}})
		}
		all = append(all,
			pair{a.name + ", another enrolls", false, [2]run{a.run, enroll(2)}},
			pair{a.name + ", another takes the name", false, [2]run{a.run, rename(2, "renamed")}})
	}
	return append(all,
		pair{"enroll, another enrolls", true, [2]run{enroll(1), enroll(2)}},
		pair{"enroll, a second signer", true, [2]run{enroll(1), elsewhere}},
		pair{"renew, a second signer", false, [2]run{enroll(1), elsewhere}},
		pair{"tag, a second signer", false, [2]run{tag, elsewhere}},
	)
}

// begin returns a world in which both operations wait at their first call.
func begin(f *fixed, p pair) (*world, error) {
	w := newWorld(f)
	if !p.fresh {
		w.direct = true
		if err := enroll(1)(context.Background(), &operation{world: w}); err != nil {
			return nil, err
		}
		w.direct = false
	}
	for n, run := range p.runs {
		o := &operation{name: string(rune('A' + n)), world: w}
		go func() { o.err = run(context.Background(), o) }()
	}
	return w, nil
}

// frame is one step of the order that is being explored.
type frame struct {
	enabled []transition
	next    int
	asleep  []transition // explored already, and nothing has happened since that they depend on
}

func (f *frame) chosen() transition { return f.enabled[f.next] }

func (f *frame) awake() bool {
	for ; f.next < len(f.enabled); f.next++ {
		if *noLimit || !slices.ContainsFunc(f.asleep, func(t transition) bool { return t.String() == f.chosen().String() }) {
			return true
		}
	}
	return false
}

// explore runs every order of a pair once: of orders that differ only in calls that
// commute, one (sleep sets: P. Godefroid, Partial-Order Methods for the Verification of
// Concurrent Systems, 1996).
func explore(f *fixed, p pair) (n int, err error) {
	var frames []*frame
	for {
		w, err := begin(f, p)
		if err != nil {
			return n, err
		}
		for _, done := range frames {
			w.enabled()
			if err := w.step(done.chosen()); err != nil {
				return n, err
			}
		}
		complete := true
		for {
			next := &frame{enabled: w.enabled()}
			if len(next.enabled) == 0 {
				break
			}
			if len(frames) > 0 {
				last := frames[len(frames)-1]
				for _, t := range last.asleep {
					if independent(t, last.chosen()) {
						next.asleep = append(next.asleep, t)
					}
				}
			}
			frames = append(frames, next)
			if complete = next.awake(); !complete {
				frames = frames[:len(frames)-1]
				w.abandon()
				break
			}
			if err := w.step(next.chosen()); err != nil {
				return n, err
			}
		}
		if complete {
			n++
			if err := w.check(); err != nil {
				return n, fmt.Errorf("%w\ntrace: %s", err, trace(p, frames))
			}
		}
		for len(frames) > 0 {
			last := frames[len(frames)-1]
			last.asleep = append(last.asleep, last.chosen())
			last.next++
			if last.awake() {
				break
			}
			frames = frames[:len(frames)-1]
		}
		if len(frames) == 0 {
			return n, nil
		}
	}
}

func trace(p pair, frames []*frame) string {
	all := []string{p.name}
	for _, f := range frames {
		all = append(all, f.chosen().String())
	}
	return strings.Join(all, ";")
}

// abandon ends both operations where they are.
func (w *world) abandon() {
	w.mu.Lock()
	pending := w.pending
	w.pending = nil
	for _, c := range pending {
		c.of.dead = true
	}
	w.mu.Unlock()
	for _, c := range pending {
		c.done <- errDied
	}
	synctest.Wait()
}

// check holds the world against the invariants of docs/architecture.md, after one sweep.
func (w *world) check() error {
	w.direct = true
	ctx := context.Background()
	if err := sweep(ctx, &operation{world: w}); err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	var errs []error
	names := make(map[string]string)
	for id, node := range w.nodes {
		if other, taken := names[node.Hostname]; taken {
			errs = append(errs, fmt.Errorf("%s and %s are both named %s", id, other, node.Hostname))
		}
		names[node.Hostname] = id
	}
	if w.nodes[foreign].Hostname != "nobodys" || len(w.nodes[foreign].Labels) > 0 {
		errs = append(errs, fmt.Errorf("the node of nobody became %+v", w.nodes[foreign]))
	}
	for n := 1; n <= 2; n++ {
		errs = append(errs, w.checkNode(ctx, n), w.checkRenewal(ctx, n))
	}
	return errors.Join(errs...)
}

func (w *world) checkNode(ctx context.Context, n int) error {
	record, err := w.ledger.Lookup(ctx, ref(n))
	if err != nil {
		return err
	}
	node, there := w.nodes[nodeOf(n)]
	i := w.ec2[ref(n).ID]
	switch {
	case record.Ended || i.State == inventory.StateTerminated:
		if there {
			return fmt.Errorf("instance %d has ended, and its node is still there: %+v", n, node)
		}
	case record.ConfirmedHostname == "": // the node of an attempt that failed may be there
	case !there:
		return fmt.Errorf("instance %d is enrolled and has no node", n)
	case node.Hostname != record.ConfirmedHostname || node.Expires.Sub(record.Lease).Abs() >= time.Second:
		return fmt.Errorf("instance %d: node %s until %s, ledger %s until %s", n, node.Hostname, node.Expires, record.ConfirmedHostname, record.Lease)
	case node.Address != i.PrivateIP+":22" || node.Labels["aws/env"] != i.Tags["env"]:
		return fmt.Errorf("instance %d: address %s, labels %v; EC2 has %s, %v", n, node.Address, node.Labels, i.PrivateIP, i.Tags)
	case node.Labels["hallmark/signer"] != record.Signer:
		return fmt.Errorf("instance %d: node of signer %s, ledger %s", n, node.Labels["hallmark/signer"], record.Signer)
	}
	return nil
}

// checkRenewal has the machine renew, with the keys and at the signer that it has.
func (w *world) checkRenewal(ctx context.Context, n int) error {
	record, err := w.ledger.Lookup(ctx, ref(n))
	if err != nil {
		return err
	}
	to, key := audience, fmt.Sprint(n)
	if record.Signer != "" {
		to = record.Signer
	}
	if again := ssh.FingerprintSHA256(w.keys["1 again"].PublicKey()); slices.Contains(record.Fingerprints, again) {
		key = "1 again"
	}
	err = (&operation{world: w}).enroll(ctx, n, key, to)
	if gone := record.Ended || w.ec2[ref(n).ID].State == inventory.StateTerminated; gone != (err != nil) {
		return fmt.Errorf("renewal of instance %d, gone %v: %w", n, gone, err)
	}
	return nil
}

// TestInterleavings explores every order of pairs of operations, with at most one failure:
// of the short pairs, and with -explore.all of every pair. A failure prints a trace, which
// -explore.replay takes.
func TestInterleavings(t *testing.T) {
	f, err := newFixed()
	if err != nil {
		t.Fatal(err)
	}
	if *replay != "" {
		replayTrace(t, f, *replay)
		return
	}
	start, total := time.Now(), new(atomic.Int64)
	t.Run("pairs", func(t *testing.T) {
		for _, p := range pairs() {
			if !p.isShort() && !*allOf {
				continue
			}
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					n, err := explore(f, p)
					total.Add(int64(n))
					if err != nil {
						t.Fatalf("order %d: %v", n, err)
					}
					t.Logf("%d orders", n)
				})
			})
		}
	})
	t.Logf("explored %d interleavings in %.0f s", total.Load(), time.Since(start).Seconds())
	if !*noLimit && !*allOf && total.Load() != interleavings && !t.Failed() {
		t.Errorf("%d interleavings, want %d", total.Load(), interleavings)
	}
}

func replayTrace(t *testing.T, f *fixed, trace string) {
	steps := strings.Split(trace, ";")
	n := slices.IndexFunc(pairs(), func(p pair) bool { return p.name == steps[0] })
	if n < 0 {
		t.Fatalf("no pair %q", steps[0])
	}
	synctest.Test(t, func(t *testing.T) {
		w, err := begin(f, pairs()[n])
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range steps[1:] {
			k := slices.IndexFunc(w.enabled(), func(t transition) bool { return t.String() == step })
			if k < 0 {
				t.Fatalf("%s is not possible here: %v", step, w.enabled())
			}
			if err := w.step(w.enabled()[k]); err != nil {
				t.Fatal(err)
			}
			t.Log(step)
		}
		if err := w.check(); err != nil {
			t.Error(err)
		}
	})
}
