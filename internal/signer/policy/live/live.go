// Package live keeps a policy in force while its text may change: an SSM parameter that
// operators edit without deploying anything.
//
// A mistake in that parameter must not stop enrollment, so the last good policy stays in
// force, and is stored for processes that start while the mistake is there. The mistake must
// not go unnoticed either: every failed look raises an alarm in the log.
package live

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
)

const (
	// maxAge is how old a look may be before a request takes another. So a change takes effect
	// well within a minute, and a busy process asks SSM twice a minute.
	maxAge = 30 * time.Second
	// patience is how long a request waits for a look if there is already a policy.
	patience = 500 * time.Millisecond
	// fetchTimeout bounds reading the text, and the last good one at the same time.
	fetchTimeout = 3 * time.Second
	// saveTimeout bounds storing a new policy. The first request waits for it: Lambda freezes
	// everything that still runs once the answer is out.
	saveTimeout = time.Second
)

// LastGood stores the text of the last policy in force, for processes that start later. Table
// is one.
type LastGood interface {
	// Load returns the text saved last, and nil if there is none.
	Load(ctx context.Context) ([]byte, error)
	Save(ctx context.Context, text []byte) error
}

// Config says where a policy comes from. All fields are required.
type Config struct {
	// Fetch returns the policy's text as it is now. Parameter has one.
	Fetch    func(ctx context.Context) ([]byte, error)
	LastGood LastGood
	// Limits are the deployment's. They also bind the last good text: a text from before a
	// deployment that narrowed them may now allow too much.
	Limits policy.Limits
	Now    func() time.Time
	Log    *slog.Logger
}

// Policy is a policy whose text may change. It is safe for concurrent use.
type Policy struct {
	config Config

	mu      sync.Mutex
	current *policy.Policy // nil until a look found one
	looked  time.Time      // when the last look began
	running *look          // the look under way, or nil
	stored  string         // SHA-256 of the text in LastGood, or empty if unknown
}

// look is one look at the text, which many requests may wait for.
type look struct {
	began  time.Time
	done   chan struct{} // closed when policy and err are set
	policy *policy.Policy
	err    error
}

// New returns a policy. It makes no calls; the first Current does.
func New(c Config) *Policy { return &Policy{config: c} }

// Current returns the policy in force. If the last look is more than 30 seconds old, it looks
// at the text again, once for all concurrent requests. If there already is a policy, it waits
// at most half a second for that. It fails only if there is none: the text is broken or cannot
// be read, and so is the last good one, or ctx ended.
func (p *Policy) Current(ctx context.Context) (*policy.Policy, error) {
	current, l := p.look(ctx)
	if l == nil {
		return current, nil
	}
	if current != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	for {
		select {
		case <-l.done:
		case <-ctx.Done():
			if current != nil {
				return current, nil
			}
			return nil, fmt.Errorf("wait for the policy: %w", ctx.Err())
		}
		// The process may have been frozen during a look that nobody waited for. The text that
		// it found is as old as the look.
		if isRecent(l.began, p.config.Now().Round(0)) {
			return l.policy, l.err
		}
		var found *policy.Policy
		if found, l = p.look(ctx); l == nil {
			return found, nil
		}
	}
}

// isRecent reports whether a look is recent enough. If the clock was set back, it is not.
func isRecent(began, now time.Time) bool {
	age := now.Sub(began)
	return age >= 0 && age <= maxAge
}

// look returns the policy in force, if there is one, and a look to wait for, unless the last
// look is recent enough.
func (p *Policy) look(ctx context.Context) (*policy.Policy, *look) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// Strip the monotonic reading: that clock stands still while a Lambda function is frozen,
	// and a policy from before the freeze would seem fresh.
	now := p.config.Now().Round(0)
	if p.running == nil && p.current != nil && isRecent(p.looked, now) {
		return p.current, nil
	}
	if p.running == nil {
		p.running, p.looked = &look{began: now, done: make(chan struct{})}, now
		// All requests share the look, so it must not end with the request that began it.
		go p.run(context.WithoutCancel(ctx), p.running, p.current)
	}
	return p.current, p.running
}

func (p *Policy) run(ctx context.Context, l *look, before *policy.Policy) {
	l.policy, l.err = p.refresh(ctx, before)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = nil
	if l.policy != nil {
		p.current = l.policy
	}
	close(l.done)
}

// refresh returns the policy to use from now on. Only one refresh runs at a time, and nothing
// else touches p.stored.
func (p *Policy) refresh(ctx context.Context, before *policy.Policy) (*policy.Policy, error) {
	fetching, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	var last func() ([]byte, error)
	if before == nil {
		last = background(func() ([]byte, error) { return p.config.LastGood.Load(fetching) })
	}
	found, text, err := p.fetch(fetching, before)
	if err != nil {
		p.alarm(ctx, text, before, err)
		if before != nil {
			return before, nil
		}
		return p.restore(ctx, last, err)
	}
	if before == nil {
		p.note(ctx, last)
	}
	p.checkReset(ctx, before, found.SHA256)
	if before == nil || before.SHA256 != found.SHA256 {
		p.config.Log.InfoContext(ctx, "policy loaded", slog.String("policy_sha256", found.SHA256))
	}
	p.save(ctx, text, found.SHA256)
	return found, nil
}

