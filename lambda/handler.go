package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"

	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-lambda-go/lambdacontext"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/enroll"
)

// handler turns events of a function URL (payload format 2.0) into requests to
// the signer, and its answers back. It is a lambda.Handler.
type handler struct {
	enroll func(context.Context, enroll.Request) enroll.Answer
	log    *slog.Logger
}

// Invoke answers one event, whatever it is. An event of any other form, which only
// somebody sends who may invoke the function himself, is refused like a request
// that makes no sense.
func (h handler) Invoke(ctx context.Context, event []byte) ([]byte, error) {
	e, err := decodeEvent(event)
	if err != nil {
		h.log.WarnContext(ctx, "an event that is not of the function URL", slog.Any("error", err))
		return json.Marshal(malformed(requestID(ctx, e)))
	}
	answer := h.enroll(ctx, newRequest(ctx, e))
	return json.Marshal(events.LambdaFunctionURLResponse{
		StatusCode: answer.Status,
		Headers:    answer.Header,
		Body:       string(answer.Body),
	})
}

func decodeEvent(data []byte) (events.LambdaFunctionURLRequest, error) {
	var e events.LambdaFunctionURLRequest
	if err := json.Unmarshal(data, &e); err != nil {
		// Without the decoder's words: they quote the event.
		return events.LambdaFunctionURLRequest{}, errors.New("not the JSON of a function URL's event")
	}
	// EventBridge's events have a version too, "0".
	if e.Version != "2.0" || e.RequestContext.HTTP.Method == "" {
		return e, fmt.Errorf("version %.16q, method %.16q", e.Version, e.RequestContext.HTTP.Method)
	}
	return e, nil
}

// newRequest takes who calls from what Lambda says (requestContext) and never from
// the caller's own headers, of which X-Forwarded-For is one.
func newRequest(ctx context.Context, e events.LambdaFunctionURLRequest) enroll.Request {
	r := enroll.Request{
		ID:          requestID(ctx, e),
		Method:      e.RequestContext.HTTP.Method,
		ContentType: e.Headers["content-type"], // function URLs send names in lower case
		IfNoneMatch: e.Headers["if-none-match"],
		Body:        body(e),
		Source:      e.RequestContext.HTTP.SourceIP,
	}
	if a := e.RequestContext.Authorizer; a != nil && a.IAM != nil {
		r.IAM = &enroll.IAMCaller{Account: a.IAM.AccountID, ARN: a.IAM.UserARN}
	}
	return r
}

func malformed(requestID string) events.LambdaFunctionURLResponse {
	response := events.LambdaFunctionURLResponse{
		StatusCode: http.StatusBadRequest,
		Headers:    map[string]string{"Content-Type": "application/json", "Cache-Control": "no-store"},
	}
	text, err := json.Marshal(protocol.ErrorResponse{Error: protocol.Refusal{
		Code: protocol.CodeMalformed, Message: "not an enrollment request", RequestID: requestID,
	}})
	if err == nil { // the types of the protocol always marshal
		response.Body = string(text)
	}
	return response
}

// requestID is the one under which Lambda's own log lines stand.
func requestID(ctx context.Context, e events.LambdaFunctionURLRequest) string {
	if l, ok := lambdacontext.FromContext(ctx); ok && l.AwsRequestID != "" {
		return l.AwsRequestID
	}
	return e.RequestContext.RequestID
}

// body returns the request's body up to one byte more than the signer accepts,
// and decodes no further. Broken base64 is an empty body, which is no request.
func body(e events.LambdaFunctionURLRequest) []byte {
	var r io.Reader = strings.NewReader(e.Body)
	if e.IsBase64Encoded {
		r = base64.NewDecoder(base64.StdEncoding, r)
	}
	data, err := io.ReadAll(io.LimitReader(r, protocol.MaxRequestBytes+1))
	if err != nil {
		return nil
	}
	return data
}
