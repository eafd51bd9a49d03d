package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/enroll"
)

var _ lambda.Handler = handler{}

func event(body string, isBase64 bool) events.LambdaFunctionURLRequest {
	e := events.LambdaFunctionURLRequest{
		Version:         "2.0",
		Headers:         map[string]string{"content-type": "application/json"},
		Body:            body,
		IsBase64Encoded: isBase64,
	}
	e.RequestContext.RequestID = "from-the-event"
	e.RequestContext.HTTP.Method = http.MethodPost
	e.RequestContext.HTTP.SourceIP = "192.0.2.1"
	return e
}

func encode(t *testing.T, e any) []byte {
	t.Helper()
	data, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// invoke sends an event as Lambda does, and wants a response of a function URL.
func invoke(t *testing.T, h handler, event []byte) events.LambdaFunctionURLResponse {
	t.Helper()
	return invokeIn(t.Context(), t, h, event)
}

func invokeIn(ctx context.Context, t *testing.T, h handler, event []byte) events.LambdaFunctionURLResponse {
	t.Helper()
	data, err := h.Invoke(ctx, event)
	if err != nil {
		t.Fatal(err)
	}
	var answer events.LambdaFunctionURLResponse
	if err := json.Unmarshal(data, &answer); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	return answer
}

// recording returns a handler whose signer notes the request and refuses it.
func recording(log *bytes.Buffer) (h handler, got *enroll.Request, calls *int) {
	got, calls = new(enroll.Request), new(int)
	return handler{func(_ context.Context, r enroll.Request) enroll.Answer {
		*got = r
		*calls++
		return enroll.Answer{Status: http.StatusConflict, Header: map[string]string{"Retry-After": "1"}, Body: []byte("{}")}
	}, slog.New(slog.NewJSONHandler(log, nil))}, got, calls
}

func TestInvoke(t *testing.T) {
	h, got, _ := recording(new(bytes.Buffer))
	answer := invoke(t, h, encode(t, event("body", false)))
	if answer.StatusCode != http.StatusConflict || answer.Headers["Retry-After"] != "1" || answer.Body != "{}" {
		t.Errorf("answer %+v", answer)
	}
	if got.Method != http.MethodPost || got.ContentType != "application/json" || string(got.Body) != "body" ||
		got.Source != "192.0.2.1" || got.ID != "from-the-event" || got.IAM != nil {
		t.Errorf("request %+v", got)
	}
	ctx := lambdacontext.NewContext(t.Context(), &lambdacontext.LambdaContext{AwsRequestID: "from-lambda"})
	if invokeIn(ctx, t, h, encode(t, event("", false))); got.ID != "from-lambda" {
		t.Errorf("request id %q", got.ID)
	}
}

func TestIAMCaller(t *testing.T) {
	h, got, _ := recording(new(bytes.Buffer))
	e := event("", false)
	e.RequestContext.Authorizer = &events.LambdaFunctionURLRequestContextAuthorizerDescription{}
	if invoke(t, h, encode(t, e)); got.IAM != nil {
		t.Errorf("IAM caller %+v of an empty authorizer", got.IAM)
	}
	e.RequestContext.Authorizer.IAM = &events.LambdaFunctionURLRequestContextAuthorizerIAMDescription{
		AccountID: "111122223333", UserARN: "arn:aws:sts::111122223333:assumed-role/web/i-0a1b2c3d4e5f60718", CallerID: "AROA:x",
	}
	want := enroll.IAMCaller{Account: "111122223333", ARN: "arn:aws:sts::111122223333:assumed-role/web/i-0a1b2c3d4e5f60718"}
	if invoke(t, h, encode(t, e)); got.IAM == nil || *got.IAM != want {
		t.Errorf("IAM caller %+v, want %+v", got.IAM, want)
	}
}

// What a caller writes into his headers, query or body says nothing of who he is.
func TestTheCallersWordIsNotTaken(t *testing.T) {
	h, got, _ := recording(new(bytes.Buffer))
	e := event(`{"requestContext": {"authorizer": {"iam": {"accountId": "111122223333"}}, "http": {"sourceIp": "10.0.0.1"}}}`, false)
	for _, name := range []string{"x-forwarded-for", "forwarded", "x-real-ip", "x-amzn-source-ip", "x-amz-source-account",
		"x-amzn-iam-user-arn", "requestcontext", "authorization", "x-amzn-requestid"} {
		e.Headers[name] = "10.0.0.1"
	}
	e.QueryStringParameters = map[string]string{"sourceIp": "10.0.0.1"}
	e.RawQueryString = "sourceIp=10.0.0.1"
	invoke(t, h, encode(t, e))
	if got.Source != "192.0.2.1" || got.IAM != nil || got.ID != "from-the-event" {
		t.Errorf("request %+v", got)
	}
}

// Whoever may invoke the function himself, or attaches it to something else, gets
// what a request that makes no sense gets.
func TestOtherEventsAreMalformed(t *testing.T) {
	tests := map[string]string{
		"nothing":        ``,
		"no JSON":        `{`,
		"null":           `null`,
		"a number":       `1`,
		"a list":         `[{"version": "2.0"}]`,
		"a string":       `"POST"`,
		"an object":      `{}`,
		"trailing":       string(encode(t, event("", false))) + "{}",
		"an enrollment":  `{"payload": "e30=", "caller": {}, "signatures": []}`,
		"no method":      `{"version": "2.0", "requestContext": {"http": {"sourceIp": "192.0.2.1"}}, "body": "{}"}`,
		"no context":     `{"version": "2.0", "body": "{}", "httpMethod": "POST"}`,
		"context, text":  `{"version": "2.0", "requestContext": "POST"}`,
		"method, number": `{"version": "2.0", "requestContext": {"http": {"method": 1}}}`,
		"headers, list":  `{"version": "2.0", "requestContext": {"http": {"method": "POST"}}, "headers": ["a"]}`,
		"payload 1.0":    `{"version": "1.0", "httpMethod": "POST", "requestContext": {"http": {"method": "POST"}}}`,
		"EventBridge": `{"version": "0", "id": "1", "detail-type": "EC2 Instance State-change Notification", "source": "aws.ec2",
			"account": "111122223333", "region": "us-west-2", "resources": [], "detail": {"instance-id": "i-0a1b2c3d4e5f60718", "state": "terminated"}}`,
		"EventBridge, disguised": `{"version": "0", "source": "aws.ec2", "requestContext": {"http": {"method": "POST"}}}`,
		"SQS":                    `{"Records": [{"eventSource": "aws:sqs", "body": "{}"}]}`,
		"deep":                   strings.Repeat("[", 20000) + strings.Repeat("]", 20000),
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			log := new(bytes.Buffer)
			h, _, calls := recording(log)
			ctx := lambdacontext.NewContext(t.Context(), &lambdacontext.LambdaContext{AwsRequestID: "from-lambda"})
			answer := invokeIn(ctx, t, h, []byte(text))
			var refusal protocol.ErrorResponse
			if err := json.Unmarshal([]byte(answer.Body), &refusal); err != nil {
				t.Fatal(err)
			}
			if answer.StatusCode != http.StatusBadRequest || refusal.Error.Code != protocol.CodeMalformed || refusal.Error.RequestID != "from-lambda" {
				t.Errorf("answer %+v", answer)
			}
			if *calls != 0 || !strings.Contains(log.String(), "not of the function URL") || strings.Contains(log.String(), testInstance) {
				t.Errorf("%d calls of the signer, log %s", *calls, log)
			}
		})
	}
}

