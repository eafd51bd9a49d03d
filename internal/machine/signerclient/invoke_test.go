package signerclient

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/hallmark-ssh/hallmark/internal/backoff"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

const testFunction = "arn:aws:lambda:us-west-2:111122223333:function:hallmark-enroll"

type webProfile struct{}

func (webProfile) ProfileCredentials(context.Context) (identity.Credentials, error) {
	return identity.Credentials{AccessKeyID: "ASIAPROFILE", SecretAccessKey: "profile-secret", SessionToken: "profile-token"}, nil
}

// fakeLambda checks an invocation as Lambda does, and answers it.
type fakeLambda struct {
	t      *testing.T
	got    protocol.Invocation
	status int
	header http.Header
	answer string
}

func (f *fakeLambda) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		f.t.Error(err)
	}
	if want := "/2015-03-31/functions/" + testFunction + "/invocations"; r.Method != http.MethodPost || r.URL.Path != want {
		f.t.Errorf("%s %s, want POST %s", r.Method, r.URL.Path, want)
	}
	if got := r.Header.Get("X-Amz-Invocation-Type"); got != "RequestResponse" {
		f.t.Errorf("invocation type %q", got)
	}
	f.checkSignature(r, body)
	f.got = protocol.Invocation{}
	if err := json.Unmarshal(body, &f.got); err != nil {
		f.t.Error(err)
	}
	for name, values := range f.header {
		w.Header()[name] = values
	}
	w.WriteHeader(f.status)
	_, _ = io.WriteString(w, f.answer)
}

// checkSignature signs the request again with the secret that AWS knows.
func (f *fakeLambda) checkSignature(r *http.Request, body []byte) {
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil {
		f.t.Error(err)
		return
	}
	again, err := http.NewRequestWithContext(r.Context(), r.Method, "https://"+r.Host+r.URL.EscapedPath(), bytes.NewReader(body))
	if err != nil {
		f.t.Error(err)
		return
	}
	for _, name := range []string{"Content-Type", "X-Amz-Invocation-Type"} {
		again.Header.Set(name, r.Header.Get(name))
	}
	digest := sha256.Sum256(body)
	creds := aws.Credentials{AccessKeyID: "ASIAPROFILE", SecretAccessKey: "profile-secret", SessionToken: "profile-token"}
	if err := v4.NewSigner().SignHTTP(r.Context(), creds, again, hex.EncodeToString(digest[:]), "lambda", "us-west-2", at); err != nil {
		f.t.Error(err)
	}
	if got, want := r.Header.Get("Authorization"), again.Header.Get("Authorization"); got != want {
		f.t.Errorf("Authorization\n%s\nwant\n%s", got, want)
	}
}

