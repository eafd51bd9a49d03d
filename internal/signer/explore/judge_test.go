package explore

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// judge checks worlds against the invariants in docs/architecture.md.
type judge struct {
	lives   map[string]error // by the world's text: whether the machines can renew
	retired map[string]error // whether a sweep puts all right
}

func newJudge() *judge { return &judge{make(map[string]error), make(map[string]error)} }

func once(known map[string]error, text string, find func() error) error {
	err, ok := known[text]
	if !ok {
		err = find()
		known[text] = err
	}
	return err
}

// world checks what must hold at any time.
func (j *judge) world(w *world) error {
	return once(j.lives, w.text(), func() error {
		return errors.Join(w.checkStrangers(), w.checkNames(), w.checkRecords(), w.checkRenewal(1), w.checkRenewal(2))
	})
}

// end checks what must hold once both operations have ended.
func (j *judge) retire(p pair, s state) error {
	if !s.stale && s.failure != died && s.failure != left {
		if err := s.checkPromises(p); err != nil {
			return err
		}
	}
	mayLackNode := s.mayLackNode(p)
	return once(j.retired, fmt.Sprint(mayLackNode, s.world.text()), func() error {
		w := s.world.clone()
		if err := w.sweep(); err != nil {
			return err
		}
		err := errors.Join(w.checkNode(1), w.checkNode(2))
		if err != nil && (!mayLackNode || !errors.Is(err, errNoNode)) {
			return fmt.Errorf("after a sweep: %w", err)
		}
		if err := j.world(w); err != nil {
			return fmt.Errorf("after a sweep: %w", err)
		}
		return nil
	})
}

// mayLackNode reports whether an enrolled instance may have no node: a process that deletes a
// node for a leave, or because the instance is stopped, may die or fail after an enrollment has
// overtaken it. The next renewal writes the node: see checkRenewal.
func (s state) mayLackNode(p pair) bool {
	return p.leaves() && (s.failure != none || s.failsToLeave(p)) || p.stopped && s.failure != none
}

func (s state) failsToLeave(p pair) bool {
	for k, op := range p.ops {
		if op.name == "leave" && s.ops[k].err != nil {
			return true
		}
	}
	return false
}

func (w *world) sweep() error {
	for _, signer := range []string{audience, second} {
		if err := w.runIn(sweepAs(signer)); err != nil {
			return fmt.Errorf("sweep of %s: %w", signer, err)
		}
	}
	return nil
}

// checkPromises checks what the operations leave behind without a sweep. It retries what
// failed, as the machine, the queue or the operator would.
func (s state) checkPromises(p pair) error {
	if s.ops[0].isRestless() || s.ops[1].isRestless() {
		return nil // it says so, and leaves it to the sweep
	}
	if p.stopped && s.failure == failed {
		return nil // another event about a stop does nothing once the instance runs
	}
	w := s.world.clone()
	for k, op := range p.ops {
		if s.ops[k].err == nil || s.failure != failed {
			continue
		}
		again := op.run
		if op.name == "leave" {
			w.advance(time.Second) // it is another request, made later
			again = leaveAs(op.instance, w.key(op.instance))
		}
		if op.enrolls {
			again = w.renewal(op.instance)
		}
		if err := w.runIn(again); err != nil && !errors.Is(err, errAnswer) && !errors.Is(err, errRefused) {
			return fmt.Errorf("%s, tried again: %w", op.name, err)
		}
	}
	for n := 1; n <= 2; n++ {
		if w.record(n).Signer == second || p.losesEvent(n) {
			continue // the second signer's events are not explored
		}
		if err := w.checkNode(n); err != nil {
			return fmt.Errorf("before a sweep: %w", err)
		}
	}
	return nil
}

// checkStrangers checks that the nodes of others have not changed.
func (w *world) checkStrangers() error {
	for id, want := range strangers(w.epoch) {
		if got := w.nodes[id]; nodeText(got) != nodeText(want) {
			return fmt.Errorf("%s became %s", id, nodeText(got))
		}
	}
	return nil
}

// checkNames checks that no name has two holders: two nodes, or valid certificates of two
// instances.
func (w *world) checkNames() error {
	nodes := make(map[string]string)
	for id, n := range w.nodes {
		if other, taken := nodes[n.Hostname]; taken {
			return fmt.Errorf("%s and %s are both named %s", id, other, n.Hostname)
		}
		nodes[n.Hostname] = id
	}
	for _, name := range w.certifiedNames(1) {
		if slices.Contains(w.certifiedNames(2), name) {
			return fmt.Errorf("both instances have a certificate for %s", name)
		}
	}
	return nil
}

// checkRecords checks that the ledger agrees with itself and with the certificates.
func (w *world) checkRecords() error {
	one, two := w.record(1), w.record(2)
	for _, key := range one.Fingerprints {
		if slices.Contains(two.Fingerprints, key) {
			return fmt.Errorf("both instances hold the key %s", key)
		}
	}
	for n := 1; n <= 2; n++ {
		r := w.record(n)
		last := w.certified[certificate{n, r.ConfirmedHostname}]
		switch {
		case r.ConfirmedHostname != "" && r.ValidUntil.IsZero() && !strings.HasSuffix(r.ConfirmedHostname, " (released)"):
			return fmt.Errorf("instance %d has confirmed %s, and does not hold it", n, r.ConfirmedHostname)
		case r.Retired && (r.Expires.Before(w.now.Add(-time.Second)) || r.Expires.Before(last)):
			return fmt.Errorf("instance %d has ended, and its record expires at %s, its certificate at %s", n, r.Expires, last)
		}
	}
	return nil
}

