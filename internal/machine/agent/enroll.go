package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// enroll obtains certificates and puts them into use.
func (r *run) enroll(ctx context.Context) error {
	for _, why := range r.seen.skipped {
		r.retry.Log("host key not certified: %s", why)
	}
	answer, next, logins, err := r.askAndJudge(ctx)
	if err != nil {
		return err
	}
	if err := r.install(ctx, next, logins); err != nil {
		return reject(rejectionOf(err), answer.RequestID, err)
	}
	cas, err := cafile.ParseKeys(next.OpenSSHCAs)
	if err == nil {
		err = r.reportFindings(ctx, logins, cas, next)
	}
	if err != nil {
		err = reject(protocol.RejectedLoginsBlocked, answer.RequestID, err)
		next.Rejected = rejectionIn(err)
		r.note("save that nobody can log in", state.Save(r.stateDir, next))
	}
	return err
}

// askAndJudge makes the signer and sshd work at the same time. It returns the signer's answer,
// the resulting state, and what sshd reports about its configuration.
func (r *run) askAndJudge(ctx context.Context) (*protocol.Response, *state.State, []sshd.Login, error) {
	judging, stop := context.WithCancel(ctx)
	defer stop()
	var logins []sshd.Login
	var refused error
	var judged sync.WaitGroup
	judged.Go(func() { logins, refused = r.judge(judging) })

	ctx, cancel := r.asking(ctx)
	defer cancel()
	answer, g, err := r.obtain(ctx)
	if err != nil {
		stop()
		judged.Wait()
		return nil, nil, nil, err
	}
	if judged.Wait(); refused != nil {
		return nil, nil, nil, reject(protocol.RejectedBySSHD, answer.RequestID, refused)
	}
	next := newState(answer, g, r.seen.keys, r.seen.instance, r.Config.Digest(), r.now())
	next.RenewAfter = spread(next.RenewAfter, next.EnrolledAt, r.retry.Random()).Truncate(time.Second)
	next.OwnAddress = r.owns(ctx, next.Node.Address) == yes
	for n := range r.seen.keys {
		r.seen.keys[n].Certificate = g.Certificates[n]
	}
	return answer, next, logins, nil
}

// install puts a state's CAs, and the keys' certificates, into use. logins are what sshd
// reported about its configuration just before.
func (r *run) install(ctx context.Context, next *state.State, logins []sshd.Login) error {
	keys, err := cafile.ParseKeys(next.OpenSSHCAs)
	if err != nil {
		return fmt.Errorf("trust OpenSSH CAs: %w", err) // has been checked
	}
	caFile := cafile.Render(keys, r.seen.extra...)
	i := r.installation()
	if err := i.considerReload(ctx, logins); err != nil {
		return nothingChanged(err)
	}
	if err := i.install(ctx, caFile, next); err != nil {
		return err
	}
	r.outcome.Trusted, r.outcome.Retired = cafile.Compare(r.seen.caFile, caFile)
	r.outcome.Reloaded = r.outcome.Reloaded || i.reloaded
	r.seen.state, r.seen.caFile = next, caFile
	return nil
}

func (r *run) installation() *installation {
	return &installation{Enroller: r.Enroller, conf: r.seen.conf, keys: r.seen.keys, before: r.seen.state, futile: r.plan.futile}
}

// late returns an error if certificates have waited for too long.
func (e *Enroller) late(w *state.Waiting) error {
	if w == nil || !w.Urgent(e.now()) {
		return nil
	}
	return fault.Newf(fault.Misconfigured, "reload sshd once the change may take effect, or run 'hallmark enroll --reload'", "%s; %s", w, w.Access(e.now()))
}