// invoking returns a client that invokes a function of the fake.
func invoking(t *testing.T, f *fakeLambda) *Client {
	t.Helper()
	f.t = t
	server := httptest.NewTLSServer(f)
	t.Cleanup(server.Close)
	c, err := New(config.Config{SignerURL: server.URL + "/", SignerFunction: testFunction, Audience: "hallmark.example.com"},
		backoff.Policy{}, webProfile{}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	c.http = server.Client()
	return c
}

func answered(t *testing.T, a protocol.InvocationAnswer) string {
	t.Helper()
	data, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestInvoke(t *testing.T) {
	f := &fakeLambda{status: http.StatusOK, answer: answered(t, protocol.InvocationAnswer{Status: http.StatusOK, Body: `{"version":2}`})}
	c := invoking(t, f)
	answer, err := c.post(t.Context(), "eu-west-1", protocol.Version, []byte(`{"payload":"e30="}`))
	if err != nil || answer.Version != 2 {
		t.Fatalf("answer %+v, error %v", answer, err)
	}
	if want := (protocol.Invocation{Hallmark: 1, Method: http.MethodPost, Body: `{"payload":"e30="}`}); f.got != want {
		t.Errorf("invoked with %+v, want %+v", f.got, want)
	}
	f.answer = answered(t, protocol.InvocationAnswer{Status: http.StatusNotModified, Header: map[string]string{"ETag": `"tag"`}})
	if current, _, err := c.CAs(t.Context(), `"tag"`, "report", "eu-west-1"); err != nil || current != nil {
		t.Errorf("CAs %v, error %v", current, err)
	}
	if want := (protocol.Invocation{Hallmark: 1, Method: http.MethodGet, IfNoneMatch: `"tag"`, Health: "report"}); f.got != want {
		t.Errorf("invoked with %+v, want %+v", f.got, want)
	}
}

// These are Lambda's own answers, and answers that are not a signer's.
func TestInvokeGoesWrong(t *testing.T) {
	refusal := answered(t, protocol.InvocationAnswer{
		Status: http.StatusTooManyRequests, Header: map[string]string{"Retry-After": "90"},
		Body: `{"error":{"code":"rate_limited","message":"too many","request_id":"r"}}`,
	})
	for name, test := range map[string]struct {
		status  int
		header  http.Header
		answer  string
		kind    fault.Kind
		message string
		hint    string
	}{
		"the signer refuses": {http.StatusOK, nil, refusal, fault.Temporary, "rate_limited", ""},
		"no permission": {http.StatusForbidden, http.Header{"X-Amzn-Errortype": {"AccessDeniedException:http://internal.amazon.com/"}},
			`{"Message":"User: arn:aws:sts::1:x is not authorized"}`, fault.Refused, `403 "AccessDeniedException"`, "lambda:InvokeFunction"},
		"a wrong clock": {http.StatusForbidden, http.Header{"X-Amzn-Errortype": {"InvalidSignatureException"}},
			`{"message":"Signature expired"}`, fault.Temporary, `403 InvalidSignatureException`, "clock"},
		"credentials that just expired": {http.StatusForbidden, http.Header{"X-Amzn-Errortype": {"ExpiredTokenException:http://internal.amazon.com/"}},
			`{}`, fault.Temporary, "ExpiredTokenException", "clock"},
		"no such function": {http.StatusNotFound, http.Header{"X-Amzn-Errortype": {"ResourceNotFoundException"}}, `{}`,
			fault.Refused, "ResourceNotFoundException", "signer_function"},
		"throttled":    {http.StatusTooManyRequests, nil, `{}`, fault.Temporary, "Lambda answered 429", "retries"},
		"Lambda fails": {http.StatusBadGateway, nil, `<html>`, fault.Temporary, "Lambda answered 502", "retries"},
		"the function failed": {http.StatusOK, http.Header{"X-Amz-Function-Error": {"Unhandled"}}, `{"errorType":"Runtime.ExitError"}`,
			fault.Temporary, "function failed", "retries"},
		"another function's answer": {http.StatusOK, nil, `{"statusCode":200,"body":"{}"}`, fault.Failed, "signer_function is not a valid Hallmark response", "entry invoke"},
		"no JSON":                   {http.StatusOK, nil, `hello`, fault.Failed, "signer_function is not a valid Hallmark response", ""},
		"null":                      {http.StatusOK, nil, `null`, fault.Failed, "signer_function is not a valid Hallmark response", ""},
		"too long":                  {http.StatusOK, nil, strings.Repeat(" ", maxInvocationBytes+1), fault.Failed, "more than", ""},
		"a body that is too long": {http.StatusOK, nil, answered(t, protocol.InvocationAnswer{
			Status: http.StatusOK, Body: strings.Repeat(" ", protocol.MaxResponseBytes+1),
		}), fault.Failed, "more than", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := invoking(t, &fakeLambda{status: test.status, header: test.header, answer: test.answer})
			_, err := c.post(t.Context(), "us-west-2", protocol.Version, []byte(`{}`))
			if err == nil || fault.KindOf(err) != test.kind || !strings.Contains(err.Error(), test.message) {
				t.Fatalf("got %v of kind %v, want %q of kind %v", err, fault.KindOf(err), test.message, test.kind)
			}
			if f, ok := errors.AsType[*fault.Error](err); !ok || !strings.Contains(f.Hint, test.hint) {
				t.Errorf("%#v, want %q in its hint", f, test.hint)
			}
			if strings.Contains(err.Error(), "profile-") {
				t.Errorf("the error holds a secret: %v", err)
			}
			if name == "the signer refuses" && waitOf(err) != 90*time.Second {
				t.Errorf("wait %v, want the signer's 90 s", waitOf(err))
			}
		})
	}
}

// Without signer_url, the endpoint is in the function's region, whatever the machine's region
// is.
func TestInvocationURL(t *testing.T) {
	for arn, want := range map[string]string{
		testFunction: "https://lambda.us-west-2.amazonaws.com/2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-west-2%3A111122223333%3Afunction%3Ahallmark-enroll/invocations",
		"arn:aws-cn:lambda:cn-north-1:111122223333:function:enroll:live": "https://lambda.cn-north-1.amazonaws.com.cn/2015-03-31/functions/" +
			"arn%3Aaws-cn%3Alambda%3Acn-north-1%3A111122223333%3Afunction%3Aenroll%3Alive/invocations",
	} {
		f, err := newFunction(config.Config{SignerFunction: arn})
		if err != nil {
			t.Fatal(err)
		}
		if f.url != want {
			t.Errorf("%s, want %s", f.url, want)
		}
	}
}
