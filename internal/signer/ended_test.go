package signer

import (
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// Whoever ended an instance by hand is named when it asks again.
func TestAuditLineNamesTheOperatorWhoEndedAnInstance(t *testing.T) {
	w := newWorld(t)
	const by = "arn:aws:sts::111122223333:assumed-role/Operator/ann"
	if err := w.ledger.EndBy(t.Context(), inTestAccount(testInstance), by); err != nil {
		t.Fatal(err)
	}
	if _, _, refused := w.enroll(newAttempt(t, w.now)); refused.Code != protocol.CodeInstanceEnded {
		t.Fatalf("code %q, want %q", refused.Code, protocol.CodeInstanceEnded)
	}
	if line := parse(t, w.log.Bytes()); !strings.Contains(line["error"].(string), by) {
		t.Errorf("error %q does not name %s", line["error"], by)
	}
}
