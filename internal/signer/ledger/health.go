package ledger

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// Health is what is known about whether people reach a machine. It is for display only:
// nothing about names, keys or certificates depends on it.
type Health struct {
	// Reported is what the machine last said about itself, empty if it never did.
	Reported string
	// ReportedAt is when the machine said so, by its own clock, in whole seconds.
	ReportedAt time.Time
	// Unreachable says that upkeep could not connect to the node's address the last time
	// that it tried.
	Unreachable bool
}

func (h Health) equal(o Health) bool {
	return h.Reported == o.Reported && h.ReportedAt.Equal(o.ReportedAt) && h.Unreachable == o.Unreachable
}

// HealthReport is what a machine says about itself. The caller has verified that the
// machine said it.
type HealthReport struct {
	State string
	At    time.Time
	// Fingerprint is the SHA-256 fingerprint of the host key that signed the report.
	Fingerprint string
	// Signer is the audience of the signer that received the report.
	Signer string
}

// Reports of the same state, and of another one, closer together than this are not
// recorded: a machine's root user could otherwise keep the record changing, so that
// nobody else's write about the instance succeeds.
const (
	sameHealthPause  = 10 * time.Minute
	otherHealthPause = time.Minute
)

// isEnrolled reports whether the instance has a node.
func (r record) isEnrolled() bool { return !r.retired && !r.left && r.confirmedHostname != "" }

// withReport returns the record with the report, and errUnchanged for an instance that is
// not enrolled with the signer, for a key that is not recorded, and for a report that is older
// than the recorded one or too close to it. After a re-key, the certificate of an old key is
// still valid, but a thief may have the key.
func (r record) withReport(report HealthReport) (record, error) {
	pause := otherHealthPause
	if r.health.Reported == report.State {
		pause = sameHealthPause
	}
	at := report.At.Truncate(time.Second)
	switch {
	case !r.isEnrolled(), r.signer != report.Signer, !slices.Contains(r.keys, report.Fingerprint):
		return record{}, errUnchanged
	case r.health.Reported != "" && at.Before(r.health.ReportedAt.Add(pause)):
		return record{}, errUnchanged
	}
	r.health.Reported, r.health.ReportedAt = report.State, at.UTC()
	return r, nil
}

// withProbe returns the record with the result of a probe, and errUnchanged if it is
// recorded already or the instance is not enrolled.
func (r record) withProbe(unreachable bool) (record, error) {
	if !r.isEnrolled() || r.health.Unreachable == unreachable {
		return record{}, errUnchanged
	}
	r.health.Unreachable = unreachable
	return r, nil
}

// ReportHealth records what a machine says about itself, with at most one write, and reports
// whether it wrote. It writes nothing for an instance that is not enrolled with the report's
// signer, nothing for a report by a key that is not recorded, and nothing for one that is older than
// the recorded one or follows it within minutes.
func (d *DynamoDB) ReportHealth(ctx context.Context, i ec2ref.Instance, report HealthReport) (bool, error) {
	return written(d.amend(ctx, "record the health of", i, func(r record) (record, error) { return r.withReport(report) }))
}

// NoteProbe records whether upkeep could connect to the machine, if that has changed, and
// reports whether it wrote.
func (d *DynamoDB) NoteProbe(ctx context.Context, i ec2ref.Instance, unreachable bool) (bool, error) {
	return written(d.amend(ctx, "record the probe of", i, func(r record) (record, error) { return r.withProbe(unreachable) }))
}

func written(_ record, err error) (bool, error) {
	if errors.Is(err, errUnchanged) {
		return false, nil
	}
	return err == nil, err
}

// ReportHealth is DynamoDB.ReportHealth.
func (m *Memory) ReportHealth(ctx context.Context, i ec2ref.Instance, report HealthReport) (bool, error) {
	return m.amended(ctx, "record the health of", i, func(r record) (record, error) { return r.withReport(report) })
}

// NoteProbe is DynamoDB.NoteProbe.
func (m *Memory) NoteProbe(ctx context.Context, i ec2ref.Instance, unreachable bool) (bool, error) {
	return m.amended(ctx, "record the probe of", i, func(r record) (record, error) { return r.withProbe(unreachable) })
}

// amended is amend, and reports whether it wrote.
func (m *Memory) amended(ctx context.Context, doing string, i ec2ref.Instance, decide func(record) (record, error)) (bool, error) {
	wrote := false
	_, err := m.amend(ctx, doing, i, func(r record) (record, error) {
		next, err := decide(r)
		wrote = err == nil
		return next, err
	})
	return wrote && err == nil, err
}
