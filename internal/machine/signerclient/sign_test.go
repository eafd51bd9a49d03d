package signerclient

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/backoff"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// A wrong clock makes AWS refuse a signed request in front of the signer. That is worth
// another attempt; a missing permission is not.
func TestSignedRequestsThatAWSRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		errorType string
		kind      fault.Kind
		message   string
	}{
		"a wrong clock":       {"InvalidSignatureException", fault.Temporary, "InvalidSignatureException"},
		"expired credentials": {"ExpiredTokenException:http://internal.amazon.com/", fault.Temporary, "ExpiredTokenException"},
		"no permission":       {"AccessDeniedException", fault.Refused, "403"},
		"no reason":           {"", fault.Refused, "403"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X-Amzn-Errortype", test.errorType)
				w.WriteHeader(http.StatusForbidden)
			}))
			t.Cleanup(server.Close)
			c, err := New(config.Config{SignerURL: server.URL, SignerAuth: config.AuthIAM}, backoff.Policy{}, webProfile{}, time.Now)
			if err != nil {
				t.Fatal(err)
			}
			c.http = server.Client()
			_, err = c.post(t.Context(), "us-west-2", protocol.Version, []byte(`{}`))
			if fault.KindOf(err) != test.kind || !strings.Contains(err.Error(), test.message) {
				t.Errorf("got %v of kind %v, want %q of kind %v", err, fault.KindOf(err), test.message, test.kind)
			}
		})
	}
}
