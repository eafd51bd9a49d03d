package command

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// Status fails once sshd presents no certificate that is still good, and says why new ones
// wait.
func TestStatusOfWaitingCertificates(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Second)
	fresh := []state.Certificate{{Path: "/k-cert.pub", ValidBefore: now.Add(30 * 24 * time.Hour)}}
	waiting := func(end time.Time) *state.Waiting {
		return &state.Waiting{Since: now.Add(-time.Hour), AccessEnds: end, Reason: "permittty changed"}
	}
	for _, test := range []struct {
		name         string
		state        state.State
		line, reason string
	}{
		{"in use", state.State{Certificates: fresh, Presented: true}, "", ""},
		{"ended", state.State{Certificates: []state.Certificate{{ValidBefore: now}}}, "", "a certificate expired"},
		{"waiting", state.State{Certificates: fresh, Waiting: waiting(now.Add(time.Hour))}, "permittty changed", ""},
		{"waiting, the old one ended", state.State{Certificates: fresh, Waiting: waiting(now.Add(-time.Second))}, "permittty changed", "access through Teleport ended"},
		{"waiting, none in use", state.State{Certificates: fresh, Waiting: waiting(time.Time{})}, "permittty changed", "sshd presents no certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := printState(&out, &test.state, false); err != nil {
				t.Fatal(err)
			}
			if got := strings.Contains(out.String(), "waiting"); got != (test.line != "") || !strings.Contains(out.String(), test.line) {
				t.Errorf("printed %s", out.String())
			}
			err := inUse(&test.state, now)
			if (err == nil) != (test.reason == "") || err != nil && !strings.Contains(err.Error(), test.reason) {
				t.Errorf("%v, want %q", err, test.reason)
			}
		})
	}
}
