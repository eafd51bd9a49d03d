package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"

	"github.com/aws/aws-lambda-go/lambdacontext"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
)

// handler translates events of an entry into requests to the signer, and its answers
// back. It implements lambda.Handler.
type handler struct {
	entry  entry.Kind
	enroll func(context.Context, entry.Request) entry.Answer
	log    *slog.Logger
}

// Invoke answers one event. An event of another form can only come from someone who may
// invoke the function directly. It gets the same refusal as a malformed request.
func (h handler) Invoke(ctx context.Context, event []byte) ([]byte, error) {
	request, err := h.entry.Request(event)
	request.ID = requestID(ctx, request.ID)
	if err != nil {
		h.log.WarnContext(ctx, "the event does not come from this function's entry",
			slog.String("entry", string(h.entry)), slog.Any("error", err))
		return h.entry.Response(malformed(request.ID))
	}
	return h.entry.Response(h.enroll(ctx, request))
}

func malformed(requestID string) entry.Answer {
	text, err := json.Marshal(protocol.ErrorResponse{Error: protocol.Refusal{
		Code: protocol.CodeMalformed, Message: "not an enrollment request", RequestID: requestID,
	}})
	if err != nil { // the types of the protocol always marshal
		text = nil
	}
	return entry.Answer{
		Status: http.StatusBadRequest,
		Header: map[string]string{"Content-Type": "application/json", "Cache-Control": "no-store"},
		Body:   text,
	}
}

// requestID returns the id that Lambda's own log lines have.
func requestID(ctx context.Context, events string) string {
	if l, ok := lambdacontext.FromContext(ctx); ok && l.AwsRequestID != "" {
		return l.AwsRequestID
	}
	return events
}
