package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
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

	listener netip.AddrPort // of the running sshd; the zero value if none runs
	reloaded bool
}

// install writes the certificates and the CA file, sees sshd present them, and
// only then writes the state.
func (i *installation) install(ctx context.Context, caFile []byte, state *State) (err error) {
	change, err := i.stage(caFile)
	if err != nil {
		return nothingChanged(err)
	}
	defer func() { err = errors.Join(err, change.Close()) }()
	// An sshd that does not run is not started: someone may have stopped it. One that
	// listens behind ssh.socket is started by this question, as by any login.
	state.Presented = i.findListener(ctx)
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

// findListener notes where the running sshd answers, and returns false if none
// does.
func (i *installation) findListener(ctx context.Context) bool {
	var ok bool
	i.listener, ok = sshd.Answers(ctx, i.conf.Listen)
	return ok
}

// prove sees that sshd accepts its configuration and presents the certificates,
// and reloads it only if it does not: a reload refuses logins for some 100 ms.
func (i *installation) prove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, i.settle)
	defer cancel()
	var shown error
	var look sync.WaitGroup
	defer look.Wait()
	if i.listener.IsValid() {
		look.Go(func() { shown = i.presented(ctx) })
	}
	// Neither changes anything, so they take place side by side.
	if err := i.server.Check(ctx); err != nil {
		cancel()
		return fmt.Errorf("sshd does not accept its configuration: %w", err)
	}
	if !i.listener.IsValid() {
		return nil // there is nobody to ask
	}
	if look.Wait(); shown == nil {
		return nil
	}
	i.reloaded = true
	if err := i.server.Reload(ctx, i.conf.PIDFile); err != nil {
		return fmt.Errorf("reload sshd: %w", err)
	}
	return until(ctx, i.presented)
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
// an algorithm sshd presents one, and either will do.
func (i *installation) presented(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	seen := map[string]bool{}
	for _, key := range i.keys {
		if seen[key.algorithms[0]] {
			continue
		}
		seen[key.algorithms[0]] = true
		group.Go(func() error { return i.presents(ctx, key) })
	}
	return group.Wait()
}

func (i *installation) presents(ctx context.Context, key hostKey) error {
	got, err := sshd.Presented(ctx, i.listener, key.algorithms)
	if err != nil {
		return fmt.Errorf("%s: %w", key.certificatePath(), err)
	}
	if !i.installed(got) {
		return fmt.Errorf("sshd at %s presents another certificate than %s", i.listener, key.certificatePath())
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

func (i *installation) answers(ctx context.Context) error {
	if _, ok := sshd.Answers(ctx, i.conf.Listen); !ok {
		return errors.New("no sshd answers at its addresses")
	}
	return nil
}
