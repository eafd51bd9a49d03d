// Package fault defines errors that say what kind they are and how to fix them.
package fault

import (
	"errors"
	"fmt"
	"syscall"
	"time"
)

// Kind says who can fix an error, and when.
type Kind int

// The kinds of errors.
const (
	Failed        Kind = iota // something on this machine is wrong
	Misconfigured             // the configuration is missing or wrong
	Refused                   // the signer says no, and will say so again
	Temporary                 // something did not answer; try again later
)

// Error is an error with its kind, and a hint on how to fix it.
type Error struct {
	Kind Kind
	Hint string // what to do, one sentence, or empty
	Err  error

	After time.Duration // the wait that the signer asked for
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// FileHint returns what to do about a file that cannot be read or replaced.
func FileHint(err error) string {
	if errors.Is(err, syscall.EISDIR) {
		return "a folder is in this file's place: move it away, then run hallmark again"
	}
	return "check that the disk is neither full nor read-only, then run hallmark again"
}

// Newf returns an Error with a formatted message.
func Newf(kind Kind, hint, format string, args ...any) error {
	return &Error{Kind: kind, Hint: hint, Err: fmt.Errorf(format, args...)}
}

// KindOf returns the kind of an error, and Failed for one without.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Failed
}
