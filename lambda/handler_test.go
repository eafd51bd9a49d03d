package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-lambda-go/lambdacontext"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer"
)

func event(body string, isBase64 bool) events.LambdaFunctionURLRequest {
	e := events.LambdaFunctionURLRequest{
		Headers:         map[string]string{"content-type": "application/json"},
		Body:            body,
		IsBase64Encoded: isBase64,
	}
	e.RequestContext.RequestID = "from-the-event"
	e.RequestContext.HTTP.Method = http.MethodPost
	e.RequestContext.HTTP.SourceIP = "192.0.2.1"
	return e
}

func TestHandle(t *testing.T) {
	var got signer.Request
	h := handler{func(_ context.Context, r signer.Request) signer.Answer {
		got = r
		return signer.Answer{Status: http.StatusConflict, Header: map[string]string{"Retry-After": "1"}, Body: []byte("{}")}
	}}
	answer, err := h.handle(t.Context(), event("body", false))
	if err != nil || answer.StatusCode != http.StatusConflict || answer.Headers["Retry-After"] != "1" || answer.Body != "{}" {
		t.Errorf("answer %+v, error %v", answer, err)
	}
	if got.Method != http.MethodPost || got.ContentType != "application/json" || string(got.Body) != "body" ||
		got.Source != "192.0.2.1" || got.ID != "from-the-event" {
		t.Errorf("request %+v", got)
	}
	ctx := lambdacontext.NewContext(t.Context(), &lambdacontext.LambdaContext{AwsRequestID: "from-lambda"})
	if _, err := h.handle(ctx, event("", false)); err != nil || got.ID != "from-lambda" {
		t.Errorf("request id %q, error %v", got.ID, err)
	}
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
