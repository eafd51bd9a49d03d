package node

import (
	"maps"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

// HealthLabel shows in "tsh ls" whether people reach the machine. It is for display: the
// machine itself reports most of it, so nobody should grant access on it.
const HealthLabel = "hallmark/health"

// HealthSilent is the label's value for a machine that used to report its health and has
// stopped. The other values are those of protocol.HealthState.
const HealthSilent = "silent"

// SilentAfter is how long after its last report, or its last enrollment or renewal, a machine
// counts as silent. Machines report every hour, so a healthy one would have to lose six reports
// in a row.
const SilentAfter = 6*time.Hour + 30*time.Minute

// Health returns the value of HealthLabel, and "" for a machine that never reported: an
// older release does not. A machine that was stopped enrolls when it starts, and reports up to
// an hour later: in between it is not silent.
func Health(r ledger.Record, now time.Time) string {
	h, heard := r.Health, r.Health.ReportedAt
	if r.Renewed.After(heard) {
		heard = r.Renewed
	}
	switch {
	case h.Unreachable:
		return string(protocol.HealthUnreachable)
	case h.Reported == "":
		return ""
	case now.Sub(heard) > SilentAfter:
		return HealthSilent
	}
	return h.Reported
}

// WithHealth returns the node with HealthLabel.
func (n Node) WithHealth(r ledger.Record, now time.Time) Node {
	health := Health(r, now)
	if health == "" {
		return n
	}
	labels := make(map[string]string, len(n.Labels)+1)
	maps.Copy(labels, n.Labels)
	labels[HealthLabel] = health
	n.Labels = labels
	return n
}
