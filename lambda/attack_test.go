package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/events"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/enroll"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry/entrytest"
)

// Each row is an event that somebody sends to the URL, or by invoking the function directly.
// The signer behind the handler is a real one that can reach nothing.
func TestAttackEvents(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*events.LambdaFunctionURLRequest)
		code   protocol.Code
	}{
		"from another network": {func(e *events.LambdaFunctionURLRequest) {
			e.RequestContext.HTTP.SourceIP = "198.51.100.66"
		}, protocol.CodeNotAllowed},
		"forged X-Forwarded-For": {func(e *events.LambdaFunctionURLRequest) {
			e.RequestContext.HTTP.SourceIP = "198.51.100.66"
			for _, header := range []string{"x-forwarded-for", "forwarded", "x-real-ip", "true-client-ip"} {
				e.Headers[header] = "192.0.2.1"
			}
		}, protocol.CodeNotAllowed},
		"a function URL's event as the body": {func(e *events.LambdaFunctionURLRequest) {
			e.Body = string(encode(t, entrytest.URLEvent(newRequest("{}"))))
		}, protocol.CodeMalformed},
		"a termination event as the body": {func(e *events.LambdaFunctionURLRequest) {
			e.Body = `{"version":"0","detail-type":"EC2 Instance State-change Notification","source":"aws.ec2",` +
				`"account":"111122223333","detail":{"instance-id":"` + testInstance + `","state":"terminated"}}`
		}, protocol.CodeMalformed},
		"a body in base64 that is not": {func(e *events.LambdaFunctionURLRequest) {
			e.Body, e.IsBase64Encoded = "e30*", true
		}, protocol.CodeMalformed},
		"a body of 6 MB": {func(e *events.LambdaFunctionURLRequest) {
			e.Body = strings.Repeat("a", 6<<20)
		}, protocol.CodeTooLarge},
		"the method in another case": {func(e *events.LambdaFunctionURLRequest) {
			e.RequestContext.HTTP.Method = "post"
		}, protocol.CodeMethodNotAllowed},
		// Anyone who may invoke the function can write all of this, which is why the
		// permission is bound to the URL. They still have no evidence.
		"forged direct invocation, with an IAM caller": {func(e *events.LambdaFunctionURLRequest) {
			e.RequestContext.Authorizer = &events.LambdaFunctionURLRequestContextAuthorizerDescription{
				IAM: &events.LambdaFunctionURLRequestContextAuthorizerIAMDescription{
					AccountID: "111122223333", UserARN: "arn:aws:sts::111122223333:assumed-role/web/" + testInstance,
				},
			}
		}, protocol.CodeMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			log := new(bytes.Buffer)
			keyring, err := identity.Regions()
			if err != nil {
				t.Fatal(err)
			}
			s := &enroll.Signer{
				Audience: "hallmark.example.com", Accounts: []ec2ref.Account{"111122223333"}, Regions: []ec2ref.Region{"us-west-2"},
				Sources: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Documents: keyring,
				Log: slog.New(slog.NewJSONHandler(log, nil)), Now: time.Now,
			}
			e := entrytest.URLEvent(newRequest("{}"))
			test.change(&e)
			answer := invoke(t.Context(), t, handler{entry.URL, s.Enroll, s.Log}, encode(t, e))
			var refusal protocol.ErrorResponse
			if err := json.Unmarshal(answer.Body, &refusal); err != nil {
				t.Fatal(err)
			}
			if refusal.Error.Code != test.code || answer.Status == http.StatusOK {
				t.Errorf("answer %+v, want %q", answer, test.code)
			}
			if strings.Contains(log.String(), "terminated") {
				t.Errorf("the log repeats the body: %s", log)
			}
		})
	}
}
