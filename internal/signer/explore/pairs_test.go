package explore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/upkeep"
)

// run is an operation.
type run = func(ctx context.Context, p *process) error

// errAnswer is an answer from the signer without a certificate.
var errAnswer = errors.New("not enrolled")

// errRefused means that the signer refused what an operator asked for.
var errRefused = errors.New("refused")

// enrollAs sends a request and reports what a machine would get.
func enrollAs(n int, key, to string) run {
	return func(ctx context.Context, p *process) error {
		r, err := p.request(n, key, to, protocol.PurposeEnroll, p.clock())
		if err != nil {
			return err
		}
		if answer := p.signerFor(to).Enroll(ctx, r); answer.Status != http.StatusOK {
			return fmt.Errorf("%w: status %d: %s", errAnswer, answer.Status, answer.Body)
		}
		p.handed = p.signed
		return nil
	}
}

// leave has the machine unenroll.
func leave(n int) run { return leaveAs(n, fmt.Sprint(n)) }

func leaveAs(n int, key string) run {
	return func(ctx context.Context, p *process) error {
		r, err := p.request(n, key, audience, protocol.PurposeLeave, p.clock())
		if err != nil {
			return err
		}
		if answer := p.signerFor(audience).Enroll(ctx, r); answer.Status != http.StatusOK {
			return fmt.Errorf("%w: status %d: %s", errAnswer, answer.Status, answer.Body)
		}
		return nil
	}
}

func enrollOnce(n int) run { return enrollAs(n, fmt.Sprint(n), audience) }

// rename changes the host name by tag before the machine renews.
func rename(n int, name string) run {
	return func(ctx context.Context, p *process) error {
		err := p.change(n, "rename", func(w *world) { w.setTag(n, "TeleportHostname", name) })
		if err != nil {
			return err
		}
		return enrollOnce(n)(ctx, p)
	}
}

func offboard(n int) run {
	return func(ctx context.Context, p *process) error {
		if err := p.change(n, "terminate", func(w *world) { w.terminate(n) }); err != nil {
			return err
		}
		return errors.Join(p.fleetOf(audience).StatesChanged(ctx, []ec2ref.Instance{ref(n)})...)
	}
}

// stopEvent is an event about an instance that has stopped, at any later time.
func stopEvent(n int) run {
	return func(ctx context.Context, p *process) error {
		return errors.Join(p.fleetOf(audience).StatesChanged(ctx, []ec2ref.Instance{ref(n)})...)
	}
}

// startAgain has EC2 start the instance. The machine then renews.
func startAgain(n int) run {
	return func(ctx context.Context, p *process) error {
		err := p.change(n, "start", func(w *world) { w.setState(n, inventory.StateRunning) })
		if err != nil {
			return err
		}
		return enrollOnce(n)(ctx, p)
	}
}

func tag(n int) run {
	return func(ctx context.Context, p *process) error {
		if err := p.change(n, "tag", func(w *world) { w.setTag(n, "env", "staging") }); err != nil {
			return err
		}
		return errors.Join(p.fleetOf(audience).TagsChanged(ctx, []upkeep.TagChange{{Instance: ref(n), Version: 7}})...)
	}
}

func sweepAs(signer string) run {
	return func(ctx context.Context, p *process) error {
		report, err := p.fleetOf(signer).Sweep(ctx, "", 0)
		if err == nil && report.Failed > 0 {
			err = fmt.Errorf("the sweep failed %d times", report.Failed)
		}
		return err
	}
}

// walk has EC2 terminate the instance and lose the event. The record expires, unless the
// machine renews in time.
func walk(n int) run {
	return func(ctx context.Context, p *process) error {
		if err := p.change(n, "terminate", func(w *world) { w.terminate(n) }); err != nil {
			return err
		}
		report, err := p.fleetOf(audience).RetireExpired(ctx)
		if err == nil && report.Failed > 0 {
			err = fmt.Errorf("the walk failed %d times", report.Failed)
		}
		return err
	}
}

