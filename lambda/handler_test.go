package main

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry/entrytest"
)

var _ lambda.Handler = handler{}

func newRequest(body string) entry.Request {
	return entry.Request{
		ID: "from-the-event", Method: http.MethodPost, ContentType: "application/json", Body: []byte(body),
		Source: "192.0.2.1", Endpoint: "vpce-0a1b2c3d4e5f60718",
	}
}

func encode(t *testing.T, e any) []byte {
	t.Helper()
	data, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// invoke sends an event as Lambda does, and requires an answer in the entry's form.
func invoke(ctx context.Context, t *testing.T, h handler, event []byte) entry.Answer {
	t.Helper()
	data, err := h.Invoke(ctx, event)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := entrytest.Answer(h.entry, data)
	if err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	return answer
}

// recording returns a handler whose signer records the request and refuses it.
func recording(kind entry.Kind, log *bytes.Buffer) (h handler, got *entry.Request, calls *int) {
	got, calls = new(entry.Request), new(int)
	return handler{kind, func(_ context.Context, r entry.Request) entry.Answer {
		*got = r
		*calls++
		return entry.Answer{Status: http.StatusConflict, Header: map[string]string{"Retry-After": "1"}, Body: []byte("{}")}
	}, slog.New(slog.NewJSONHandler(log, nil))}, got, calls
}

func TestInvoke(t *testing.T) {
	for _, kind := range entry.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			h, got, _ := recording(kind, new(bytes.Buffer))
			event, err := entrytest.Event(kind, newRequest("body"))
			if err != nil {
				t.Fatal(err)
			}
			answer := invoke(t.Context(), t, h, event)
			if answer.Status != http.StatusConflict || answer.Header["Retry-After"] != "1" || string(answer.Body) != "{}" {
				t.Errorf("answer %+v", answer)
			}
			if got.Method != http.MethodPost || got.ContentType != "application/json" || string(got.Body) != "body" || got.IAM != nil {
				t.Errorf("request %+v", got)
			}
			if want := "from-the-event"; kind != entry.Invoke && got.ID != want {
				t.Errorf("request id %q, want %q", got.ID, want)
			}
			ctx := lambdacontext.NewContext(t.Context(), &lambdacontext.LambdaContext{AwsRequestID: "from-lambda"})
			if invoke(ctx, t, h, event); got.ID != "from-lambda" {
				t.Errorf("request id %q", got.ID)
			}
		})
	}
}

// A person who may invoke the function directly, or who attaches it to something else, gets
// the answer to a malformed request.
func TestOtherEventsAreMalformed(t *testing.T) {
	eventBridge := `{"version": "0", "id": "1", "detail-type": "EC2 Instance State-change Notification", "source": "aws.ec2",
		"account": "111122223333", "detail": {"instance-id": "` + testInstance + `", "state": "terminated"}}`
	for _, kind := range entry.Kinds() {
		for _, event := range []string{``, `{`, `null`, `{}`, `[]`, eventBridge} {
			log := new(bytes.Buffer)
			h, _, calls := recording(kind, log)
			ctx := lambdacontext.NewContext(t.Context(), &lambdacontext.LambdaContext{AwsRequestID: "from-lambda"})
			answer := invoke(ctx, t, h, []byte(event))
			var refusal protocol.ErrorResponse
			if err := json.Unmarshal(answer.Body, &refusal); err != nil {
				t.Fatal(err)
			}
			if answer.Status != http.StatusBadRequest || refusal.Error.Code != protocol.CodeMalformed || refusal.Error.RequestID != "from-lambda" {
				t.Errorf("%s: answer %+v to %s", kind, answer, event)
			}
			if *calls != 0 || !strings.Contains(log.String(), "this function's entry") || strings.Contains(log.String(), testInstance) {
				t.Errorf("%s: %d calls of the signer, log %s", kind, *calls, log)
			}
		}
	}
}

// FuzzInvoke sends any bytes as an event: the answer always has the entry's form, and only an
// event that has a method reaches the signer.
func FuzzInvoke(f *testing.F) {
	for _, kind := range entry.Kinds() {
		data, err := entrytest.Event(kind, newRequest("{}"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"version": "0", "detail-type": "Scheduled Event", "detail": {}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, kind := range entry.Kinds() {
			h, got, calls := recording(kind, new(bytes.Buffer))
			answer := invoke(t.Context(), t, h, data)
			switch {
			case *calls == 0 && answer.Status != http.StatusBadRequest:
				t.Errorf("status %d without the signer", answer.Status)
			case *calls == 1 && got.Method == "":
				t.Error("a request without a method")
			}
		}
	})
}
