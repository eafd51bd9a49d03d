package agent

import (
	"errors"

	"github.com/hallmark-ssh/hallmark/internal/machine/handshake"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// rejectedError says that the signer's answer is not in use. The next request reports this to
// the signer, whose log would otherwise show only granted requests.
type rejectedError struct {
	rejection *protocol.Rejection
	err       error
}

func (e *rejectedError) Error() string { return e.err.Error() }
func (e *rejectedError) Unwrap() error { return e.err }

func reject(code protocol.RejectionCode, requestID string, err error) error {
	return &rejectedError{protocol.NewRejection(code, requestID, err.Error()), err}
}

// rejectionIn returns the rejection that an error carries, or nil.
func rejectionIn(err error) *protocol.Rejection {
	if e, ok := errors.AsType[*rejectedError](err); ok {
		return e.rejection
	}
	return nil
}

// rejectionOf returns what kept certificates from being installed.
func rejectionOf(err error) protocol.RejectionCode {
	switch {
	case errors.Is(err, errNotAccepted):
		return protocol.RejectedBySSHD
	case errors.Is(err, handshake.ErrNotPresented), errors.Is(err, errAnother), errors.Is(err, errFutile):
		return protocol.RejectedNotPresented
	}
	return protocol.RejectedNotInstalled
}

// toReport returns what the next request reports to the signer: why the last answer was not
// used or, if it was, why the certificates in place cannot be used yet.
func toReport(last *failure, in *state.State) *protocol.Rejection {
	switch {
	case last != nil && last.Rejected != nil:
		return last.Rejected
	case in == nil:
		return nil
	case in.Waiting != nil:
		return protocol.NewRejection(protocol.RejectedReloadPending, "", in.Waiting.Reason)
	}
	return in.Rejected
}
