package main

import (
	"context"
	"encoding/base64"
	"io"
	"strings"

	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-lambda-go/lambdacontext"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer"
)

// handler turns events of a function URL (payload format 2.0) into requests to
// the signer, and its answers back.
type handler struct {
	enroll func(context.Context, signer.Request) signer.Answer
}

func (h handler) handle(ctx context.Context, e events.LambdaFunctionURLRequest) (events.LambdaFunctionURLResponse, error) {
	answer := h.enroll(ctx, signer.Request{
		ID:          requestID(ctx, e),
		Method:      e.RequestContext.HTTP.Method,
		ContentType: e.Headers["content-type"], // function URLs send names in lower case
		Body:        body(e),
		Source:      e.RequestContext.HTTP.SourceIP,
	})
	return events.LambdaFunctionURLResponse{
		StatusCode: answer.Status,
		Headers:    answer.Header,
		Body:       string(answer.Body),
	}, nil
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
