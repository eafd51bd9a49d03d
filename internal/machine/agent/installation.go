package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/backoff"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/handshake"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/replace"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

const hintSSHD = "see 'systemctl status ssh sshd' and sshd's journal"

// installation puts certificates and CAs into use, or restores everything.
type installation struct {
	*Enroller
	conf   *sshd.Effective
	keys   []hostkey.Key // with the certificates to install
	before *state.State  // nil if the machine never enrolled
	futile string        // identifies an sshd that must not be reloaded again, or is empty

	listeners []netip.AddrPort // of the running sshd; none if none runs
	reloaded  bool
	// loaded reports whether the running sshd was already reloaded for these certificates.
	loaded bool
	// notVerified says why Hallmark could not see sshd present the certificates.
	notVerified string
	// considered reports whether the run has determined what a reload would activate besides
	// Hallmark's own settings: pendingChange, or nothing.
	considered    bool
	pendingChange string
	logins        []sshd.Login // what sshd said just before it was reloaded
	// waits reports whether the certificates have to wait because of it.
	waits bool
}

// install writes the certificates and the CA file, sees sshd present them, and only then
// writes the state. The caller has made sshd check its configuration.
func (i *installation) install(ctx context.Context, caFile []byte, next *state.State) (err error) {
	change, err := i.stage(caFile)
	if err != nil {
		return nothingChanged(err)
	}
	defer func() { err = errors.Join(err, change.Close()) }()
	if err := i.saveOriginals(); err != nil {
		return nothingChanged(err)
	}
	// Do not start an sshd that does not run: somebody may have stopped it. This question
	// starts one behind ssh.socket, as any login does.
	if err := i.findListeners(ctx); err != nil {
		return nothingChanged(err)
	}
	i.record(next)
	// The state is written last, but staged now: a full disk shows before sshd's files change.
	final, err := state.Stage(i.stateDir, next)
	if err != nil {
		return nothingChanged(err)
	}
	defer func() { err = errors.Join(err, final.Close()) }()

	if err := change.Commit(); err != nil {
		return nothingChanged(err)
	}
	err = i.prove(ctx)
	if err == nil && (i.notVerified != "" || i.waits) {
		i.record(next)
		final, err = state.Restage(final, i.stateDir, next)
	}
	if err == nil {
		err = final.Commit()
	}
	if err != nil {
		return i.putBack(ctx, change, err)
	}
	change.Keep()
	final.Keep()
	return nil
}

// record notes in the state whether sshd has the certificates.
func (i *installation) record(in *state.State) {
	in.Presented, in.NotVerified, in.Waiting = len(i.listeners) > 0 && !i.waits, i.notVerified, nil
	if i.waits {
		in.Waiting = state.NextWaiting(i.before, i.pendingChange, i.now())
	}
}

func nothingChanged(err error) error {
	return fault.Newf(fault.Failed, "sshd works as before; "+fault.FileHint(err), "install certificates: %w", err)
}

// stage prepares the certificates, each next to its key, and the CA file. The certificates
// move into place in the order in which OpenSSH's client asks for them: if a run is killed
// between two of them, the certificate of one key hides no other key that a client has pinned.
func (i *installation) stage(caFile []byte) (*replace.Change, error) {
	change := &replace.Change{}
	ordered := slices.SortedStableFunc(slices.Values(i.keys), func(a, b hostkey.Key) int { return hostkey.ProxyRank(b.Public) - hostkey.ProxyRank(a.Public) })
	for _, key := range ordered {
		if err := change.Stage(key.CertificatePath(), sshkey.File(key.Certificate), 0o644); err != nil {
			return nil, errors.Join(err, change.Close())
		}
	}
	if err := replace.MakeFolder(filepath.Dir(i.caFile)); err != nil {
		return nil, errors.Join(err, change.Close())
	}
	if err := change.Stage(i.caFile, caFile, 0o644); err != nil {
		return nil, errors.Join(err, change.Close())
	}
	return change, nil
}

