package install

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/handshake"
	"github.com/hallmark-ssh/hallmark/internal/machine/replace"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
)

// restoreSSHD puts sshd's files into place, makes the running sshd read them, and sees it
// answer. If it does not, the files become what they were.
func (r *removal) restoreSSHD(ctx context.Context) error {
	listeners, err := r.listeners(ctx)
	if err != nil {
		return r.afterLeaving(err)
	}
	// Whether this machine can connect to its own sshd shows what to expect after the reload.
	visible := len(listeners) > 0 && answers(ctx, listeners[0]) == nil
	if err := r.change.Commit(); err != nil {
		return r.afterLeaving(err)
	}
	if len(listeners) > 0 && r.reloads {
		l := &reloading{removal: r, listeners: listeners, visible: visible}
		if err := l.checkAndReload(ctx); err != nil {
			return l.putBack(ctx, err)
		}
	}
	r.changes = append(r.changes, r.change.Lines()...)
	r.change.Keep()
	return r.change.Close()
}

// afterLeaving says where the machine stands if it is out of the cluster but not restored.
func (r *removal) afterLeaving(err error) error {
	return fault.Newf(fault.Failed, "correct the problem, then run 'hallmark unenroll' again; until then sshd works as before, and hallmark's timers are off",
		"restore sshd's configuration: %w", err)
}

// mayBeLoaded reports whether the running sshd may have Hallmark's settings: its files will change
// in this run, or an earlier run was killed before it removed the files that they name.
func (r *removal) mayBeLoaded() (bool, error) {
	preview := &replace.Preview{}
	if err := r.stageRestoration(preview, r.to); err != nil {
		return false, err
	}
	cas, err := r.readInstalled(caFile)
	return len(preview.Lines()) > 0 || len(r.written()) > 0 || cas != nil, err
}

// listeners returns where sshd listens, or nothing if none runs: this starts none.
func (r *removal) listeners(ctx context.Context) ([]netip.AddrPort, error) {
	running, err := r.live.Running(ctx, r.conf)
	if err != nil {
		return nil, fmt.Errorf("find where sshd listens: %w", err)
	}
	if running == nil {
		return nil, nil
	}
	return running.Listen, nil
}

// reloading makes the running sshd read its files again.
type reloading struct {
	*removal
	listeners []netip.AddrPort
	visible   bool // this machine could connect before
}

// checkAndReload makes sshd check its files before it reads them: a reload with a
// configuration that sshd does not accept would end it.
func (l *reloading) checkAndReload(ctx context.Context) error {
	if _, err := l.server.Logins(ctx); err != nil {
		return fmt.Errorf("sshd does not accept its configuration: %w", err)
	}
	return l.reload(ctx)
}

// reload reloads sshd, and waits until it answers.
func (l *reloading) reload(ctx context.Context) error {
	before, err := l.live.LastLoad(ctx, l.conf.PIDFile)
	if err != nil {
		return fmt.Errorf("find when sshd last read its configuration: %w", err)
	}
	if _, err := os.Stat(l.conf.PIDFile); err != nil {
		before.Stamp = "" // nothing would show the end of the reload
	}
	if err := l.live.Reload(ctx, l.conf.PIDFile); err != nil {
		return fmt.Errorf("reload sshd: %w", err)
	}
	return l.settles(ctx, before.Stamp)
}

// settles waits until sshd is ready.
func (l *reloading) settles(ctx context.Context, stamp string) error {
	ctx, cancel := context.WithTimeout(ctx, l.settle)
	defer cancel()
	return sshd.Wait(ctx, func(ctx context.Context) error { return l.ready(ctx, stamp) })
}

// ready returns nil if sshd has loaded its files since the load with the stamp, listens where
// it did, and answers if it did. The old process answers until it handles the signal, so an
// answer alone shows nothing.
func (l *reloading) ready(ctx context.Context, stamp string) error {
	now, err := l.live.LastLoad(ctx, l.conf.PIDFile)
	if err != nil {
		return err
	}
	if stamp != "" && (now.Stamp == stamp || now.Stamp == "") {
		return errors.New("sshd has not read its configuration again")
	}
	listens, err := l.removal.listeners(ctx)
	if err != nil {
		return err
	}
	for _, address := range l.listeners {
		if !slices.Contains(listens, address) {
			return fmt.Errorf("sshd no longer listens at %s", address)
		}
	}
	if !l.visible {
		return nil
	}
	return answers(ctx, l.listeners[0])
}

func answers(ctx context.Context, listener netip.AddrPort) error {
	_, err := handshake.HostKey(ctx, listener, nil)
	return err
}

// putBack restores the files that sshd had, and sshd. It continues even if the caller was
// interrupted: stopping halfway could cause a lock-out.
func (l *reloading) putBack(ctx context.Context, cause error) error {
	ctx = context.WithoutCancel(ctx)
	if err := l.change.Rollback(); err != nil {
		return fault.Newf(fault.Failed, hintSSHD, "%w; putting the files back failed too: %w", cause, err)
	}
	err := l.reload(ctx)
	if err != nil {
		if startErr := l.live.Start(ctx); startErr != nil {
			err = errors.Join(err, startErr)
		} else {
			err = l.settles(ctx, "")
		}
	}
	if err == nil {
		return l.afterLeaving(cause)
	}
	return fault.Newf(fault.Failed, "start sshd now, and keep your session open until it runs: "+hintSSHD,
		"%w; the files were put back, but sshd does not answer: %w", cause, err)
}

const hintSSHD = "see 'systemctl status ssh sshd' and sshd's journal"