// FuzzInvoke sends any bytes as an event: the answer is always a function URL's,
// and only an event that says POST itself reaches the signer as one.
func FuzzInvoke(f *testing.F) {
	for _, body := range []string{"", "{}", "e30="} {
		for _, isBase64 := range []bool{false, true} {
			data, err := json.Marshal(event(body, isBase64))
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Add([]byte(`{"version": "0", "detail-type": "Scheduled Event", "detail": {}}`))
	f.Add([]byte(`{"version": "2.0", "requestContext": {"authorizer": {"iam": null}, "http": {"method": "GET"}}, "headers": null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, got, calls := recording(new(bytes.Buffer))
		answer := invoke(t, h, data)
		switch {
		case *calls == 0 && answer.StatusCode != http.StatusBadRequest:
			t.Errorf("status %d without the signer", answer.StatusCode)
		case *calls == 1 && got.Method == "":
			t.Error("a request without a method")
		case *calls == 1 && len(got.Body) > protocol.MaxRequestBytes+1:
			t.Errorf("a body of %d bytes", len(got.Body))
		}
	})
}

func TestBody(t *testing.T) {
	long := strings.Repeat("a", 10*protocol.MaxRequestBytes)
	tests := map[string]struct {
		event events.LambdaFunctionURLRequest
		want  string
	}{
		"text":            {event("{}", false), "{}"},
		"base64":          {event(base64.StdEncoding.EncodeToString([]byte("{}")), true), "{}"},
		"broken base64":   {event("e30*", true), ""},
		"cut base64":      {event("e30", true), ""},
		"over-long":       {event(long, false), long[:protocol.MaxRequestBytes+1]},
		"over-long coded": {event(base64.StdEncoding.EncodeToString([]byte(long)), true), long[:protocol.MaxRequestBytes+1]},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := body(tt.event); !bytes.Equal(got, []byte(tt.want)) {
				t.Errorf("%d bytes, want %d", len(got), len(tt.want))
			}
		})
	}
}