// saveOriginals saves the other CAs' certificates that this installation overwrites.
func (i *installation) saveOriginals() error {
	var list []state.Original
	for _, key := range i.keys {
		path := key.CertificatePath()
		if hostkey.ReadCertificate(path) == nil || (hostkey.Selection{Conf: i.conf, State: i.before}).Wrote(key) {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("save the certificate of another CA: %w", err)
		}
		list = append(list, state.Original{Path: path, Content: data})
	}
	if len(list) == 0 {
		return nil
	}
	return state.SaveOriginals(i.stateDir, list)
}

// findListeners notes where the running sshd listens.
func (i *installation) findListeners(ctx context.Context) error {
	running, err := i.server.Running(ctx, i.conf)
	if err != nil {
		return fmt.Errorf("find where sshd listens: %w", err)
	}
	i.listeners = nil
	if running != nil {
		i.listeners = running.Listen
	}
	return nil
}

// prove checks that sshd presents the certificates, and reloads it only if it does not: a reload
// refuses logins for some 100 ms. A reload with a configuration that sshd does not accept
// would end sshd, so sshd checks it again, with everything now in place.
//
// If sshd runs but this machine cannot connect to it, prove reloads it anyway, once for these
// certificates: people may well reach it from elsewhere.
func (i *installation) prove(ctx context.Context) error {
	if len(i.listeners) == 0 {
		return nil // there is nobody to ask
	}
	seen, err := i.look(ctx)
	if err != nil || seen == presentsThem || seen == hidden && i.loaded {
		return err
	}
	if i.waits, err = i.hasToWait(ctx); err != nil || i.waits {
		return err
	}
	if err := i.wasFutile(ctx); err != nil {
		return err
	}
	if err := i.reload(ctx); err != nil {
		return err
	}
	check := i.presented
	if seen == hidden {
		check = i.listens
	}
	if err := i.settles(ctx, check); err != nil {
		return err
	}
	_, err = i.tracker().Pending(ctx, i.conf, i.logins)
	i.note("save what sshd has loaded", err)
	return nil
}

// considerReload determines what a reload would activate.
func (i *installation) considerReload(ctx context.Context, logins []sshd.Login) (err error) {
	i.pendingChange, err = i.tracker().Pending(ctx, i.conf, logins)
	i.considered = err == nil
	return err
}

// hasToWait reports whether a reload would activate somebody's pending change, which Hallmark
// must not do on its own.
func (i *installation) hasToWait(ctx context.Context) (bool, error) {
	if !i.considered {
		logins, err := i.judge(ctx)
		if err == nil {
			err = i.considerReload(ctx, logins)
		}
		if err != nil {
			return false, err
		}
	}
	if i.pendingChange != "" && i.ActivatePending {
		i.retry.Log("reloading sshd although that also applies a pending change: %s", i.pendingChange)
	}
	return i.pendingChange != "" && !i.ActivatePending, nil
}

// reload makes sshd read its configuration, keys and certificates again.
func (i *installation) reload(ctx context.Context) error {
	var err error
	if i.logins, err = i.server.Logins(ctx); err != nil {
		return fmt.Errorf("%w: %w", errNotAccepted, err)
	}
	i.reloaded = true
	if err := i.server.Reload(ctx, i.conf.PIDFile); err != nil {
		return fmt.Errorf("reload sshd: %w", err)
	}
	return nil
}

// view is the result of a look at the running sshd.
type view int

const (
	presentsThem view = iota // the certificates
	presentsOthers
	hidden // it runs, but this machine cannot connect to it
)

// looks is how often Hallmark tries before it concludes that it cannot connect to sshd. A busy
// sshd (MaxStartups) drops some connections.
const looks = 4

// look finds out what sshd presents.
func (i *installation) look(ctx context.Context) (view, error) {
	pauses := backoff.Growth{First: 150 * time.Millisecond, Longest: time.Second}
	for n := 1; ; n++ {
		err := i.presented(ctx)
		switch {
		case err == nil:
			return presentsThem, nil
		case ctx.Err() != nil:
			return hidden, err
		case errors.Is(err, handshake.ErrNotPresented), errors.Is(err, errAnother):
			return presentsOthers, nil
		case n == looks, errors.Is(err, handshake.ErrNoAnswer) && n > 1, errors.Is(err, handshake.ErrNoCommonAlgorithm):
			i.notVerified = err.Error()
			return hidden, nil
		}
		if backoff.Wait(ctx, pauses.Limit(n)) != nil {
			return hidden, err
		}
	}
}

