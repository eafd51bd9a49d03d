package agent

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// A machine asks to leave with the keys that are on record, and believes only an answer about
// its own node.
func TestLeave(t *testing.T) {
	node := ec2ref.Instance{Account: testAccount, Region: testRegion, ID: testHost}.NodeID()
	granted := fmt.Sprintf(`{"version":%d,"requestId":"request-1","nodeId":%q}`, protocol.Version, node)
	refused := func(code protocol.Code) string { return fmt.Sprintf(`{"error":{"code":%q,"message":"no"}}`, code) }
	for _, test := range []struct {
		name, answer string
		status       int
		kind         fault.Kind
		message      string // of the error, or empty for none
		hint         string
	}{
		{"granted", granted, 200, 0, "", ""},
		{"out already", refused(protocol.CodeNotEnrolled), 403, 0, "", ""},
		{"ended", refused(protocol.CodeInstanceEnded), 403, 0, "", ""},
		{"a signer without leaves", refused(protocol.CodeMalformed), 400, fault.Refused, "too old", "update the signer"},
		{"an older signer", refused(protocol.CodeUnsupportedVersion), 400, fault.Refused, "too old", "update the signer"},
		{"other keys", refused(protocol.CodeKeyConflict), 409, fault.Refused, "host_key_conflict", "host keys"},
		{"another node", `{"version":2,"requestId":"request-1","nodeId":"other"}`, 200, fault.Failed, "about node \"other\"", "request id"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			if _, err := m.Enroll(t.Context()); err != nil {
				t.Fatal(err)
			}
			before := m.files()
			m.answerInstead = func(w http.ResponseWriter, _ *http.Request, _ int) bool {
				w.WriteHeader(test.status)
				_, _ = w.Write([]byte(test.answer))
				return true
			}
			conf, err := m.sshd.Effective(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			outcome, err := m.Leave(t.Context(), conf)
			if test.message == "" && (err != nil || outcome == "") {
				t.Errorf("%q, %v", outcome, err)
			}
			if test.message != "" {
				machinetest.WantError(t, err, test.kind, test.message, test.hint)
			}
			if asked := m.requests[1:]; len(asked) != 1 || asked[0].Purpose != protocol.PurposeLeave || len(asked[0].HostKeys) != 3 || asked[0].Version != protocol.Version {
				t.Errorf("requests %+v", asked)
			}
			if m.files() != before {
				t.Error("files were changed")
			}
		})
	}
}
