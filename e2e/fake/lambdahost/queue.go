package lambdahost

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// Queue is the part of SQS that an event source needs. *sqs.Client implements it.
type Queue interface {
	ReceiveMessage(context.Context, *sqs.ReceiveMessageInput, ...func(*sqs.Options)) (*sqs.ReceiveMessageOutput, error)
	DeleteMessage(context.Context, *sqs.DeleteMessageInput, ...func(*sqs.Options)) (*sqs.DeleteMessageOutput, error)
}

// Drain passes the messages of a queue to the function until the context ends, like an event
// source mapping that reports the failures of a batch: it deletes the messages that the
// function does not name as failed, and the rest come again when their time is up (AWS Lambda
// Developer Guide, "Using Lambda with Amazon SQS").
func (h *Host) Drain(ctx context.Context, queue Queue, url string) error {
	for ctx.Err() == nil {
		out, err := queue.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
			QueueUrl: &url, MaxNumberOfMessages: 10, WaitTimeSeconds: 1,
		})
		if err != nil {
			return stopped(ctx, fmt.Errorf("receive from %s: %w", url, err))
		}
		if len(out.Messages) == 0 {
			continue
		}
		if err := h.handle(ctx, queue, url, out.Messages); err != nil {
			return stopped(ctx, err)
		}
	}
	return nil
}

// stopped returns nil for an error that the end of the context caused.
func stopped(ctx context.Context, err error) error {
	select {
	case <-ctx.Done():
		return nil
	default:
		return err
	}
}

func (h *Host) handle(ctx context.Context, queue Queue, url string, messages []types.Message) error {
	failed, err := h.deliver(ctx, messages)
	if err != nil {
		// The function failed as a whole, so the queue delivers all of them again.
		_, err := fmt.Fprintf(h.function.Log, "%s: %v\n", h.function.Name, err)
		return err
	}
	for _, m := range messages {
		if failed[aws.ToString(m.MessageId)] {
			continue
		}
		_, err := queue.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: &url, ReceiptHandle: m.ReceiptHandle})
		if err != nil {
			return fmt.Errorf("delete from %s: %w", url, err)
		}
	}
	return nil
}

// deliver returns the ids of the messages that the function names as failed.
func (h *Host) deliver(ctx context.Context, messages []types.Message) (map[string]bool, error) {
	type record struct {
		ID     string `json:"messageId"`
		Source string `json:"eventSource"`
		Body   string `json:"body"`
	}
	var event struct {
		Records []record `json:"Records"`
	}
	for _, m := range messages {
		event.Records = append(event.Records, record{aws.ToString(m.MessageId), "aws:sqs", aws.ToString(m.Body)})
	}
	data, err := json.Marshal(event)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, h.function.Timeout+time.Second)
	defer cancel()
	answer, err := h.Invoke(ctx, data)
	if err != nil {
		return nil, err
	}
	var failures struct {
		Items []struct {
			ID string `json:"itemIdentifier"`
		} `json:"batchItemFailures"`
	}
	if err := json.Unmarshal(answer, &failures); err != nil {
		return nil, fmt.Errorf("decode the function's answer %.200q: %w", answer, err)
	}
	failed := make(map[string]bool)
	for _, item := range failures.Items {
		failed[item.ID] = true
	}
	return failed, nil
}
