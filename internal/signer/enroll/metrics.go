package enroll

import (
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/emf"
)

// isFailure reports whether a request failed because of a fault on the signer's side.
func isFailure(status int, err error) bool { return status >= 500 || missing(err) != "" }

// metrics returns the attributes that make the line a metric record. Codes are a
// dimension of one metric only. Steps that did not run have no time.
func (a *audit) metrics(end time.Time, status int, err error) []slog.Attr {
	granted, leaves := err == nil, a.leaves()
	again := a.facts != nil && a.facts.Enrolled
	bySigner := emf.By("signer")
	bySigner.Happened("enrollments", granted && !leaves && !again)
	bySigner.Happened("renewals", granted && !leaves && again)
	bySigner.Happened("leaves", granted && leaves)
	failed := isFailure(status, err)
	bySigner.Happened("refusals", !granted && !failed)
	bySigner.Happened("failures", failed)
	bySigner.Happened("key_conflicts", isAlarm(err))
	bySigner.Happened("machine_rejections", a.rejection() != nil)
	bySigner.Milliseconds("total_ms", end.Sub(a.start))
	for _, step := range slices.Sorted(maps.Keys(a.steps)) {
		bySigner.Milliseconds(step+"_ms", a.steps[step])
	}
	for _, s := range services() {
		bySigner.Happened(string(s)+"_errors", missing(err) == s)
	}
	byCode := emf.By("signer", "code")
	byCode.Count("requests", 1)
	return append([]slog.Attr{slog.String("signer", a.signer)}, emf.Attrs(end, bySigner, byCode)...)
}
