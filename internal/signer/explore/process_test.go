package explore

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"
)

// A process is the real code of one operation. Each of its calls to EC2, the ledger and
// Teleport waits for the explorer's answer. What the process does next depends only on the
// answers and on the clock, which stands at the time of the latest answer.

// use is an object that a call reads or writes: EC2's instance, a record, a node.
type use struct {
	object string
	write  bool
}

// answer is what a call returns.
type answer struct {
	value any
	err   error
	text  string // all of it
}

// call waits for its answer.
type call struct {
	of      *process
	service service
	name    string
	uses    []use
	changes bool // the world, perhaps
	// maybeRefused says that a refusal and a failure have different effects.
	maybeRefused bool
	// make reads and changes the given world.
	make  func(*world) answer
	ctx   context.Context
	reply chan answer
}

func (c *call) isWrite() bool {
	return slices.ContainsFunc(c.uses, func(u use) bool { return u.write })
}

// refusable allows Teleport to refuse the call.
func (c *call) refusable() *call { c.maybeRefused = true; return c }

// process is a running operation.
type process struct {
	*fixed
	// in is the world in which calls happen at once, or nil.
	in *world

	mu      sync.Mutex
	now     time.Time
	pending []*call
	dead    bool // it gets no more answers
	died    bool // before it ended
	ended   bool
	err     error // of the operation, once it has ended
	signed  []*ssh.Certificate
	handed  []*ssh.Certificate // that the machine got
}

var errDied = errors.New("the process died")

// start runs an operation to its first calls. It works only in a synctest bubble.
func start(f *fixed, now time.Time, run run) *process {
	p := &process{fixed: f, now: now}
	go func() {
		err := run(context.Background(), p)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.ended, p.err = true, err
	}()
	synctest.Wait()
	return p
}

// runIn runs an operation by itself, and changes the world.
func (w *world) runIn(run run) error {
	p := &process{fixed: w.fixed, now: w.now, in: w}
	return errors.Join(run(context.Background(), p), w.handOut(p.handed))
}

// clock is the clock of the process.
func (p *process) clock() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now
}

// wait waits until the call is answered.
func (c *call) wait(do func(*world) answer) answer {
	p := c.of
	p.mu.Lock()
	switch {
	case p.dead:
		p.mu.Unlock()
		return answer{err: errDied}
	case p.in != nil:
		defer p.mu.Unlock()
		p.in.inLedger = ""
		return do(p.in)
	}
	c.make, c.reply, c.changes = do, make(chan answer), c.isWrite()
	p.pending = append(p.pending, c)
	p.mu.Unlock()
	return <-c.reply
}

// waiting returns the waiting calls, sorted by name.
func (p *process) waiting() []*call {
	slices.SortFunc(p.pending, func(a, b *call) int { return strings.Compare(a.name, b.name) })
	return slices.Clone(p.pending)
}

// give answers a call, and returns when the process waits again or has ended.
func (p *process) give(name string, a answer, now time.Time) bool {
	n := slices.IndexFunc(p.pending, func(c *call) bool { return c.name == name })
	if n < 0 {
		return false
	}
	c := p.pending[n]
	p.mu.Lock()
	p.pending, p.now = slices.Delete(p.pending, n, n+1), now
	p.mu.Unlock()
	c.reply <- a
	synctest.Wait()
	return true
}

// kill ends the process at its current call.
func (p *process) kill() {
	p.mu.Lock()
	pending := p.pending
	p.pending, p.dead, p.died = nil, true, p.died || !p.ended
	p.mu.Unlock()
	for _, c := range pending {
		c.reply <- answer{err: errDied}
	}
	synctest.Wait()
}
