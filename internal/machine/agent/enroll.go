package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/loaded"
	"github.com/hallmark-ssh/hallmark/internal/machine/replace"
	"github.com/hallmark-ssh/hallmark/internal/machine/retry"
	"github.com/hallmark-ssh/hallmark/internal/machine/signerclient"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"golang.org/x/crypto/ssh"
)

// server is the OpenSSH server of this machine.
type server interface {
	Logins(ctx context.Context) ([]sshd.Login, error)
	Findings(ctx context.Context, logins []sshd.Login, want sshd.Want) ([]sshd.Finding, error)
	ViewOf(conf *sshd.Effective, logins []sshd.Login) (sshd.View, []sshd.Changed)
	LastLoad(ctx context.Context, pidFile string) (sshd.Load, error)
	Effective(ctx context.Context) (*sshd.Effective, error)
	Running(ctx context.Context, conf *sshd.Effective) (*sshd.Running, error)
	Reload(ctx context.Context, pidFile string) error
	Start(ctx context.Context) error
}

// Enroller enrolls this machine.
type Enroller struct {
	Config config.Config
	// Timeout bounds the questions to the metadata service and the signer, all
	// retries included. What follows has its own, short limits.
	Timeout time.Duration
	// ActivatePending has sshd reloaded for new certificates even if that puts somebody's
	// pending change of its configuration into effect.
	ActivatePending bool

	stateDir string
	caFile   string
	server   server
	metadata *imds.Client
	signer   *signerclient.Client
	retry    retry.Policy
	now      func() time.Time
	settle   time.Duration // how long sshd may take to present new certificates
	runDir   string        // forgotten at each boot, or "" without such a folder
	// suspended returns how long the machine has slept since it booted.
	suspended func() time.Duration

	// futile identifies the sshd that is not to be reloaded again, or is empty.
	futile string
}

// settleTimeout is far more than the 50 to 115 ms that a reload takes.
const settleTimeout = 15 * time.Second

