//go:build e2e && linux

package faults

import (
	"strings"
	"testing"
	"time"
)

// A healthy machine gets at most 30 lines a day in its journal for Hallmark, which runs every
// hour: its own, systemd's about it, and sshd's about the connection that looks at the
// certificate. None of them, nor any line before, has a secret.
func TestJournal(t *testing.T) {
	const most, runs, hours = 30, 3, 24
	m := shared.machine
	forgetRequests()
	m.serve(t, 0) // which brings everything in order
	var said []string
	for range runs {
		m.edit(t, "state.json", func(state map[string]any) { // or the run would have nothing to ask
			state["enrolledAt"] = time.Now().UTC().Add(-time.Hour).Truncate(time.Second)
		})
		if r := m.serve(t, 0); r.exit != 0 {
			t.Fatalf("a run ends with %d: %s", r.exit, strings.Join(r.lines, "\n"))
		}
		said = append(said, m.journal(t, func(e entry) bool {
			return e.concerns("hallmark.service") || e.concerns("hallmark-renew.timer") || e.Identifier == "sshd"
		})...)
	}
	t.Logf("%d lines in %d runs:\n%s", len(said), runs, strings.Join(said, "\n"))
	if len(said)*hours > most*runs || len(said) < runs {
		t.Errorf("%d lines in %d runs, want at most %d in %d, and sshd's about each", len(said), runs, most, hours)
	}
	m.checkSecrets(t)
}

// checkSecrets looks in the whole journal for what must not be there.
func (m *instance) checkSecrets(t *testing.T) {
	t.Helper()
	journal := m.sh(t, "journalctl --no-pager --output=export")
	if !strings.Contains(journal, "hallmark") {
		t.Error("the journal has nothing of hallmark's")
	}
	secrets := append(m.Metadata.Secrets(), "PRIVATE KEY")
	if len(secrets) < 4 {
		t.Errorf("only %d secrets to look for", len(secrets))
	}
	for _, secret := range secrets {
		if strings.Contains(journal, secret) {
			t.Errorf("the journal has a secret: %s", secret)
		}
	}
}
