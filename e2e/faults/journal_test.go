//go:build e2e && linux

package faults

import (
	"strings"
	"testing"
)

// Whatever breaks, the journal never gets a secret.
func TestJournalHasNoSecret(t *testing.T) {
	m := shared.machine
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