// NewEnroller returns an enroller for the machine that it runs on. log is told of
// every retry.
func NewEnroller(c config.Config, timeout time.Duration, log func(format string, args ...any)) (*Enroller, error) {
	server, err := sshd.Find("/")
	if err != nil {
		return nil, &fault.Error{Kind: fault.Failed, Hint: "install OpenSSH's server", Err: err}
	}
	policy := retry.New(log)
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

// Outcome is what an enrollment came to.
type Outcome struct {
	State *state.State
	// Reason is why certificates were asked for, or empty.
	Reason string
	// Reloaded tells whether sshd was reloaded.
	Reloaded bool
	// Trusted and Retired are fingerprints of the OpenSSH CAs that sshd trusts now and
	// did not before, and the other way round.
	Trusted, Retired []string
}

// Enroll brings the machine to where its sshd presents valid certificates and
// trusts the cluster's current CAs. If it is there already, it changes nothing.
// Whatever goes wrong, sshd is left as it was.
func (e *Enroller) Enroll(ctx context.Context) (*Outcome, error) { return e.run(ctx, false) }

// Renew does what Enroll does, for a timer: after runs that failed it leaves the
// signer alone for a while, and returns the last error until then.
func (e *Enroller) Renew(ctx context.Context) (*Outcome, error) { return e.run(ctx, true) }

func (e *Enroller) run(ctx context.Context, patient bool) (*Outcome, error) {
	unlock, err := state.Lock(e.stateDir, e.now())
	if err != nil {
		return nil, err
	}
	defer unlock()

	askCtx, cancel := context.WithTimeout(ctx, e.Timeout)
	defer cancel()
	m, err := e.look(ctx, askCtx)
	if err != nil {
		return nil, err
	}
	reason := stale(m.state, e.now(), m.observed)
	last, wanted := loadSetback(e.stateDir), situation(m.observed, reason)
	e.futile = ""
	if patient {
		if err := last.holds(wanted, e.now()); err != nil {
			return nil, err
		}
		e.futile = last.futile()
	}
	m.rejected = last.told(m.state)
	o, err := e.act(ctx, askCtx, m, reason)
	if err != nil && ctx.Err() == nil { // whoever ends a run, as a shutdown does, is no failure
		last = last.next(wanted, !m.certified(e.now()), err, e.now(), e.retry.Random())
		e.note("note the failure", last.save(e.stateDir))
	}
	if err != nil {
		return o, err
	}
	if last != nil {
		e.note("forget the last failure", forgetSetback(e.stateDir))
	}
	return o, e.late(o.State.Waiting)
}

// tracker knows what the running sshd has loaded.
func (e *Enroller) tracker() loaded.Tracker {
	return loaded.Tracker{Server: e.server, Dir: e.runDir, Log: e.retry.Log}
}

// note reports what went wrong beside the matter itself.
func (e *Enroller) note(what string, err error) {
	if err != nil {
		e.retry.Log("%s: %v", what, err)
	}
}

// act does what there is to do. Without a reason it asks for the cluster's current
// CAs only, which may be a reason.
func (e *Enroller) act(ctx, askCtx context.Context, m *sight, reason string) (*Outcome, error) {
	o := &Outcome{}
	if reason == "" {
		e.note("note what sshd has loaded", e.tracker().Observe(ctx, m.conf))
		if err := e.confirm(ctx, m, o); err != nil {
			return nil, err
		}
		if err := e.follow(ctx, askCtx, m, o); err != nil {
			return nil, err
		}
		reason = resigned(m.state, m.keys)
	}
	if reason != "" {
		if err := e.enroll(ctx, askCtx, m, o); err != nil {
			return nil, err
		}
	}
	o.State, o.Reason = m.state, reason
	return o, nil
}

// enroll obtains certificates and puts them into use. sshd judges its configuration
// while the signer works.
func (e *Enroller) enroll(ctx, askCtx context.Context, m *sight, o *Outcome) error {
	for _, why := range m.passed {
		e.retry.Log("host key not certified: %s", why)
	}
	judgeCtx, stop := context.WithCancel(ctx)
	defer stop()
	var logins []sshd.Login
	var refused error
	var judged sync.WaitGroup
	judged.Go(func() { logins, refused = e.judge(judgeCtx) })
	answer, g, err := e.obtain(askCtx, m)
	if err != nil {
		stop()
		judged.Wait()
		return err
	}
	if judged.Wait(); refused != nil {
		return reject(protocol.RejectedBySSHD, answer.RequestID, refused)
	}
	next := newState(answer, g, m.keys, m.instance, e.Config.Digest(), e.now())
	next.RenewAfter = spread(next.RenewAfter, next.EnrolledAt, e.retry.Random()).Truncate(time.Second)
	next.OwnAddress = e.owns(askCtx, next.Node.Address) == yes
	for n := range m.keys {
		m.keys[n].Certificate = g.Certificates[n]
	}
	if err := e.install(ctx, m, next, logins, o); err != nil {
		return reject(rejectionOf(err), answer.RequestID, err)
	}
	if err := e.reportFindings(ctx, logins, g.OpenSSH, m.state); err != nil {
		err = reject(protocol.RejectedLoginsBlocked, answer.RequestID, err)
		m.state.Rejected = rejectionIn(err)
		e.note("note that nobody can log in", state.Save(e.stateDir, m.state))
		return err
	}
	return nil
}

// reportFindings logs what in sshd's settings keeps certificates from working. If none can
// work it is an error, although all is in place: once the setting is corrected, people can
// log in. Settings that wait for a reload, as the state says, keep nobody out yet.
func (e *Enroller) reportFindings(ctx context.Context, logins []sshd.Login, authorities []ssh.PublicKey, in *state.State) error {
	findings, err := e.server.Findings(ctx, logins, sshd.Want{
		CAFile: e.caFile, Authorities: authorities, MaxStartups: e.Config.SSHDOptions().MaxStartups,
		ProxySources: e.Config.ProxySources,
	})
	if err != nil {
		e.note("judge sshd's settings", err)
		return nil
	}
	for _, f := range findings {
		switch {
		case in.Waiting != nil:
			e.retry.Log("warning: once sshd is reloaded: %s", f)
		case !f.Blocks:
			e.retry.Log("warning: %s", f)
		}
	}
	if blocking := sshd.Blocking(findings); len(blocking) > 0 && in.Waiting == nil {
		return fault.Newf(fault.Misconfigured, "correct sshd's configuration as the message says, and reload sshd",
			"the certificates are in place, but nobody can log in by one: %w", sshd.JoinFindings(blocking))
	}
	return nil
}

// judge has sshd judge its configuration, for everyone who can log in, before a file is
// changed. What is written then are certificates and CAs, of which it says nothing.
func (e *Enroller) judge(ctx context.Context) ([]sshd.Login, error) {
	logins, err := e.server.Logins(ctx)
	if err != nil {
		return nil, fault.Newf(fault.Failed, "nothing was changed; correct what sshd says, then run it again", "sshd does not accept its configuration: %w", err)
	}
	return logins, nil
}

// install puts a state's CAs, and the keys' certificates, into use. logins are what sshd
// said about its configuration just before.
func (e *Enroller) install(ctx context.Context, m *sight, next *state.State, logins []sshd.Login, o *Outcome) error {
	keys, err := cafile.ParseKeys(next.OpenSSHCAs)
	if err != nil {
		return fmt.Errorf("trust OpenSSH CAs: %w", err) // has been checked
	}
	caFile := cafile.Render(keys, m.extra...)
	i := &installation{Enroller: e, conf: m.conf, keys: m.keys, before: m.state}
	if err := i.considerReload(ctx, logins); err != nil {
		return nothingChanged(err)
	}
	if err := i.install(ctx, caFile, next); err != nil {
		return err
	}
	o.Trusted, o.Retired = cafile.Compare(m.caFile, caFile)
	o.Reloaded = o.Reloaded || i.reloaded
	m.state, m.caFile = next, caFile
	return nil
}

// follow asks the signer which CAs the cluster has now, and has sshd trust those for
// people. They are added and removed only as the signer says, who reads them from
// Teleport's auth service: whoever controls the proxy's public list alone gets in
// nowhere.
func (e *Enroller) follow(ctx, askCtx context.Context, m *sight, o *Outcome) error {
	// The signer's list may be some minutes old, and older than what it just answered.
	if since := e.now().Sub(m.state.EnrolledAt); since >= 0 && since < freshAnswer {
		return nil
	}
	current, etag, err := e.signer.CAs(askCtx, m.state.CAsETag, m.instance.Region)
	if err != nil || current == nil {
		return err
	}
	next := *m.state
	next.Learn(current.OpenSSH, current.Hosts)
	next.CAsETag = etag
	if !bytes.Equal(cafile.Render(current.OpenSSH, m.extra...), m.caFile) {
		logins, err := e.judge(ctx)
		if err != nil {
			return err
		}
		if err := e.install(ctx, m, &next, logins, o); err != nil {
			return err
		}
		return e.reportFindings(ctx, logins, current.OpenSSH, m.state)
	}
	m.state = &next
	return state.Save(e.stateDir, m.state)
}

// freshAnswer is how long after an enrollment there is no need to ask for CAs.
const freshAnswer = 10 * time.Minute

// effective returns sshd's configuration if certificates could work with it.
func (e *Enroller) effective(ctx context.Context) (*sshd.Effective, error) {
	conf, err := e.server.Effective(ctx)
	if errors.Is(err, sshd.ErrNoHostKeys) {
		return nil, fault.Newf(fault.Temporary, "cloud-init makes host keys at first boot; by hand: ssh-keygen -A", "read sshd's configuration: %w", err)
	}
	if errors.Is(err, sshd.ErrNoSystemd) {
		return nil, fault.Newf(fault.Temporary, "wait for the boot to finish; if it has, see 'systemctl status'", "find the running sshd: %w", err)
	}
	if err != nil {
		return nil, fault.Newf(fault.Failed, "sshd does not accept its own configuration: run 'sshd -t' and correct it", "read sshd's configuration: %w", err)
	}
	switch conf.TrustedUserCAKeys {
	case e.caFile:
		return conf, nil
	case "":
		return nil, fault.Newf(fault.Misconfigured, hintInstall, "sshd's configuration%s has no line TrustedUserCAKeys %s", invokedWith(conf), e.caFile)
	}
	return nil, fault.Newf(fault.Misconfigured, "remove that line from sshd's configuration, then "+hintInstall,
		"sshd's configuration has TrustedUserCAKeys %s, which comes before hallmark's %s", conf.TrustedUserCAKeys, e.caFile)
}

const hintInstall = "run 'hallmark install' on this machine, or bake it into the image"

// invokedWith names the options that the running sshd was started with, if they decide
// its settings.
func invokedWith(conf *sshd.Effective) string {
	if len(conf.Options) == 0 {
		return ""
	}
	return fmt.Sprintf(" (it runs with %s)", strings.Join(conf.Options, " "))
}

// sight is what a run finds on the machine.
type sight struct {
	observed
	conf  *sshd.Effective
	state *state.State // nil if it never enrolled
	// rejected is why the last answer of the signer is not in use, or nil.
	rejected *protocol.Rejection
	// passed are the host keys that stay without a certificate, and why.
	passed []string
}

// look finds out what there is.
func (e *Enroller) look(ctx, askCtx context.Context) (*sight, error) {
	extra, err := e.Config.ExtraCAs()
	if err != nil {
		return nil, err // has been checked
	}
	m := &sight{observed: observed{config: e.Config.Digest(), extra: extra}}
	if m.conf, err = e.effective(ctx); err != nil {
		return nil, err
	}
	if m.state, err = state.Load(e.stateDir); err != nil {
		return nil, err
	}
	wanted := hostkey.Selection{Conf: m.conf, State: m.state, Replace: e.Config.HostCertificate == config.ReplaceCertificate}
	if m.keys, m.passed, err = wanted.Find(); err != nil {
		return nil, err
	}
	e.note("tidy up after a run that was killed", e.removeLeftovers(m.keys))
	if m.caFile, err = os.ReadFile(e.caFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Newf(fault.Failed, fault.FileHint(err), "read the trusted CAs: %w", err)
	}
	if m.instance, err = e.instance(askCtx); err != nil {
		return nil, err
	}
	if m.state != nil && m.state.OwnAddress && m.state.Instance == m.instance {
		m.moved = e.owns(askCtx, m.state.Node.Address) == no
	}
	return m, nil
}

func (e *Enroller) removeLeftovers(keys []hostkey.Key) error {
	paths := []string{e.caFile, state.Path(e.stateDir), setbackPath(e.stateDir)}
	for _, key := range keys {
		paths = append(paths, key.CertificatePath())
	}
	return replace.RemoveLeftovers(paths...)
}

// answer is yes, no, or neither.
type answer int

const (
	unknown answer = iota
	yes
	no
)

// owns tells whether a node's address, host and port, is one of this machine's:
// either an interface has it, or it is the public one.
func (e *Enroller) owns(ctx context.Context, address string) answer {
	node, err := netip.ParseAddrPort(address)
	if err != nil {
		return unknown // the signer may name it by DNS one day
	}
	interfaces, err := net.InterfaceAddrs()
	if err != nil {
		return unknown
	}
	for _, i := range interfaces {
		if prefix, err := netip.ParsePrefix(i.String()); err == nil && prefix.Addr().Unmap() == node.Addr().Unmap() {
			return yes
		}
	}
	public, err := e.metadata.PublicAddress(ctx)
	switch {
	case err != nil:
		return unknown
	case public == node.Addr().String():
		return yes
	}
	return no
}

// obtain asks the signer and checks its answer.
func (e *Enroller) obtain(ctx context.Context, m *sight) (*protocol.Response, *signerclient.Grant, error) {
	document, err := e.metadata.IdentityDocument(ctx)
	if err != nil {
		return nil, nil, err
	}
	creds, err := e.metadata.RoleCredentials(ctx)
	if err != nil {
		return nil, nil, err
	}
	var report *protocol.Report
	if m.rejected != nil {
		report = &protocol.Report{Rejected: m.rejected}
	}
	answer, err := e.signer.Ask(ctx, m.instance.Region, func(ctx context.Context, version int) ([]byte, error) {
		return e.newRequest(ctx, version, m.instance.Region, document, creds, m.keys, report)
	})
	if err != nil {
		return nil, nil, err
	}
	g, err := e.check(ctx, answer, m.keys, m.instance)
	if err != nil && fault.KindOf(err) != fault.Temporary {
		err = reject(protocol.RejectedAnswer, answer.RequestID, err)
	}
	return answer, g, err
}

// check decides whether an answer is what was asked for.
func (e *Enroller) check(ctx context.Context, answer *protocol.Response, keys []hostkey.Key, instance imds.Instance) (*signerclient.Grant, error) {
	var err error
	var own map[string]bool
	if further := signerclient.FurtherPrincipals(answer); len(further) > 0 { // few policies have them: else nobody is asked
		if own, err = e.metadata.Names(ctx, further); err != nil {
			return nil, err
		}
	}
	g, err := signerclient.Check(answer, keys, instance, own, e.now())
	if errors.Is(err, signerclient.ErrNewAddress) {
		return nil, fault.Newf(fault.Temporary, "nothing was changed; wait until the metadata service shows the address, or run it again",
			"the signer's answer (request %.64q): %w", answer.RequestID, err)
	}
	if err != nil {
		return nil, fault.Newf(fault.Failed, "nothing was changed; the signer's log says more, by the request id",
			"the signer's answer (request %.64q) is not acceptable: %w", answer.RequestID, err)
	}
	return g, nil
}

// newRequest makes a request whose proofs are all for this moment.
func (e *Enroller) newRequest(ctx context.Context, version int, region, document string, creds identity.Credentials, keys []hostkey.Key, report *protocol.Report) ([]byte, error) {
	now := e.now().UTC().Truncate(time.Second)
	p := protocol.Payload{Version: version, Audience: e.Config.Audience, IssuedAt: now, IdentityDocument: document}
	for _, key := range keys {
		p.HostKeys = append(p.HostKeys, key.Line())
	}
	if p.Version > protocol.FirstVersion {
		p.Report = report
	}
	payload, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	binding := protocol.Bind(payload)
	caller, err := identity.SignCaller(ctx, creds, region, binding, now)
	if err != nil {
		return nil, fmt.Errorf("prove the caller: %w", err)
	}
	signatures, err := hostkey.Sign(keys, binding)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(protocol.Request{Payload: payload, Caller: caller, Signatures: signatures})
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	return body, nil
}

// confirm makes up for an enrollment at which sshd was not seen to present the
// certificates, because it did not run or did not let this machine look.
func (e *Enroller) confirm(ctx context.Context, m *sight, o *Outcome) error {
	if m.state.Presented && m.state.NotVerified == "" {
		return nil
	}
	i := &installation{Enroller: e, conf: m.conf, keys: m.keys, loaded: m.state.Presented, before: m.state}
	if err := i.findListeners(ctx); err != nil {
		return err
	}
	if len(i.listeners) == 0 {
		return nil
	}
	if err := i.prove(ctx); err != nil {
		return i.markFutile(ctx, err, fault.Newf(fault.Failed, hintSSHD, "%w", err))
	}
	o.Reloaded = i.reloaded
	next := *m.state
	i.record(&next)
	if reflect.DeepEqual(next, *m.state) {
		return nil
	}
	m.state = &next
	return state.Save(e.stateDir, m.state)
}

// late returns an error if certificates have waited for too long.
func (e *Enroller) late(w *state.Waiting) error {
	if w == nil || !w.Urgent(e.now()) {
		return nil
	}
	return fault.Newf(fault.Misconfigured, "reload sshd once the change may take effect, or run 'hallmark enroll --reload'", "%s; %s", w, w.Access(e.now()))
}