// background runs f now and returns a function that waits for its result. A process that
// starts reads both texts at once, so a good parameter does not wait for the last good one.
func background(f func() ([]byte, error)) func() ([]byte, error) {
	var text []byte
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		text, err = f()
	}()
	return func() ([]byte, error) {
		<-done
		return text, err
	}
}

// brokenError is a text that is not a policy. It shows none of the text: somebody may have put
// a secret into the parameter by mistake, and this error is logged.
type brokenError struct{ sum string }

func (e *brokenError) Error() string {
	return "the text with SHA-256 " + e.sum + " is not a valid policy for this deployment; to see why, run 'hallmark-signer policy check --deployment deployment.yaml'"
}

// fetch reads the text and parses it, unless it is the one in force. The text is nil if it
// could not be read.
func (p *Policy) fetch(ctx context.Context, before *policy.Policy) (*policy.Policy, []byte, error) {
	text, err := p.config.Fetch(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("read the policy: %w", err)
	}
	sum := digest(text)
	if before != nil && before.SHA256 == sum {
		return before, text, nil
	}
	found, err := policy.Parse(text, p.config.Limits)
	if err != nil {
		return nil, text, &brokenError{sum}
	}
	return found, text, nil
}

// restore puts the last good policy into force when the process starts.
func (p *Policy) restore(ctx context.Context, last func() ([]byte, error), reason error) (*policy.Policy, error) {
	text, err := last()
	switch {
	case err != nil:
		return nil, errors.Join(reason, fmt.Errorf("read the last good policy: %w", err))
	case text == nil:
		return nil, errors.Join(reason, errors.New("there is no last good policy"))
	}
	found, err := policy.Parse(text, p.config.Limits)
	if err != nil {
		return nil, errors.Join(reason, fmt.Errorf("the last good policy no longer fits the deployment: %w", err))
	}
	p.stored = found.SHA256
	p.config.Log.WarnContext(ctx, "last good policy loaded", slog.String("policy_sha256", found.SHA256))
	return found, nil
}

// note remembers which text is stored, so that a start does not store it again.
func (p *Policy) note(ctx context.Context, last func() ([]byte, error)) {
	text, err := last()
	switch {
	case err != nil:
		p.config.Log.WarnContext(ctx, "cannot read the last good policy", slog.Any("error", err))
	case text != nil:
		p.stored = digest(text)
	}
}

// save stores a policy that is not stored yet. If that fails, the next look tries again; the
// policy is in force anyway.
func (p *Policy) save(ctx context.Context, text []byte, sum string) {
	if p.stored == sum {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, saveTimeout)
	defer cancel()
	if err := p.config.LastGood.Save(ctx, text); err != nil {
		p.config.Log.WarnContext(ctx, "cannot store the policy as the last good one",
			slog.String("policy_sha256", sum), slog.Any("error", err))
		return
	}
	p.stored = sum
}

// EventReset is the event of the log line about a policy that was replaced by the
// built-in one. The stack's metric filters count it.
const EventReset = "policy_reset"

// checkReset raises an alarm if the built-in policy replaces another. CloudFormation writes it
// into the parameter when any of the parameter's properties changes, and it admits machines
// that a stricter policy refuses.
func (p *Policy) checkReset(ctx context.Context, before *policy.Policy, sum string) {
	replaced := p.stored
	if before != nil {
		replaced = before.SHA256
	}
	if replaced == "" || replaced == sum {
		return
	}
	builtIn, err := policy.Default(p.config.Limits)
	if err != nil || builtIn.SHA256 != sum {
		return // if the built-in policy does not fit the deployment, it is not in force
	}
	p.config.Log.ErrorContext(ctx, "the built-in policy replaced another; if this is not intended, restore the last one",
		slog.String("event", EventReset), slog.Bool("alarm", true),
		slog.String("policy_sha256", sum), slog.String("replaced_sha256", replaced))
}

// EventRejected is the event of the log line about a policy that was rejected. The stack's
// metric filters count it.
const EventRejected = "policy_rejected"

// alarm logs that the policy in force is not the one that its author expects.
func (p *Policy) alarm(ctx context.Context, text []byte, inForce *policy.Policy, err error) {
	attributes := []any{slog.String("event", EventRejected), slog.Bool("alarm", true), slog.Any("error", err)}
	if text != nil {
		attributes = append(attributes, slog.String("broken_sha256", digest(text)))
	}
	if inForce != nil {
		attributes = append(attributes, slog.String("policy_sha256", inForce.SHA256))
	}
	p.config.Log.ErrorContext(ctx, "new policy rejected; keeping the last good one", attributes...)
}

func digest(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