// settles waits until a check of sshd succeeds. The wait starts when the reload is done: on a
// slow machine, the reload and its checks take longer than sshd itself.
func (i *installation) settles(ctx context.Context, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, i.settle)
	defer cancel()
	return sshd.Wait(ctx, check)
}

// presented returns nil if sshd presents the certificates. If two keys share an algorithm,
// sshd presents one of them, and either will do. It opens one connection at a time: hardened
// machines allow only one from each address (PerSourceMaxStartups 1). It asks for every
// certificate, but at one address only: one process has the same keys at all its addresses.
func (i *installation) presented(ctx context.Context) error {
	seen := map[string]bool{}
	for _, key := range i.keys {
		if seen[key.Algorithms[0]] {
			continue
		}
		seen[key.Algorithms[0]] = true
		if err := i.presents(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// errNotAccepted says that sshd rejects its configuration.
var errNotAccepted = errors.New("sshd does not accept its configuration")

// errAnother says that sshd presents a certificate, but an old one.
var errAnother = errors.New("presents another certificate")

// presents asks at the first address that this machine can connect to, and moves it to the
// front.
func (i *installation) presents(ctx context.Context, key hostkey.Key) error {
	var got ssh.PublicKey
	var err error
	for n, listener := range i.listeners {
		got, err = handshake.HostKey(ctx, listener, key.Algorithms)
		if err == nil || errors.Is(err, handshake.ErrNotPresented) {
			i.listeners[0], i.listeners[n] = listener, i.listeners[0]
			break
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", key.CertificatePath(), err)
	}
	if !i.installed(got) {
		return fmt.Errorf("sshd at %s %w than %s", i.listeners[0], errAnother, key.CertificatePath())
	}
	return nil
}

func (i *installation) installed(presented ssh.PublicKey) bool {
	for _, key := range i.keys {
		if bytes.Equal(key.Certificate.Marshal(), presented.Marshal()) {
			return true
		}
	}
	return false
}

// putBack restores the files and, if sshd was reloaded, sshd. It continues even if the caller
// was interrupted: stopping halfway could cause the very lock-out that it prevents.
func (i *installation) putBack(ctx context.Context, change *replace.Change, cause error) error {
	ctx = context.WithoutCancel(ctx)
	if err := change.Rollback(); err != nil {
		return fault.Newf(fault.Failed, hintSSHD, "%w; restoring the old files failed too: %w", cause, err)
	}
	if err := i.revive(ctx); err != nil {
		return fault.Newf(fault.Failed, "start sshd now, and keep your session open until it runs: "+hintSSHD,
			"%w; the files were restored, but sshd does not answer: %w", cause, err)
	}
	return i.markFutile(ctx, cause, fault.Newf(fault.Failed, "the old files were restored, and sshd works as before; "+hintSSHD, "%w", cause))
}

// revive makes a reloaded sshd read the old files again, and starts it if the reload ended it.
func (i *installation) revive(ctx context.Context) error {
	if !i.reloaded {
		return nil
	}
	err := i.server.Reload(ctx, i.conf.PIDFile)
	if err == nil {
		err = i.settles(ctx, i.answers)
	}
	if err == nil {
		return nil
	}
	if startErr := i.server.Start(ctx); startErr != nil {
		return errors.Join(err, startErr)
	}
	return i.settles(ctx, i.answers)
}

// answers returns nil if this machine can connect to sshd as it could before the reload.
func (i *installation) answers(ctx context.Context) error {
	if i.notVerified != "" {
		return i.listens(ctx)
	}
	_, err := handshake.HostKey(ctx, i.listeners[0], nil)
	if errors.Is(err, handshake.ErrNotPresented) {
		return nil
	}
	return err
}

// listens returns nil if sshd listens wherever it did before the reload.
func (i *installation) listens(ctx context.Context) error {
	running, err := i.server.Running(ctx, i.conf)
	if err != nil {
		return err
	}
	if running == nil {
		return errors.New("sshd is not running")
	}
	for _, address := range i.listeners {
		if !slices.Contains(running.Listen, address) {
			return fmt.Errorf("sshd no longer listens at %s", address)
		}
	}
	return nil
}
