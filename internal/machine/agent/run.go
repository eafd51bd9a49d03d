package agent

import (
	"bytes"
	"context"
	"reflect"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/signerclient"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// run is one run of Enroll or Renew.
type run struct {
	*Enroller
	// askUntil is the deadline of requests to the metadata service and the signer. Contexts
	// use the system's clock, so it does too.
	askUntil time.Time
	seen     *observed
	plan     plan
	outcome  Outcome
}

func (e *Enroller) newRun() *run { return &run{Enroller: e, askUntil: time.Now().Add(e.Timeout)} }

// asking returns a context for requests to the metadata service and the signer.
func (r *run) asking(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithDeadline(ctx, r.askUntil)
}

func (e *Enroller) run(ctx context.Context, forTimer bool) (*Outcome, error) {
	unlock, err := state.Lock(e.stateDir, e.now())
	if err != nil {
		return nil, err
	}
	defer unlock()

	r := e.newRun()
	if r.seen, err = r.look(ctx); err != nil {
		return nil, err
	}
	if r.plan = decide(r.seen, forTimer, e.now()); r.plan.wait != nil {
		return nil, r.plan.wait
	}
	err = r.act(ctx)
	if err != nil && ctx.Err() == nil { // a run that was interrupted, as by a shutdown, did not fail
		next := r.seen.failure.next(r.plan.need, !r.seen.certified(e.now()), err, e.now(), e.retry.Random())
		e.note("save the failure", next.save(e.stateDir))
	}
	if err != nil {
		return nil, err
	}
	if r.seen.failure != nil {
		e.note("remove the last failure", removeFailure(e.stateDir))
	}
	r.outcome.State = r.seen.state
	return &r.outcome, e.late(r.seen.state.Waiting)
}

// act does what the plan says. Without a reason to enroll, it only asks for the cluster's
// current CAs, which may turn out to be a reason.
func (r *run) act(ctx context.Context) error {
	r.outcome.Reason = r.plan.reason
	if r.plan.reason == "" {
		r.note("save what sshd has loaded", r.tracker().Observe(ctx, r.seen.conf))
		if err := r.confirm(ctx); err != nil {
			_, _, reportErr := r.askForCAs(ctx) // with the report that people cannot log in
			r.note("report the machine's health", reportErr)
			return err
		}
		if err := r.follow(ctx); err != nil {
			return err
		}
		r.outcome.Reason = hostCAChanged(r.seen.state, r.seen.keys)
	}
	if r.outcome.Reason == "" {
		return nil
	}
	return r.enroll(ctx)
}

// confirm makes up for an enrollment in which Hallmark did not see sshd present the
// certificates, because sshd did not run or this machine could not connect to it.
func (r *run) confirm(ctx context.Context) error {
	if !r.plan.confirm {
		return nil
	}
	s := r.seen.state
	i := r.installation()
	i.loaded = s.Presented
	if err := i.findListeners(ctx); err != nil {
		return err
	}
	if len(i.listeners) == 0 {
		return nil
	}
	if err := i.prove(ctx); err != nil {
		return i.markFutile(ctx, err, fault.Newf(fault.Failed, hintSSHD, "%w", err))
	}
	r.outcome.Reloaded = i.reloaded
	next := *s
	i.record(&next)
	if reflect.DeepEqual(next, *s) {
		return nil
	}
	r.seen.state = &next
	return state.Save(r.stateDir, r.seen.state)
}

// follow asks the signer for the cluster's current CAs, and makes sshd trust those for people.
// It adds and removes CAs only as the signer says, which reads them from Teleport's auth
// service: an attacker who controls only the proxy's public list gains nothing.
func (r *run) follow(ctx context.Context) error {
	if !r.plan.askForCAs {
		return nil
	}
	current, etag, err := r.askForCAs(ctx)
	if err != nil || current == nil {
		return err
	}
	next := *r.seen.state
	next.Learn(current.OpenSSH, current.Hosts)
	next.CAsETag = etag
	if bytes.Equal(cafile.Render(current.OpenSSH, r.seen.extra...), r.seen.caFile) {
		r.seen.state = &next
		return state.Save(r.stateDir, r.seen.state)
	}
	logins, err := r.judge(ctx)
	if err != nil {
		return err
	}
	if err := r.install(ctx, &next, logins); err != nil {
		return err
	}
	return r.reportFindings(ctx, logins, current.OpenSSH, r.seen.state)
}

func (r *run) askForCAs(ctx context.Context) (*signerclient.CAs, string, error) {
	ctx, cancel := r.asking(ctx)
	defer cancel()
	return r.signer.CAs(ctx, r.seen.state.CAsETag, r.health(ctx), r.seen.instance.Region)
}