// rekey permits other keys. The machine then uses them.
func rekey(n int) run {
	again := fmt.Sprint(n, " again")
	return func(ctx context.Context, p *process) error {
		permit := ledger.Permit{Fingerprint: p.fingerprint(again), ValidUntil: p.clock().Add(time.Hour), By: "somebody"}
		err := records{p}.Permit(ctx, ref(n), permit)
		if errors.Is(err, ledger.ErrRetired) || errors.Is(err, ledger.ErrUnclaimed) {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
		if err != nil {
			return err
		}
		return enrollAs(n, again, audience)(ctx, p)
	}
}

func (f *fixed) fingerprint(key string) string { return ssh.FingerprintSHA256(f.keys[key].PublicKey()) }

func release(name string) run {
	return func(ctx context.Context, p *process) error {
		_, err := records{p}.Release(ctx, name, "somebody", p.clock())
		if errors.Is(err, ledger.ErrCertified) || errors.Is(err, ledger.ErrNotHeld) {
			err = fmt.Errorf("%w: %w", errRefused, err)
		}
		return err
	}
}

// operation is what a machine, an event, an operator or a sweep does to an instance.
type operation struct {
	name     string
	run      run
	instance int
	enrolls  bool // the machine runs it, and asks again
	// losesEvent says that the instance is gone and only the sweep will find its node.
	losesEvent bool
}

// operations are those on one instance. The name is its new name in a rename.
func operations(n int, name string) []operation {
	return []operation{
		{name: "enroll", run: enrollOnce(n), instance: n, enrolls: true},
		{name: "renew", run: enrollOnce(n), instance: n, enrolls: true},
		{name: "rename", run: rename(n, name), instance: n, enrolls: true},
		{name: "off-board", run: offboard(n), instance: n, enrolls: false},
		{name: "leave", run: leave(n), instance: n, enrolls: false},
		{name: "tag", run: tag(n), instance: n, enrolls: false},
		{name: "sweep", run: sweepAs(audience), instance: n, enrolls: false},
		{name: "re-key", run: rekey(n), instance: n, enrolls: true},
		{name: "release", run: release("shared"), instance: n, enrolls: false},
		{name: "second signer", run: enrollAs(n, fmt.Sprint(n), second), instance: n, enrolls: true},
	}
}

// pair is two operations and the world in which they start.
type pair struct {
	name      string
	ops       [2]operation
	fresh     [2]bool       // the instance has not enrolled yet
	holds     string        // the host name of the second instance, if it has enrolled
	age       time.Duration // since the enrollments
	missedTag bool          // a tag has changed, and no event said so
	stopped   bool          // the first instance is stopped
	moves     bool          // the clock moves, too
}

// takesTheFailure reports whether the transition is the one failure of its order. A read of
// old data is allowed besides a failure, except for pairs that would have too many orders.
func (p pair) takesTheFailure(t *transition) bool {
	return t.takesTheFailure() || t.outcome == isStale && p.isLong() && !*stale
}

func (p pair) losesEvent(n int) bool {
	return slices.ContainsFunc(p.ops[:], func(o operation) bool { return o.losesEvent && o.instance == n })
}

func (p pair) leaves() bool {
	return slices.ContainsFunc(p.ops[:], func(o operation) bool { return o.name == "leave" })
}

// isLong reports whether both operations are enrollments, which follow each other's writes.
func (p pair) isLong() bool { return p.ops[0].enrolls && p.ops[1].enrolls }

// takesMinutes reports whether two enrollments of one instance follow each other's writes
// while its name or keys change.
func (p pair) takesMinutes() bool {
	a, b := p.ops[0], p.ops[1]
	changes := func(o operation) bool { return o.name == "rename" || o.name == "re-key" }
	return p.isLong() && a.instance == b.instance && (changes(a) || changes(b))
}

func (p pair) independent(a, b *transition) bool {
	return independent(a, b) && (!p.takesTheFailure(a) || !p.takesTheFailure(b))
}

// world returns the world in which the operations start.
func (p pair) world(f *fixed) (*world, error) {
	w := newWorld(f)
	return w, p.prepare(w)
}

func (p pair) prepare(w *world) error {
	var before []run
	if !p.fresh[0] {
		before = append(before, enrollOnce(1), forged)
	}
	if !p.fresh[1] {
		before = append(before, rename(2, p.holds))
	}
	for _, run := range before {
		if err := w.runIn(run); err != nil {
			return err
		}
	}
	if p.missedTag {
		w.setTag(1, "env", "dev")
	}
	if p.stopped {
		w.setState(1, inventory.StateStopped)
	}
	if w.advance(p.age); p.age == 0 && !p.fresh[0] {
		w.advance(policy.DefaultLifetime / 3) // when machines renew
	}
	w.inLedger = ""
	return nil
}

// forged is a tag event with the highest version there is. Anyone who can write to the queue
// can choose it.
func forged(ctx context.Context, p *process) error {
	return errors.Join(p.fleetOf(audience).TagsChanged(ctx, []upkeep.TagChange{{Instance: ref(1), Version: math.MaxUint64}})...)
}

// over is longer than any claim lasts.
const over = policy.DefaultLifetime + time.Hour

// pairs are all pairs of operations on one instance, and of one on each of two instances. The
// second instance wants the first one's name, or has another and wants the first one's new
// name.
func pairs() []pair {
	ops := operations(1, "renamed")
	var all []pair
	for n, a := range ops {
		for m, b := range ops[n:] {
			if n == 0 && m == 1 {
				continue // a renewal is an enrollment here
			}
			all = append(all, pair{name: a.name + ", " + b.name, ops: [2]operation{a, b}, fresh: [2]bool{n == 0, true}})
		}
		for m, b := range operations(2, "renamed") {
			all = append(all, pair{name: a.name + ", another's " + b.name, ops: [2]operation{a, b}, fresh: [2]bool{n == 0, m == 0}, holds: "other"})
		}
	}
	for n := range all {
		all[n].missedTag = !all[n].fresh[0] && strings.Contains(all[n].name, "sweep")
	}
	for _, name := range []string{"strangers", "nobodys"} {
		a, b := operations(1, name), operations(2, name)
		all = append(all, pair{name: "both want the name " + name, ops: [2]operation{a[2], b[2]}, holds: "other"})
	}
	return slices.Concat(all, late(all), timed(all), walks(), stops())
}

// stops are pairs in which the first instance is stopped.
func stops() []pair {
	ops := operations(1, "renamed")
	find := func(name string) operation {
		return ops[slices.IndexFunc(ops, func(o operation) bool { return o.name == name })]
	}
	stop := operation{name: "stop", run: stopEvent(1), instance: 1}
	starts := operation{name: "start and renew", run: startAgain(1), instance: 1, enrolls: true}
	var stops []pair
	for _, ops := range [][2]operation{
		{stop, starts}, {find("sweep"), starts}, {find("tag"), starts}, {stop, stop}, {stop, find("sweep")}, {stop, find("tag")}, {stop, find("off-board")},
	} {
		stops = append(stops, pair{name: ops[0].name + ", " + ops[1].name + ", stopped", ops: ops, fresh: [2]bool{false, true}, stopped: true})
	}
	return stops
}

// late are pairs whose certificates and claims have ended.
func late(all []pair) []pair {
	var late []pair
	for _, p := range all {
		if p.age = over; !p.fresh[0] && slices.ContainsFunc([]string{", release", "second signer", "off-board, another's", "renew, another's", "renew, off-board", "renew, tag"},
			func(part string) bool { return strings.Contains(p.name, part) }) && !strings.Contains(p.name, "re-key") {
			p.name += ", late"
			late = append(late, p)
		}
	}
	return late
}

// walks are pairs of another operation and the sweep's walk through expired records.
func walks() []pair {
	first := operation{name: "walk", run: walk(1), instance: 1, losesEvent: true}
	others := slices.DeleteFunc(operations(1, "renamed"), func(o operation) bool {
		return o.name == "enroll" || o.name == "rename" || o.name == "re-key" // longer, and end the same
	})
	var walks []pair
	for _, other := range append(others, first, operations(2, "renamed")[0]) {
		name := "walk, " + other.name
		if other.instance == 2 {
			name = "walk, another's " + other.name
		}
		walks = append(walks, pair{name: name + ", late", ops: [2]operation{first, other}, fresh: [2]bool{false, true}, age: over})
	}
	return walks
}

// timed are the pairs during which the clock moves.
func timed(all []pair) []pair {
	var timed []pair
	for _, p := range all {
		if slices.Contains([]string{
			"renew, off-board", "renew, tag", "renew, release", "off-board, tag", "tag, tag",
			"off-board, another's enroll", "release, another's enroll", "release, another's rename",
		}, p.name) {
			p.moves = true
			p.name += ", and the clock moves"
			timed = append(timed, p)
		}
	}
	return timed
}
