package upkeep

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func message(id, body string) Message { return Message{ID: id, Source: "aws:sqs", Body: body} }

func about(event string, n int) string {
	return strings.ReplaceAll(event, "i-0a1b2c3d4e5f60718", string(ref(n).ID))
}

func TestHandle(t *testing.T) {
	w := newWorld(t)
	w.enroll(1)
	w.terminate(1)
	w.enroll(2).Tags["a"] = "b"
	w.enroll(3).Tags["a"] = "b"
	w.calls = nil
	answer := w.fleet.Handle(t.Context(), Batch{Records: []Message{
		message("m1", about(stateEvent, 1)),
		message("m2", about(tagEvent, 2)),
		message("m3", about(tagEvent, 3)),
		message("m4", "no event"),
		message("m5", `{"sweep":{"limit":1000}}`),
	}})
	if got := string(must(json.Marshal(answer))); got != `{"batchItemFailures":[]}` {
		t.Errorf("answer %s", got)
	}
	if _, ok := w.node(1); ok {
		t.Error("the node of a terminated instance is left")
	}
	for _, n := range []int{2, 3} {
		if node, _ := w.node(n); node.Labels["aws/a"] != "b" {
			t.Errorf("labels %v", node.Labels)
		}
	}
	if n := strings.Count(fmt.Sprint(w.calls), "instances"); n != 2 { // one for the end, one for the tags
		t.Errorf("EC2 was asked %d times: %v", n, w.calls)
	}
}

func TestHandleNamesWhatIsToComeAgain(t *testing.T) {
	w := newWorld(t)
	w.enroll(1)
	w.enroll(2)
	w.ec2Err = errors.New("throttled")
	answer := w.fleet.Handle(t.Context(), Batch{Records: []Message{
		message("m1", about(stateEvent, 1)), message("m2", "no event"), message("m3", about(tagEvent, 2)),
	}})
	if got := string(must(json.Marshal(answer))); got != `{"batchItemFailures":[{"itemIdentifier":"m1"},{"itemIdentifier":"m3"}]}` {
		t.Errorf("answer %s", got)
	}
}

func TestParseBatch(t *testing.T) {
	for data, want := range map[string]struct{ batch, fails bool }{
		`{"Records":[{"messageId":"m","eventSource":"aws:sqs","body":"{}"}]}`: {batch: true},
		stateEvent:       {},
		`{"Records":[]}`: {},
		`{"Records":[{"messageId":"m","eventSource":"aws:s3","body":"{}"}]}`: {fails: true},
		`{"Records":[{"eventSource":"aws:sqs","body":"{}"}]}`:                {fails: true},
		`hello`: {fails: true},
	} {
		_, isBatch, err := ParseBatch([]byte(data))
		if isBatch != want.batch || (err != nil) != want.fails {
			t.Errorf("%s: batch %v, error %v", data, isBatch, err)
		}
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}
