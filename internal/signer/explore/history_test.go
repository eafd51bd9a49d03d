package explore

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// history is the answers to a process so far, and what it does next. Each history runs a
// process once: it does the same in every order with the same answers. TestReplay checks this
// by running both operations for real.
type history struct {
	run    run
	parent *history
	event  event // that led here
	depth  int

	calls []waiting // none: the operation has ended
	err   error     // the operation's, once it has ended
	died  bool
	// handed are the certificates that the machine got.
	handed []*ssh.Certificate
	moves  []*transition

	next map[event]*history
	live *process // one that has this history, if any has
}

// event is an answer to a call.
type event struct {
	call, answer string
	now          time.Time
}

type waiting struct {
	*call
	canceled bool // the process no longer waits for it
}

func (h *history) retired() bool { return len(h.calls) == 0 }

// histories runs processes, and records what they did.
type histories struct {
	*fixed
	runs    int // processes that were started
	answers map[*history]answer
	endings map[ending]*history
	all     []*history
	// each keeps histories separate if they differ only in the order of answers to calls that
	// waited at the same time.
	each bool
}

// ending is how an operation ended. Its answers no longer matter.
type ending struct {
	operation *history // its first history
	err       string
	restless  bool
	handed    string
}

func (hs *histories) begin(run run, now time.Time) *history {
	h := &history{run: run, event: event{now: now}, next: make(map[event]*history)}
	hs.settle(h, start(hs.fixed, now, run))
	hs.runs++
	return h
}

// settle records what a process with this history does.
func (hs *histories) settle(h *history, p *process) {
	for _, c := range p.waiting() {
		h.calls = append(h.calls, waiting{c, c.ctx.Err() != nil})
	}
	h.err, h.handed = p.err, p.handed
	if !p.ended {
		h.live = p
	}
	hs.all = append(hs.all, h)
}

// after returns the history with one more answer.
func (hs *histories) after(h *history, call string, a answer, now time.Time) (*history, error) {
	e := event{call, a.text, now}
	if next, ok := h.next[e]; ok {
		return next, nil
	}
	if joined := hs.joined(h, e); joined != nil {
		h.next[e] = joined
		return joined, nil
	}
	next := &history{run: h.run, parent: h, event: e, depth: h.depth + 1, next: make(map[event]*history)}
	if next.depth > maxDepth {
		return nil, fmt.Errorf("the operation still makes calls after %d: %s", maxDepth, h.calls[0].name)
	}
	p := h.live
	h.live = nil
	if p == nil {
		var err error
		if p, err = hs.again(h); err != nil {
			return nil, err
		}
	}
	if !p.give(call, a, now) {
		return nil, fmt.Errorf("no call waits for %s", call)
	}
	hs.answers[next] = a
	hs.settle(next, p)
	if err := hs.checkResult(next); err != nil {
		return nil, err
	}
	if next.retired() {
		next = hs.ending(next)
	}
	h.next[e] = next
	return next, nil
}

func (hs *histories) ending(h *history) *history {
	e := ending{operation: h.first(), restless: h.isRestless()}
	if h.err != nil {
		e.err = h.err.Error()
	}
	for _, c := range h.handed {
		e.handed += string(c.Marshal())
	}
	if known, ok := hs.endings[e]; ok {
		return known
	}
	hs.endings[e] = h
	return h
}

// isRestless reports whether the operation gave up following the writes of others: it ended
// after it announced one more write.
func (h *history) isRestless() bool {
	if !h.retired() || h.parent == nil || h.writes() < 2 {
		return false
	}
	if strings.HasPrefix(h.event.call, "DescribeInstances ") {
		h = h.parent
	}
	return strings.HasPrefix(h.event.call, "Announce ")
}

// writes counts how often the operation wrote a node.
func (h *history) writes() int {
	n := 0
	for ; h.parent != nil; h = h.parent {
		if strings.HasPrefix(h.event.call, "UpsertNode ") || strings.HasPrefix(h.event.call, "DeleteNode ") {
			n++
		}
	}
	return n
}

func (h *history) first() *history {
	for h.parent != nil {
		h = h.parent
	}
	return h
}

// joined returns the history with the last two answers swapped, if the process then does the
// same: it waited for both, and did nothing after the first.
func (hs *histories) joined(h *history, e event) *history {
	last := h.parent
	if last == nil || hs.each || e.call > h.event.call || !h.waitsOn(last) {
		return nil
	}
	other, known := last.next[e]
	if !known || other.parent != last || !other.waitsOn(last) {
		return nil
	}
	return other.next[h.event]
}

// waitsOn reports whether the process still waits for the same calls, except the answered one.
func (h *history) waitsOn(before *history) bool {
	if len(h.calls) != len(before.calls)-1 {
		return false
	}
	for _, c := range before.calls {
		if c.name != h.event.call && !slices.ContainsFunc(h.calls, func(d waiting) bool { return d.name == c.name && d.canceled == c.canceled }) {
			return false
		}
	}
	return true
}

// maxDepth bounds the calls of one operation. More mean a livelock.
const maxDepth = 60

// again starts a process and answers it as the history says.
func (hs *histories) again(h *history) (*process, error) {
	var path []*history
	root := h
	for ; root.parent != nil; root = root.parent {
		path = append(path, root)
	}
	p := start(hs.fixed, root.event.now, root.run)
	hs.runs++
	for _, step := range slices.Backward(path) {
		if !p.give(step.event.call, hs.answers[step], step.event.now) {
			return nil, fmt.Errorf("not deterministic: %s is called once, and not again: %v", step.event.call, names(p.waiting()))
		}
	}
	if got, want := names(p.waiting()), names(h.calls); got != want {
		return nil, fmt.Errorf("not deterministic: calls %s at first, and %s again", want, got)
	}
	return p, nil
}

func names[C interface{ title() string }](calls []C) string {
	var all []string
	for _, c := range calls {
		all = append(all, c.title())
	}
	return strings.Join(all, ", ")
}

func (c *call) title() string { return c.name }

// close ends all processes.
func (hs *histories) close() {
	for _, h := range hs.all {
		if h.live != nil {
			h.live.kill()
		}
	}
}
