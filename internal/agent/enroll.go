package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/sshd"
)

// server is the OpenSSH server of this machine.
type server interface {
	Check(ctx context.Context) error
	Effective(ctx context.Context) (*sshd.Effective, error)
	Reload(ctx context.Context, pidFile string) error
	Start(ctx context.Context) error
}

// Enroller enrolls this machine.
type Enroller struct {
	Config Config
	// Timeout bounds the questions to the metadata service and the signer, all
	// retries included. What follows has its own, short limits.
	Timeout time.Duration

	stateDir string
	caFile   string
	server   server
	metadata *metadata
	http     *http.Client
	retry    retry
	now      func() time.Time
	settle   time.Duration // how long sshd may take to present new certificates
}

// settleTimeout is far more than the 50 to 115 ms that a reload takes.
const settleTimeout = 15 * time.Second

// NewEnroller returns an enroller for the machine that it runs on. log is told of
// every retry.
func NewEnroller(config Config, timeout time.Duration, log func(format string, args ...any)) (*Enroller, error) {
	server, err := sshd.Find("/")
	if err != nil {
		return nil, &Error{Kind: Failed, Hint: "install OpenSSH's server", Err: err}
	}
	client, err := newSignerClient(config.SignerCAFile)
	if err != nil {
		return nil, err
	}
	retry := newRetry(log)
	return &Enroller{
		Config: config, Timeout: timeout,
		stateDir: StateDir, caFile: sshd.CAFile,
		server: server, metadata: newMetadata(retry), http: client,
		retry: retry, now: time.Now, settle: settleTimeout,
	}, nil
}

// Outcome is what an enrollment came to.
type Outcome struct {
	State *State
	// Reason is why there was something to do, or empty.
	Reason string
	// Reloaded tells whether sshd was reloaded.
	Reloaded bool
}

// Enroll brings the machine to where its sshd presents valid certificates and
// trusts the cluster's current CAs. If it is there already, it changes nothing.
// Whatever goes wrong, sshd is left as it was.
func (e *Enroller) Enroll(ctx context.Context) (*Outcome, error) {
	unlock, err := lock(e.stateDir)
	if err != nil {
		return nil, err
	}
	defer unlock()

	conf, err := e.effective(ctx)
	if err != nil {
		return nil, err
	}
	keys, err := findHostKeys(conf)
	if err != nil {
		return nil, err
	}
	askCtx, cancel := context.WithTimeout(ctx, e.Timeout)
	defer cancel()
	instance, err := e.metadata.instance(askCtx)
	if err != nil {
		return nil, err
	}
	state, reason, err := e.compare(instance, keys)
	if err != nil {
		return nil, err
	}
	if reason == "" {
		return e.confirm(ctx, conf, keys, state)
	}
	answer, g, err := e.obtain(askCtx, instance, keys)
	if err != nil {
		return nil, err
	}
	state = newState(answer, g, keys, instance, e.Config.digest(), e.now())
	for n := range keys {
		keys[n].certificate = g.certificates[n]
	}
	i := &installation{Enroller: e, conf: conf, keys: keys}
	if err := i.install(ctx, renderAuthorities(g.openSSH), state); err != nil {
		return nil, err
	}
	return &Outcome{State: state, Reason: reason, Reloaded: i.reloaded}, nil
}

