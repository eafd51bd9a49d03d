package sshd

import (
	"context"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/backoff"
)

// Wait repeats a check of an sshd that is reading its configuration again, until the check
// succeeds or the context ends. It returns the last error of the check itself: a check that the
// end of the context cut short says nothing new.
//
// The pauses start short, because sshd listens after some 30 ms. They grow, because OpenSSH 9.8
// and later locks out a source address that connects too often without logging in
// (PerSourcePenalties).
func Wait(ctx context.Context, check func(context.Context) error) error {
	pauses := backoff.Growth{First: 10 * time.Millisecond, Longest: 2 * time.Second}
	var last error
	for failures := 1; ; failures++ {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if last == nil || !hasEnded(ctx) {
			last = err
		}
		if backoff.Wait(ctx, pauses.Limit(failures)) != nil {
			return last
		}
	}
}

// hasEnded reports whether the context has ended. A connection with the same deadline may fail a
// moment before the context's own timer fires.
func hasEnded(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(deadline)
}
