package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ssh/hallmark/internal/sshd"
)

const hintSSHD = "see 'systemctl status ssh sshd' and sshd's lines in the journal"

// installation puts certificates and CAs into use, or everything back.
type installation struct {
	*Enroller
	conf *sshd.Effective
	keys []hostKey // with the certificates to install

	listeners []netip.AddrPort // of the running sshd; none if none runs
	reloaded  bool
}

// install writes the certificates and the CA file, sees sshd present them, and
// only then writes the state. The caller has had sshd judge its configuration.
func (i *installation) install(ctx context.Context, caFile []byte, state *State) (err error) {
	change, err := i.stage(caFile)
	if err != nil {
		return nothingChanged(err)
	}
	defer func() { err = errors.Join(err, change.Close()) }()
	// An sshd that does not run is not started: someone may have stopped it. One that
	// listens behind ssh.socket is started by this question, as by any login.
	if err := i.findListeners(ctx); err != nil {
		return nothingChanged(err)
	}
	state.Presented = len(i.listeners) > 0
	// The state is written last, but staged now: a full disk shows before sshd's
	// files change.
	final, err := stageState(i.stateDir, state)
	if err != nil {
		return nothingChanged(err)
	}
	defer func() { err = errors.Join(err, final.Close()) }()

	if err := change.Commit(); err != nil {
		return nothingChanged(err)
	}
	err = i.prove(ctx)
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

func nothingChanged(err error) error {
	return failf(Failed, "sshd works as before; see that the disk is neither full nor read-only, then run it again", "install certificates: %w", err)
}

// stage prepares the certificates, each next to its key, and the CA file.
func (i *installation) stage(caFile []byte) (*sshd.Change, error) {
	change := &sshd.Change{}
	for _, key := range i.keys {
		if err := change.Stage(key.certificatePath(), ssh.MarshalAuthorizedKey(key.certificate), 0o644); err != nil {
			return nil, errors.Join(err, change.Close())
		}
	}
	if err := os.MkdirAll(filepath.Dir(i.caFile), 0o755); err != nil {
		return nil, errors.Join(err, change.Close())
	}
	if err := change.Stage(i.caFile, caFile, 0o644); err != nil {
		return nil, errors.Join(err, change.Close())
	}
	return change, nil
}

// findListeners notes where the running sshd answers.
func (i *installation) findListeners(ctx context.Context) error {
	addresses, err := i.server.Addresses(ctx, i.conf)
	if err != nil {
		return fmt.Errorf("find where sshd listens: %w", err)
	}
	i.listeners = sshd.Answering(ctx, addresses)
	return nil
}

// prove sees that sshd presents the certificates, and reloads it only if it does not: a
// reload refuses logins for some 100 ms. One with a configuration that it does not accept
// would end it, so sshd judges it once more, with all that is in place now.
func (i *installation) prove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, i.settle)
	defer cancel()
	mismatch, err := i.mismatch(ctx)
	if err != nil || !mismatch {
		return err
	}
	if err := i.server.Check(ctx); err != nil {
		return fmt.Errorf("sshd does not accept its configuration: %w", err)
	}
	i.reloaded = true
	if err := i.server.Reload(ctx, i.conf.PIDFile); err != nil {
		return fmt.Errorf("reload sshd: %w", err)
	}
	// One question at a time until the reload is through, then all.
	first := func(ctx context.Context) error { return i.presents(ctx, i.listeners[0], i.keys[0]) }
	if err := until(ctx, first); err != nil {
		return err
	}
	return until(ctx, i.presented)
}

// mismatch reports whether sshd presents something else than the certificates.
func (i *installation) mismatch(ctx context.Context) (mismatch bool, err error) {
	if len(i.listeners) == 0 {
		return false, nil // there is nobody to ask
	}
	// An sshd that does not answer just now is asked again, not reloaded: it may keep
	// out this machine's address for a while (PerSourcePenalties).
	err = until(ctx, func(ctx context.Context) error {
		err := i.presented(ctx)
		mismatch = errors.Is(err, sshd.ErrNotPresented) || errors.Is(err, errAnother)
		if mismatch {
			return nil
		}
		return err
	})
	return mismatch, err
}

// until repeats a check until it succeeds or the context ends, and returns the
// last error that is the check's own: one that the end of the time cut short says
// nothing new. The pauses grow: OpenSSH 9.8 and later shuts out a source address
// that connects too often without logging in (PerSourcePenalties).
func until(ctx context.Context, check func(context.Context) error) error {
	var last error
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if sleep(ctx, pause) != nil {
			return last
		}
	}
}

// presented returns nil if sshd presents the certificates. Of two keys that share
// an algorithm sshd presents one, and either will do. Every certificate is asked for
// at the first address, and one of them at each other: a listener has the same keys
// everywhere, and OpenSSH 9.8 and later counts connections that do not log in.
func (i *installation) presented(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	seen := map[string]bool{}
	for _, key := range i.keys {
		if seen[key.algorithms[0]] {
			continue
		}
		seen[key.algorithms[0]] = true
		group.Go(func() error { return i.presents(ctx, i.listeners[0], key) })
	}
	for _, listener := range i.listeners[1:] {
		group.Go(func() error { return i.presents(ctx, listener, i.keys[0]) })
	}
	return group.Wait()
}

// errAnother says that sshd presents a certificate, but an old one.
var errAnother = errors.New("presents another certificate")

func (i *installation) presents(ctx context.Context, listener netip.AddrPort, key hostKey) error {
	got, err := sshd.Presented(ctx, listener, key.algorithms)
	if err != nil {
		return fmt.Errorf("%s: %w", key.certificatePath(), err)
	}
	if !i.installed(got) {
		return fmt.Errorf("sshd at %s %w than %s", listener, errAnother, key.certificatePath())
	}
	return nil
}

func (i *installation) installed(presented ssh.PublicKey) bool {
	for _, key := range i.keys {
		if bytes.Equal(key.certificate.Marshal(), presented.Marshal()) {
			return true
		}
	}
	return false
}

// putBack restores the files and, if sshd was reloaded, sshd. It goes on although
// the caller was interrupted: half of it would be the lock-out that this is about.
func (i *installation) putBack(ctx context.Context, change *sshd.Change, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), i.settle)
	defer cancel()
	if err := change.Rollback(); err != nil {
		return failf(Failed, hintSSHD, "%w; putting back what was there failed as well: %w", cause, err)
	}
	if err := i.revive(ctx); err != nil {
		return failf(Failed, "start sshd now, and keep your session open until it runs: "+hintSSHD,
			"%w; the files were put back, but sshd does not answer: %w", cause, err)
	}
	return failf(Failed, "what was there was put back and sshd works as before; "+hintSSHD, "%w", cause)
}

// revive makes an sshd that was reloaded read the old files again, and starts it
// if the reload ended it.
func (i *installation) revive(ctx context.Context) error {
	if !i.reloaded {
		return nil
	}
	err := i.server.Reload(ctx, i.conf.PIDFile)
	if err == nil {
		err = until(ctx, i.answers)
	}
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), i.settle)
	defer cancel()
	if startErr := i.server.Start(ctx); startErr != nil {
		return errors.Join(err, startErr)
	}
	return until(ctx, i.answers)
}

// answers returns nil if sshd answers wherever it did before.
func (i *installation) answers(ctx context.Context) error {
	if answering := sshd.Answering(ctx, i.listeners); len(answering) < len(i.listeners) {
		return fmt.Errorf("of sshd's addresses %v only %v answer", i.listeners, answering)
	}
	return nil
}
