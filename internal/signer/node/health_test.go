package node

import (
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

func TestHealth(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for name, row := range map[string]struct {
		health  ledger.Health
		renewed time.Time
		want    string
	}{
		"never reported":           {ledger.Health{}, time.Time{}, ""},
		"well":                     {ledger.Health{Reported: "ok", ReportedAt: ago(time.Hour)}, time.Time{}, "ok"},
		"other certificates":       {ledger.Health{Reported: "certificate", ReportedAt: ago(time.Hour)}, time.Time{}, "certificate"},
		"the last moment":          {ledger.Health{Reported: "ok", ReportedAt: ago(SilentAfter)}, time.Time{}, "ok"},
		"too long ago":             {ledger.Health{Reported: "ok", ReportedAt: ago(SilentAfter + time.Second)}, time.Time{}, "silent"},
		"the machine's clock":      {ledger.Health{Reported: "ok", ReportedAt: now.Add(5 * time.Minute)}, time.Time{}, "ok"},
		"well, but cannot be seen": {ledger.Health{Reported: "ok", ReportedAt: now, Unreachable: true}, time.Time{}, "unreachable"},
		"silent and unreachable":   {ledger.Health{Reported: "ok", ReportedAt: ago(24 * time.Hour), Unreachable: true}, time.Time{}, "unreachable"},
		"started a moment ago":     {ledger.Health{Reported: "ok", ReportedAt: ago(24 * time.Hour)}, now, "ok"},
		"started, and still ill":   {ledger.Health{Reported: "certificate", ReportedAt: ago(24 * time.Hour)}, ago(time.Hour), "certificate"},
		"started, and silent":      {ledger.Health{Reported: "ok", ReportedAt: ago(24 * time.Hour)}, ago(SilentAfter + time.Second), "silent"},
		"enrolled, never reported": {ledger.Health{}, now, ""},
		"never reported, not seen": {ledger.Health{Unreachable: true}, time.Time{}, "unreachable"},
	} {
		if got := Health(ledger.Record{Health: row.health, Renewed: row.renewed}, now); got != row.want {
			t.Errorf("%s: %q, want %q", name, got, row.want)
		}
	}
}

func TestWithHealth(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	before := Node{ID: "a", Labels: map[string]string{"env": "prod"}}
	after := before.WithHealth(ledger.Record{Health: ledger.Health{Reported: "ok", ReportedAt: now}}, now)
	if after.Labels[HealthLabel] != "ok" || after.Labels["env"] != "prod" || after.ID != "a" {
		t.Errorf("node %+v", after)
	}
	if len(before.Labels) != 1 {
		t.Errorf("the labels of the policy changed: %v", before.Labels)
	}
	if same := before.WithHealth(ledger.Record{}, now); len(same.Labels) != 1 {
		t.Errorf("a machine that never reported has %v", same.Labels)
	}
	if !IsReserved(HealthLabel) {
		t.Error("a tag or a policy may set the label")
	}
}
