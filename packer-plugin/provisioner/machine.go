package provisioner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
	"github.com/hashicorp/packer-plugin-sdk/retry"
)

const (
	// connectTimeout bounds the wait for a machine that may be rebooting after the previous
	// provisioner.
	connectTimeout = 5 * time.Minute
	cleanupTimeout = 30 * time.Second
	// maxOutput bounds how much of a command's output is kept: the machine has not proved
	// anything to Packer.
	maxOutput = 16 << 10
	// maxQuoted bounds how much of it an error quotes.
	maxQuoted = 2 << 10
)

// machine is the machine being baked, as Packer's communicator reaches it.
type machine struct {
	comm       packersdk.Communicator
	retryDelay time.Duration
}

// exitError says that a command ran and failed.
type exitError struct {
	status int
	output string
}

func (e *exitError) Error() string {
	what := fmt.Sprintf("exit status %d", e.status)
	if e.disconnected() {
		what = "the connection broke"
	}
	if e.output == "" {
		return what + " without any output"
	}
	return what + ": " + quoted(e.output)
}

// quoted returns the end of a command's output.
func quoted(output string) string {
	if extra := len(output) - maxQuoted; extra > 0 {
		return "…" + strings.ToValidUTF8(output[extra:], "")
	}
	return output
}

func (e *exitError) disconnected() bool { return e.status == packersdk.CmdDisconnect }

// run runs a command and returns its output, standard output and standard error together: with
// ssh_pty they arrive together anyway.
func (m machine) run(ctx context.Context, command string) (string, error) {
	var printed output
	cmd := &packersdk.RemoteCmd{Command: command, Stdout: &printed, Stderr: &printed}
	err := await(ctx, func() error {
		if err := m.comm.Start(ctx, cmd); err != nil {
			return &remoteError{err}
		}
		cmd.Wait()
		return nil
	})
	if err != nil {
		return "", err
	}
	if status := cmd.ExitStatus(); status != 0 {
		return "", &exitError{status, printed.String()}
	}
	return printed.String(), nil
}

// await runs f until ctx ends. Packer's communicators ignore the end of their context, so f
// may still be running when await returns.
func await(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case <-ctx.Done():
		return interruption(ctx)
	case err := <-done:
		if err != nil && ctx.Err() != nil {
			return interruption(ctx)
		}
		return err
	}
}

// remoteError is an error whose text may come from the machine.
type remoteError struct{ error }

func (e *remoteError) Error() string { return quoted(readable(e.error.Error())) }

// Unwrap returns the error itself.
func (e *remoteError) Unwrap() error { return e.error }

// interruptedError is the end of the context, in words.
type interruptedError struct{ error }

func (e *interruptedError) Error() string { return "interrupted" }

// Unwrap returns the cause.
func (e *interruptedError) Unwrap() error { return e.error }

// interruption returns why ctx ended. Packer ends it on Ctrl-C, and at the block's timeout.
func interruption(ctx context.Context) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
		return &interruptedError{cause}
	}
	return cause
}

// architecture waits until the machine runs commands, and returns its architecture by Go's
// name.
func (m machine) architecture(ctx context.Context) (string, error) {
	const command = "uname -sm"
	var uname string
	connect := retry.Config{
		StartTimeout: connectTimeout,
		RetryDelay:   func() time.Duration { return m.retryDelay },
		ShouldRetry: func(err error) bool {
			exit, ok := errors.AsType[*exitError](err)
			return ctx.Err() == nil && (!ok || exit.disconnected())
		},
	}
	err := connect.Run(ctx, func(ctx context.Context) (err error) {
		uname, err = m.run(ctx, command)
		return err
	})
	if err != nil && connect.ShouldRetry(err) {
		err = fmt.Errorf("no connection for %s: %w", connectTimeout, err)
	}
	if err != nil {
		return "", hinted(fmt.Errorf("run %q on the machine: %w", command, err),
			"check the communicator in the source block, and that the machine runs Linux with a shell")
	}
	return parseUname(uname)
}

// parseUname reads the output of "uname -sm", in the middle of whatever a login script prints.
func parseUname(printed string) (string, error) {
	if printed == "" {
		return "", errors.New(`the machine does not run commands; set communicator = "ssh" in the source block`)
	}
	for line := range strings.Lines(printed) {
		switch strings.TrimSpace(line) {
		case "Linux x86_64":
			return "amd64", nil
		case "Linux aarch64":
			return "arm64", nil
		}
	}
	return "", fmt.Errorf("the machine is %.200q, but hallmark runs on Linux x86_64 and Linux aarch64; choose another image or instance type", printed)
}

func (m machine) makeFolder(ctx context.Context, folder string) error {
	// mkdir fails if anything with that name exists, so nobody can prepare the folder for us.
	if _, err := m.run(ctx, "mkdir -m 0700 "+folder); err != nil {
		return hinted(fmt.Errorf("make folder %s on the machine: %w", folder, err),
			"set remote_folder to a folder that exists and that the login user may write to")
	}
	return nil
}

func (m machine) upload(ctx context.Context, file string, content []byte) error {
	err := await(ctx, func() error {
		if err := m.comm.Upload(file, bytes.NewReader(content), nil); err != nil {
			return &remoteError{err}
		}
		return nil
	})
	if err != nil {
		return hinted(fmt.Errorf("upload %s (%d bytes) to the machine: %w", file, len(content), err),
			"check that the disk with remote_folder has room, and that the machine accepts uploads as the source block's ssh_file_transfer_method says")
	}
	return nil
}

// removeFolder works even after ctx has ended: Packer cancels it on Ctrl-C, and the machine
// may be kept for inspection.
func (m machine) removeFolder(ctx context.Context, folder string) error {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), cleanupTimeout,
		fmt.Errorf("no answer within %s", cleanupTimeout))
	defer cancel()
	if _, err := m.run(ctx, "rm -rf "+folder); err != nil {
		return fmt.Errorf("remove folder %s from the machine: %w", folder, err)
	}
	return nil
}

// output keeps the end of a command's output.
type output struct {
	mu   sync.Mutex
	kept []byte
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.kept = append(o.kept, p...)
	if extra := len(o.kept) - maxOutput; extra > 0 {
		o.kept = append(o.kept[:0], o.kept[extra:]...)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return readable(string(o.kept))
}

// readable removes what could change a terminal.
func readable(text string) string { return strings.TrimSpace(strings.Map(printable, text)) }

func printable(r rune) rune {
	switch {
	case r == '\r':
		return -1
	case r == '\n' || r == '\t' || r != utf8.RuneError && unicode.IsPrint(r):
		return r
	}
	return '·'
}
