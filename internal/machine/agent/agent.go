// Package agent is a run on the instance: it asks the signer for host certificates and puts
// them into use without ever leaving sshd worse off.
//
// A run looks (look.go), decides (decide.go) and acts (run.go).
package agent

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/backoff"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/findings"
	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/loaded"
	"github.com/hallmark-ssh/hallmark/internal/machine/signerclient"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// server is the OpenSSH server of this machine.
type server interface {
	findings.Server
	loaded.Server
	Effective(ctx context.Context) (*sshd.Effective, error)
	Running(ctx context.Context, conf *sshd.Effective) (*sshd.Running, error)
	Reload(ctx context.Context, pidFile string) error
	Start(ctx context.Context) error
}

// Enroller enrolls this machine.
type Enroller struct {
	Config config.Config
	// Timeout bounds the requests to the metadata service and the signer, with all their
	// retries. Later steps have their own, short limits.
	Timeout time.Duration
	// ActivatePending makes a run reload sshd for new certificates even if that activates
	// somebody's pending change to sshd's configuration.
	ActivatePending bool

	stateDir string
	caFile   string
	server   server
	metadata *imds.Client
	signer   *signerclient.Client
	retry    backoff.Policy
	now      func() time.Time
	settle   time.Duration // how long sshd may take to present new certificates
	runDir   string        // in a folder that a boot empties, or "" without such a folder
	// suspended returns how long the machine has slept since it booted.
	suspended func() time.Duration
}

// settleTimeout is far more than the 50 to 115 ms that a reload takes.
const settleTimeout = 15 * time.Second

// newPolicy returns how a run repeats its requests. log receives a line for each retry.
func newPolicy(log func(format string, args ...any)) backoff.Policy {
	return backoff.Policy{
		Growth: backoff.Growth{First: 500 * time.Millisecond, Longest: 30 * time.Second},
		Random: rand.Float64,
		Now:    time.Now,
		Log:    log,
	}
}

// NewEnroller returns an enroller for the machine that it runs on. log receives a line for
// each retry.
func NewEnroller(c config.Config, timeout time.Duration, log func(format string, args ...any)) (*Enroller, error) {
	server, err := sshd.Find("/")
	if err != nil {
		return nil, &fault.Error{Kind: fault.Failed, Hint: "install OpenSSH's server", Err: err}
	}
	policy := newPolicy(log)
	metadata := imds.New(policy)
	signer, err := signerclient.New(c, policy, metadata, time.Now)
	if err != nil {
		return nil, err
	}
	return &Enroller{
		Config: c, Timeout: timeout,
		stateDir: state.Dir, caFile: sshdconf.CAFile,
		server: server, metadata: metadata, signer: signer,
		retry: policy, now: time.Now, settle: settleTimeout, runDir: state.RuntimeDir(), suspended: suspended,
	}, nil
}

// Outcome is the result of an enrollment.
type Outcome struct {
	State *state.State
	// Reason is why the run asked for certificates, or empty.
	Reason string
	// Reloaded reports whether the run reloaded sshd.
	Reloaded bool
	// Trusted and Retired are fingerprints: of the OpenSSH CAs that sshd trusts now but did
	// not before, and of those that it no longer trusts.
	Trusted, Retired []string
}

// Enroll makes sure that the machine's sshd presents valid certificates and trusts the
// cluster's current CAs. If that is already so, it changes nothing. If anything goes wrong, it
// leaves sshd as it was.
func (e *Enroller) Enroll(ctx context.Context) (*Outcome, error) { return e.run(ctx, false) }

// Renew does what Enroll does, for a timer: after failed runs it leaves the signer alone for a
// while, and returns the last error until then.
func (e *Enroller) Renew(ctx context.Context) (*Outcome, error) { return e.run(ctx, true) }

// tracker knows what the running sshd has loaded.
func (e *Enroller) tracker() loaded.Tracker {
	return loaded.Tracker{Server: e.server, Dir: e.runDir, Log: e.retry.Log}
}

// note logs an error that does not stop the run.
func (e *Enroller) note(what string, err error) {
	if err != nil {
		e.retry.Log("%s: %v", what, err)
	}
}
