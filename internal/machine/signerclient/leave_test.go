package signerclient

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/backoff"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// A request to leave is never repeated in an earlier version of the protocol, where it would
// ask for an enrollment.
func TestLeave(t *testing.T) {
	for _, test := range []struct {
		name, body string
		status     int
		kind       fault.Kind
		code       protocol.Code
		message    string // of the error, or empty for none
	}{
		{"granted", `{"version":2,"requestId":"r","nodeId":"n","more":1}`, 200, 0, "", ""},
		{"an old signer", `{"error":{"code":"unsupported_version","message":"no","supportedVersions":[1]}}`, 400, fault.Refused, protocol.CodeUnsupportedVersion, "protocol version 2"},
		{"a signer without leaves", `{"error":{"code":"malformed","message":"no"}}`, 400, fault.Refused, protocol.CodeMalformed, "malformed"},
		{"never enrolled", `{"error":{"code":"not_enrolled","message":"no"}}`, 403, fault.Refused, protocol.CodeNotEnrolled, "not_enrolled"},
		{"another version", `{"version":1,"requestId":"r","nodeId":"n"}`, 200, fault.Failed, "", "protocol version 1"},
		{"junk", `[]`, 200, fault.Failed, "", "not a valid Hallmark response"},
		{"too long", `{"version":2,"requestId":"` + strings.Repeat("x", protocol.MaxResponseBytes) + `"}`, 200, fault.Failed, "", "more than"},
	} {
		t.Run(test.name, func(t *testing.T) {
			asked := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked++
				w.WriteHeader(test.status)
				_, _ = w.Write([]byte(test.body))
			}))
			defer server.Close()
			c := &Client{url: server.URL, http: server.Client(), retry: backoff.Policy{Now: time.Now, Log: t.Logf}, Attempt: time.Minute, now: time.Now}
			var versions []int
			answer, err := c.Leave(t.Context(), "us-west-2", func(_ context.Context, version int) ([]byte, error) {
				versions = append(versions, version)
				return []byte("{}"), nil
			})
			if asked != 1 || len(versions) != 1 || versions[0] != protocol.Version {
				t.Errorf("asked %d times, in versions %v", asked, versions)
			}
			if test.message == "" {
				if err != nil || answer.NodeID != "n" {
					t.Errorf("%+v, %v", answer, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.message) || fault.KindOf(err) != test.kind || CodeOf(err) != test.code {
				t.Errorf("error %v of kind %d, code %q", err, fault.KindOf(err), CodeOf(err))
			}
		})
	}
}