// lock keeps a second enrollment out while one runs. The kernel releases it
// whatever happens to the process, and locking the folder itself needs no file.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, failf(Failed, "run it as root", "make the state folder: %w", err)
	}
	folder, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the state folder: %w", err)
	}
	if err := unix.Flock(int(folder.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		folder.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, failf(Temporary, "wait for it to end: systemctl status hallmark.service", "another enrollment is running")
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { folder.Close() }, nil
}

// effective returns sshd's configuration if certificates could work with it.
func (e *Enroller) effective(ctx context.Context) (*sshd.Effective, error) {
	conf, err := e.server.Effective(ctx)
	if errors.Is(err, sshd.ErrNoHostKeys) {
		return nil, failf(Temporary, "cloud-init makes host keys at first boot; by hand: ssh-keygen -A", "read sshd's configuration: %w", err)
	}
	if err != nil {
		return nil, failf(Failed, "sshd does not accept its own configuration: run 'sshd -t' and correct it", "read sshd's configuration: %w", err)
	}
	switch conf.TrustedUserCAKeys {
	case e.caFile:
		return conf, nil
	case "":
		return nil, failf(Misconfigured, hintInstall, "sshd's configuration has no line TrustedUserCAKeys %s", e.caFile)
	}
	return nil, failf(Misconfigured, "remove that line from sshd's configuration, then "+hintInstall,
		"sshd's configuration has TrustedUserCAKeys %s, which comes before hallmark's %s", conf.TrustedUserCAKeys, e.caFile)
}

// compare decides from what is there whether anything has to be done.
func (e *Enroller) compare(instance Instance, keys []hostKey) (*State, string, error) {
	state, err := LoadState(e.stateDir)
	if err != nil {
		return nil, "", err
	}
	caFile, err := os.ReadFile(e.caFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, "", fmt.Errorf("read the trusted CAs: %w", err)
	}
	return state, state.stale(e.now(), observed{instance, e.Config.digest(), keys, caFile}), nil
}

// obtain asks the signer and checks its answer.
func (e *Enroller) obtain(ctx context.Context, instance Instance, keys []hostKey) (*protocol.Response, *grant, error) {
	document, err := e.metadata.identityDocument(ctx)
	if err != nil {
		return nil, nil, err
	}
	creds, err := e.metadata.credentials(ctx)
	if err != nil {
		return nil, nil, err
	}
	answer, err := e.ask(ctx, func(ctx context.Context) ([]byte, error) {
		return e.newRequest(ctx, instance.Region, document, creds, keys)
	})
	if err != nil {
		return nil, nil, err
	}
	g, err := checkAnswer(answer, keys, instance, e.now())
	if err != nil {
		return nil, nil, failf(Failed, "nothing was changed; the signer's log says more, by the request id",
			"the signer's answer (request %.64q) is not acceptable: %w", answer.RequestID, err)
	}
	return answer, g, nil
}

// newRequest makes a request whose proofs are all for this moment.
func (e *Enroller) newRequest(ctx context.Context, region, document string, creds identity.Credentials, keys []hostKey) ([]byte, error) {
	now := e.now().UTC().Truncate(time.Second)
	p := protocol.Payload{Version: protocol.Version, Audience: e.Config.Audience, IssuedAt: now, IdentityDocument: document}
	for _, key := range keys {
		p.HostKeys = append(p.HostKeys, key.line())
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
	signatures, err := signBinding(keys, binding)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(protocol.Request{Payload: payload, Caller: caller, Signatures: signatures})
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	return body, nil
}

// confirm makes up for an enrollment at which sshd was not running: once it runs,
// it has to be seen presenting the certificates.
func (e *Enroller) confirm(ctx context.Context, conf *sshd.Effective, keys []hostKey, state *State) (*Outcome, error) {
	if state.Presented {
		return &Outcome{State: state}, nil
	}
	i := &installation{Enroller: e, conf: conf, keys: keys}
	if !i.findListener(ctx) {
		return &Outcome{State: state}, nil
	}
	if err := i.prove(ctx); err != nil {
		return nil, failf(Failed, hintSSHD, "%w", err)
	}
	state.Presented = true
	change, err := stageState(e.stateDir, state)
	if err != nil {
		return nil, err
	}
	defer change.Close()
	if err := change.Commit(); err != nil {
		return nil, err
	}
	change.Keep()
	return &Outcome{State: state, Reloaded: i.reloaded}, nil
}

func stageState(dir string, state *State) (*sshd.Change, error) {
	data, err := state.marshal()
	if err != nil {
		return nil, err
	}
	change := &sshd.Change{}
	if err := change.Stage(filepath.Join(dir, "state.json"), data, 0o644); err != nil {
		return nil, errors.Join(err, change.Close())
	}
	return change, nil
}
