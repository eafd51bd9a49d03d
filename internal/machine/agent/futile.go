package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/hallmark-ssh/hallmark/internal/machine/handshake"
)

// futileReloadError says that sshd did not present the certificates even after a reload. The
// cause is unknown: the run finds the known causes before it reloads. So another reload can
// help only after sshd or its configuration has changed.
type futileReloadError struct {
	mark string // of sshd and its configuration
	err  error
}

func (e *futileReloadError) Error() string { return e.err.Error() }
func (e *futileReloadError) Unwrap() error { return e.err }

func (f *failure) futile() string {
	if f == nil {
		return ""
	}
	return f.Futile
}

// errFutile stands for an earlier reload that did not help.
var errFutile = errors.New("sshd does not present the certificates; a reload did not help last time, " +
	"and neither sshd nor its configuration has changed since")

// wasFutile returns an error if an earlier run reloaded this sshd, with this configuration,
// without success.
func (i *installation) wasFutile(ctx context.Context) error {
	if i.futile == "" {
		return nil
	}
	mark, err := i.mark(ctx)
	if err != nil || mark != i.futile {
		return err
	}
	return &futileReloadError{mark, errFutile}
}

// markFutile adds to an error which sshd did not improve after a reload.
func (i *installation) markFutile(ctx context.Context, cause, err error) error {
	if !i.reloaded || !errors.Is(cause, handshake.ErrNotPresented) && !errors.Is(cause, errAnother) {
		return err
	}
	mark, markErr := i.mark(ctx)
	if markErr != nil {
		i.note("save that the reload did not help", markErr)
		return err
	}
	return &futileReloadError{mark, err}
}

// mark identifies the running sshd and its configuration.
func (i *installation) mark(ctx context.Context) (string, error) {
	load, err := i.server.LastLoad(ctx, i.conf.PIDFile)
	if err != nil {
		return "", err
	}
	files, _ := i.server.ViewOf(i.conf, nil)
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q", load.Process, files.Directives, files.Own)
	for _, path := range i.conf.HostKeys {
		fmt.Fprintf(h, " %q", files.Keys[path])
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}
