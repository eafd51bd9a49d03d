package enroll

import (
	"context"
	"log/slog"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

// Refusals keeps the latest refused request of each instance, for reports. Package ledger
// implements it.
type Refusals interface {
	NoteRefusal(ctx context.Context, i ec2ref.Instance, r ledger.Refusal) error
}

// noteTimeout bounds the note of a refusal, which the machine waits for.
const noteTimeout = time.Second

// noteRefusal notes why an instance was refused. A caller that has not proved its identity
// causes no write: anyone could fill the table, and make a healthy machine look refused. The
// limit on proved requests bounds the writes; a request beyond it is not noted. A note that
// fails changes nothing for the caller.
func (s *Signer) noteRefusal(ctx context.Context, a *audit, status int, err error) {
	if s.Refusals == nil || err == nil || !a.proved || isFailure(status, err) || codeOf(err) == protocol.CodeRateLimited {
		return
	}
	if a.leaves() && codeOf(err) == protocol.CodeNotEnrolled {
		return // there was nothing to leave, and the machine has what it asked for
	}
	ctx, cancel := context.WithTimeout(ctx, noteTimeout)
	defer cancel()
	r := ledger.Refusal{At: s.now(), Code: a.code(err), Reason: err.Error()}
	if failed := s.Refusals.NoteRefusal(ctx, a.document.Instance, r); failed != nil {
		s.Log.WarnContext(ctx, "refusal not noted; hallmark-signer report does not show it",
			slog.String("request_id", a.request.ID), slog.Any("", a.document.Instance), slog.Any("error", failed))
	}
}
