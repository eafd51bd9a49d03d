package enroll

import (
	"context"
	"errors"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// leave ends the enrollment of a machine that asks for it. The record says so first, then
// the node is deleted: an enrollment in progress cannot be confirmed any more, and the sweep
// deletes the node if this process dies in between. The record keeps keys and names, so the
// machine can enroll again with the same keys, and nobody else gets its names.
//
// Neither EC2 nor the policy is asked: a machine that the policy no longer admits may leave.
func (s *Signer) leave(ctx context.Context, c caller, a *audit) (*protocol.LeaveResponse, error) {
	record, err := s.recordLeave(ctx, c, a)
	if err != nil {
		return nil, err
	}
	cluster, err := s.connect(ctx, a)
	if err != nil {
		return nil, err
	}
	err = a.step(ctx, "teleport", teleportTimeout, func(ctx context.Context) error {
		return s.settleNode(ctx, cluster, record, a)
	})
	switch {
	case errors.Is(err, errNotDeleted):
		return nil, unanswered(serviceTeleport, err)
	case err == nil: // the machine has enrolled again meanwhile
	case errors.Is(err, ledger.ErrLeft) && !errors.Is(err, errMoving):
	case isFinal(err) && !errors.Is(err, ledger.ErrLeft):
		return nil, err
	default:
		return nil, refuse(protocol.CodeUpstream, err)
	}
	return &protocol.LeaveResponse{Version: c.version, RequestID: a.request.ID, NodeID: c.document.Instance.NodeID()}, nil
}

// recordLeave makes the record say that the instance left.
func (s *Signer) recordLeave(ctx context.Context, c caller, a *audit) (ledger.Record, error) {
	l := ledger.Leave{
		Instance:     c.document.Instance,
		Fingerprints: sshkey.Fingerprints(c.keys),
		Signer:       s.Audience,
		IssuedAt:     c.issuedAt,
	}
	var record ledger.Record
	err := a.step(ctx, "record", ledgerTimeout, func(ctx context.Context) (err error) {
		record, err = s.Ledger.Leave(ctx, l, s.now())
		return err
	})
	switch {
	case errors.Is(err, ledger.ErrUnclaimed):
		return record, refuse(protocol.CodeNotEnrolled, err)
	case errors.Is(err, ledger.ErrOldLeave):
		return record, refuse(protocol.CodeCallerProofInvalid, err).withMessage("the instance has enrolled again since it made this request")
	}
	return record, refuseLedger(err)
}
