package ledgertest

import (
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

func healthTests() map[string]func(*testing.T, *fixture) {
	return map[string]func(*testing.T, *fixture){
		"a report is recorded once":           testHealthReport,
		"a report of an unknown instance":     testHealthOfUnknown,
		"a report to another signer":          testHealthToAnotherSigner,
		"a report of a retired instance":      testHealthOfRetired,
		"a probe is recorded when it changes": testProbe,
		"an enrollment keeps the health":      testHealthSurvivesRenewal,
		"an instance that left has no health": testHealthAfterLeave,
		"a report by a key of before":         testHealthByAnOldKey,
	}
}

const audience = "hallmark.example.com"

// enrollWith enrolls instance 1 with a signer.
func (f *fixture) enrollWith(signer string) {
	f.t.Helper()
	c := f.claimOf(1, "web", "a")
	c.Signer = signer
	g := f.make(nil, c)
	if err := f.Confirm(f.t.Context(), c, g, f.now); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) report(state string, at time.Time, signer string) bool {
	f.t.Helper()
	wrote, err := f.ReportHealth(f.t.Context(), instance(1), ledger.HealthReport{State: state, At: at, Fingerprint: "a", Signer: signer})
	if err != nil {
		f.t.Fatal(err)
	}
	return wrote
}

func testHealthReport(t *testing.T, f *fixture) {
	f.enrollWith(audience)
	for _, row := range []struct {
		state string
		after time.Duration // the first report
		want  bool
	}{
		{"ok", 0, true},
		{"ok", 0, false},
		{"ok", -time.Hour, false},
		{"ok", 9 * time.Minute, false},
		{"certificate", 30 * time.Second, false},
		{"certificate", time.Minute, true},
		{"ok", 90 * time.Second, false},
		{"ok", time.Hour + time.Second/2, true},
		{"ok", 2 * time.Hour, true},
	} {
		at := f.now.Add(row.after)
		before := f.lookup(1)
		wrote, after := f.report(row.state, at, audience), f.lookup(1)
		if wrote != row.want || wrote != (after.Version == before.Version+1) {
			t.Errorf("%s after %s: wrote %v, version %d, then %d", row.state, row.after, wrote, before.Version, after.Version)
		}
		if want := (ledger.Health{Reported: row.state, ReportedAt: at.Truncate(time.Second)}); wrote && after.Health != want {
			t.Errorf("health %+v, want %+v", after.Health, want)
		}
	}
}

func testHealthOfUnknown(t *testing.T, f *fixture) {
	if f.report("ok", f.now, audience) {
		t.Error("it was recorded")
	}
	f.claim(nil, 1, "web", "a") // and never confirmed
	if f.report("ok", f.now, "") {
		t.Error("it was recorded before the first enrollment")
	}
}

func testHealthToAnotherSigner(t *testing.T, f *fixture) {
	f.enrollWith(audience)
	if f.report("ok", f.now, "other.example.com") {
		t.Error("it was recorded")
	}
}

func testHealthOfRetired(t *testing.T, f *fixture) {
	f.enrollWith(audience)
	if err := f.Retire(t.Context(), instance(1)); err != nil {
		t.Fatal(err)
	}
	if f.report("ok", f.now, audience) {
		t.Error("the report was recorded")
	}
	if wrote, err := f.NoteProbe(t.Context(), instance(1), true); wrote || err != nil {
		t.Errorf("the probe was recorded: %v, %v", wrote, err)
	}
}

func testProbe(t *testing.T, f *fixture) {
	f.enrollWith(audience)
	f.report("ok", f.now, audience)
	for _, row := range []struct{ unreachable, want bool }{{false, false}, {true, true}, {true, false}, {false, true}} {
		wrote, err := f.NoteProbe(t.Context(), instance(1), row.unreachable)
		if err != nil || wrote != row.want {
			t.Errorf("unreachable %v: wrote %v, error %v, want %v", row.unreachable, wrote, err, row.want)
		}
		want := ledger.Health{Reported: "ok", ReportedAt: f.now, Unreachable: row.unreachable}
		if got := f.lookup(1).Health; got != want {
			t.Errorf("health %+v, want %+v", got, want)
		}
	}
}

func testHealthSurvivesRenewal(t *testing.T, f *fixture) {
	f.enrollWith(audience)
	f.report("ok", f.now, audience)
	if _, err := f.NoteProbe(t.Context(), instance(1), true); err != nil {
		t.Fatal(err)
	}
	want := f.lookup(1).Health
	f.enrollWith(audience)
	if got := f.lookup(1).Health; got != want || want.Reported != "ok" {
		t.Errorf("health %+v, want %+v", got, want)
	}
}

// testHealthAfterLeave checks that what was known about a node that is gone does not mark the
// next one.
func testHealthAfterLeave(t *testing.T, f *fixture) {
	f.enrollWith(audience)
	f.report("certificate", f.now, audience)
	if _, err := f.NoteProbe(t.Context(), instance(1), true); err != nil {
		t.Fatal(err)
	}
	f.leave(nil, 1, "a")
	f.now = f.now.Add(time.Hour)
	if f.report("ok", f.now, audience) {
		t.Error("a report was recorded after the instance left")
	}
	if wrote, err := f.NoteProbe(t.Context(), instance(1), true); wrote || err != nil {
		t.Errorf("a probe was recorded after the instance left: %v, %v", wrote, err)
	}
	f.enrollWith(audience)
	if got := f.lookup(1).Health; got != (ledger.Health{}) {
		t.Errorf("health %+v of an instance that enrolled again", got)
	}
	if !f.report("ok", f.now, audience) {
		t.Error("the report was not recorded")
	}
}

// testHealthByAnOldKey checks that the keys of before a re-key report nothing, although their
// certificates are still valid.
func testHealthByAnOldKey(t *testing.T, f *fixture) {
	f.enrollWith(audience)
	f.permit(nil, 1, "new")
	f.enroll(1, "web", "new")
	if f.report("unreachable", f.now, audience) {
		t.Error("it was recorded")
	}
	wrote, err := f.ReportHealth(t.Context(), instance(1), ledger.HealthReport{State: "ok", At: f.now, Fingerprint: "new", Signer: audience})
	if !wrote || err != nil {
		t.Errorf("the new key's report: %v, %v", wrote, err)
	}
}
