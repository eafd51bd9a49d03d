package signer

import (
	"log/slog"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/emf"
)

// metrics returns the members that make the line a metric record. Codes are a
// dimension of one metric alone.
func (a *audit) metrics(end time.Time, status int, err error) []slog.Attr {
	granted := err == nil
	again := a.facts != nil && a.facts.Enrolled
	bySigner := emf.By("signer")
	bySigner.Happened("enrollments", granted && !again)
	bySigner.Happened("renewals", granted && again)
	bySigner.Happened("refusals", !granted && status < 500)
	bySigner.Happened("failures", !granted && status >= 500)
	bySigner.Happened("key_conflicts", isAlarm(err))
	bySigner.Milliseconds("total_ms", end.Sub(a.start))
	byCode := emf.By("signer", "code")
	byCode.Count("requests", 1)
	return append([]slog.Attr{slog.String("signer", a.signer)}, emf.Attrs(end, bySigner, byCode)...)
}
