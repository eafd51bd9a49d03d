package agent

import (
	"testing"
	"time"
)

// /run survives hibernation, in which EC2 stops and starts the instance. Its public address
// changes.
func TestHibernationIsAStopAndAStart(t *testing.T) {
	m := enrolled(t)
	var slept time.Duration
	m.suspended = func() time.Duration { return slept }
	if o := m.renew(); o.Reason != "" {
		t.Fatalf("reason %q", o.Reason)
	}
	m.imds.pages[identityPage] = `{"accountId":"` + testAccount + `","region":"` + testRegion + `","instanceId":"` + testHost + `","pendingTime":"2026-03-08T12:00:00Z"}`
	if o := m.renew(); o.Reason != "" {
		t.Errorf("without hibernation the metadata service was asked again: %q", o.Reason)
	}
	slept = 8 * time.Hour
	if o := m.renew(); o.Reason != "the instance was stopped and started" {
		t.Errorf("reason %q after hibernation", o.Reason)
	}
	if o := m.renew(); o.Reason != "" {
		t.Errorf("reason %q in the run after that", o.Reason)
	}
}