// checkHeld checks that the instance holds its name for as long as its certificates are valid.
// It runs when they are handed out.
func (w *world) checkHeld(n int) error {
	r := w.record(n)
	if last := w.certified[certificate{n, r.ConfirmedHostname}]; last.After(r.ValidUntil) {
		return fmt.Errorf("a certificate of instance %d names %s until %s, and it holds that until %s", n, r.ConfirmedHostname, last, r.ValidUntil)
	}
	return nil
}

// errNoNode means a missing node. A sweep cannot repair it: it creates no nodes.
var errNoNode = errors.New("is enrolled and has no node")

// checkNode compares a node with the ledger's latest confirmed enrollment and with EC2.
func (w *world) checkNode(n int) error {
	record := w.record(n)
	server, there := w.nodes[nodeOf(n)]
	i := w.ec2[string(ref(n).ID)]
	switch {
	case record.Retired || i.State == inventory.StateTerminated:
		if there {
			return fmt.Errorf("instance %d has ended, and its node is still there: %s", n, nodeText(server))
		}
	case record.Left:
		if there {
			return fmt.Errorf("instance %d left, and its node is still there: %s", n, nodeText(server))
		}
	case w.isStopped(n):
		// The policy removes its node, if somebody notices.
	case record.ConfirmedHostname == "" || !record.Lease.After(w.now):
		// The node of a failed attempt may exist. Its lease ends by itself.
	case !there:
		return fmt.Errorf("instance %d %w", n, errNoNode)
	default:
		return w.compare(n, server)
	}
	return nil
}

func (w *world) compare(n int, server node.Node) error {
	record, i := w.record(n), w.ec2[string(ref(n).ID)]
	switch {
	case server.Hostname != record.ConfirmedHostname || server.Expires.Sub(record.Lease).Abs() >= time.Second:
		return fmt.Errorf("instance %d: node %s until %s, ledger %s until %s", n, server.Hostname, server.Expires, record.ConfirmedHostname, record.Lease)
	case server.Address != i.PrivateIP+":22" || server.Labels["aws/env"] != i.Tags["env"]:
		return fmt.Errorf("instance %d: address %s, labels %v; EC2 has %s, %v", n, server.Address, server.Labels, i.PrivateIP, i.Tags)
	case server.Labels["hallmark/signer"] != record.Signer:
		return fmt.Errorf("instance %d: node of signer %s, ledger %s", n, server.Labels["hallmark/signer"], record.Signer)
	}
	return nil
}

// renewal is the machine's next run, with its current keys and signer.
func (w *world) renewal(n int) run {
	record := w.record(n)
	to := audience
	if record.Signer != "" {
		to = record.Signer
	}
	return enrollAs(n, w.key(n), to)
}

// key is the machine's key.
func (w *world) key(n int) string {
	key := fmt.Sprint(n)
	if again := key + " again"; slices.Contains(w.record(n).Fingerprints, w.fingerprint(again)) {
		return again
	}
	return key
}

// checkRenewal has the machine renew, after a start if it is stopped. This must succeed whatever
// went wrong before, and whatever is still in progress. A terminated machine must get nothing.
func (w *world) checkRenewal(n int) error {
	after := w.clone()
	if after.isStopped(n) {
		after.setState(n, inventory.StateRunning)
	}
	err := after.runIn(w.renewal(n))
	if gone := w.record(n).Retired || w.ec2[string(ref(n).ID)].State == inventory.StateTerminated; gone || err != nil {
		if gone && errors.Is(err, errAnswer) {
			return nil
		}
		return fmt.Errorf("renewal of instance %d, gone %v: %w", n, gone, err)
	}
	if err := errors.Join(after.checkNode(n), after.checkStrangers(), after.checkNames(), after.checkRecords(), after.checkHeld(n)); err != nil {
		return fmt.Errorf("after a renewal of instance %d: %w", n, err)
	}
	return nil
}

// checkStep checks what must hold for each change.
func checkStep(before, after *world) error {
	for n := 1; n <= 2; n++ {
		was, is := before.record(n), after.record(n)
		if was.Retired && was.Version != is.Version {
			return fmt.Errorf("the record of instance %d has ended, and changed: %+v", n, is)
		}
		if was.Signer != "" && was.Signer != is.Signer && len(after.certifiedNames(n)) > 0 {
			return fmt.Errorf("instance %d went from signer %s to %s while certificates are good", n, was.Signer, is.Signer)
		}
		old, there := before.nodes[nodeOf(n)]
		if server, still := after.nodes[nodeOf(n)]; there && still && server.Labels["hallmark/signer"] != old.Labels["hallmark/signer"] {
			return fmt.Errorf("the node of instance %d went from signer %s to %s", n, old.Labels["hallmark/signer"], server.Labels["hallmark/signer"])
		}
	}
	return nil
}

// checkResult checks that nobody gets certificates that the ledger did not confirm.
func (hs *histories) checkResult(h *history) error {
	if !h.retired() || h.err != nil {
		return nil //nolint:nilerr // an operation that failed hands nothing out
	}
	signed, confirmed := false, false
	for ; h.parent != nil; h = h.parent {
		signed = signed || strings.HasPrefix(h.event.call, "SignHostKey")
		confirmed = confirmed || strings.HasPrefix(h.event.call, "Complete") && hs.answers[h].err == nil
	}
	if signed && !confirmed {
		return errors.New("certificates were handed out that the ledger did not confirm")
	}
	return nil
}
