package upkeep

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// Batch is a batch of messages that Lambda passes from a queue (AWS Lambda Developer
// Guide, "Using Lambda with Amazon SQS").
type Batch struct {
	Records []Message `json:"Records"`
}

// Message is a queue message with an event from EventBridge.
type Message struct {
	ID     string `json:"messageId"`
	Source string `json:"eventSource"`
	Body   string `json:"body"`
}

// BatchAnswer lists the messages to deliver again (the same guide, "Reporting batch item
// failures").
type BatchAnswer struct {
	Failures []Failure `json:"batchItemFailures"`
}

// Failure is a message that failed and should come again.
type Failure struct {
	ID string `json:"itemIdentifier"`
}

// Handle acts on a batch. Its events share calls to EC2. It logs and drops messages that
// are not events: a retry would not help. A failed message comes again alone. One log
// line sums up the batch.
func (f *Fleet) Handle(ctx context.Context, batch Batch) BatchAnswer {
	start := f.Now()
	watched, t := f.watched()
	answer, k := watched.handle(ctx, batch)
	f.logBatch(ctx, start, k, t, len(answer.Failures))
	return answer
}

func (f *Fleet) handle(ctx context.Context, batch Batch) (BatchAnswer, kinds) {
	var k kinds
	answer := BatchAnswer{Failures: []Failure{}} // Lambda treats a missing list as a failure of all
	var changes []TagChange
	var instances []ec2ref.Instance
	var changed, moved []Message
	for _, m := range batch.Records {
		e, err := ParseEvent([]byte(m.Body))
		switch {
		case err != nil:
			k.dropped++
			f.Log.ErrorContext(ctx, "message dropped", slog.String("message_id", m.ID), slog.Any("error", err))
		case e.TagsChanged != nil:
			k.tags++
			changes, changed = append(changes, *e.TagsChanged), append(changed, m)
		case e.StateChanged != nil:
			k.states++
			instances, moved = append(instances, *e.StateChanged), append(moved, m)
		case e.Sweep != nil || e.Organization:
			// An operator or the schedule requests a sweep directly. A principal that may
			// only write to the queue may not.
			k.dropped++
			f.Log.ErrorContext(ctx, "message dropped: the queue may not request a sweep or a reading of the organization", slog.String("message_id", m.ID))
		default:
			k.ignored++
		}
	}
	for n, err := range f.StatesChanged(ctx, instances) {
		answer.note(ctx, f.Log, moved[n], err)
	}
	for n, err := range f.TagsChanged(ctx, changes) {
		answer.note(ctx, f.Log, changed[n], err)
	}
	return answer, k
}

func (a *BatchAnswer) note(ctx context.Context, log *slog.Logger, m Message, err error) {
	if err == nil {
		return
	}
	log.WarnContext(ctx, "an event could not be acted on yet", slog.String("message_id", m.ID), slog.Any("error", err))
	a.Failures = append(a.Failures, Failure{ID: m.ID})
}

// ParseBatch reads a batch, and reports whether the data is one.
func ParseBatch(data []byte) (Batch, bool, error) {
	var b Batch
	if err := json.Unmarshal(data, &b); err != nil {
		return b, false, fmt.Errorf("%w: %w", ErrEvent, err)
	}
	for _, m := range b.Records {
		if m.Source != "aws:sqs" || m.ID == "" {
			return b, false, errors.Join(ErrEvent, fmt.Errorf("a record of %.32q", m.Source))
		}
	}
	return b, len(b.Records) > 0, nil
}
