package enroll

import (
	"net/http"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// If a retired instance asks again, the line names the person who retired it.
func TestAuditLineNamesTheOperatorWhoEndedAnInstance(t *testing.T) {
	w := newWorld(t)
	const by = "arn:aws:sts::111122223333:assumed-role/Operator/ann"
	if err := w.ledger.RetireBy(t.Context(), inTestAccount(testInstance), by); err != nil {
		t.Fatal(err)
	}
	if _, _, refused := w.enroll(newAttempt(t, w.now)); refused.Code != protocol.CodeInstanceEnded {
		t.Fatalf("code %q, want %q", refused.Code, protocol.CodeInstanceEnded)
	}
	if line := parse(t, w.log.Bytes()); !strings.Contains(line["error"].(string), by) {
		t.Errorf("error %q does not name %s", line["error"], by)
	}
}

// If a name was taken from an instance that EC2 no longer has, the line names that instance.
func TestAuditLineNamesWhatWasReleased(t *testing.T) {
	w := newWorld(t)
	a := newAttempt(t, w.now)
	hostnameTag("a")(w, a)
	w.claimFor(inTestAccount(otherInstance), "a", "SHA256:other", w.now.Add(-longExpired))
	if status, got, refused := w.enroll(a); status != http.StatusOK || got.Node.Hostname != "a" {
		t.Fatalf("%+v as %q", refused, got.Node.Hostname)
	}
	line := parse(t, w.log.Bytes())
	if !equalJSON(line["released"], map[string]string{"a": otherInstance}) || line["held_by_others"] != nil {
		t.Errorf("released %v, held by others %v", line["released"], line["held_by_others"])
	}
}
