package teleport

import (
	"context"
	"errors"
	"fmt"

	"github.com/gravitational/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var (
	// ErrNotFound says that the cluster does not have what was asked for, or does
	// not show it to this login.
	ErrNotFound = errors.New("not found in Teleport")

	// ErrUnavailable says that the cluster did not answer, or was too busy to: the
	// same call may work later.
	ErrUnavailable = errors.New("no answer from Teleport")

	// ErrDenied says that the login is not good, or not good for this: it stays so
	// until somebody changes it.
	ErrDenied = errors.New("refused by Teleport")
)

// failed adds what was being done to an error of the api library, and the kind of
// error it is, if callers can do something about that kind.
func failed(doing string, err error) error {
	if kind := kindOf(err); kind != nil {
		return fmt.Errorf("%s: %w: %w", doing, kind, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func kindOf(err error) error {
	switch {
	case trace.IsNotFound(err):
		return ErrNotFound
	case trace.IsAccessDenied(err), status.Code(err) == codes.Unauthenticated:
		return ErrDenied
	case trace.IsConnectionProblem(err), trace.IsLimitExceeded(err),
		errors.Is(err, context.DeadlineExceeded), status.Code(err) == codes.DeadlineExceeded:
		return ErrUnavailable
	}
	return nil
}
