//go:build linux

package lab

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/google/uuid"

	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
)

// queue is where the stack's rules put events, in moto's SQS.
type queue struct {
	client *sqs.Client
	url    string
}

// retryAfter is how many seconds an event that failed is hidden: less than the stack's
// six minutes, for which no test waits.
const retryAfter = "5"

// startQueue makes the fleet function drain the stack's queue. The event source mapping is
// left out of the stack: moto would invoke the function in a container.
func (l *Lab) startQueue(ctx context.Context) error {
	client := sqs.New(sqs.Options{
		Region: Region, BaseEndpoint: aws.String(l.moto.URL),
		Credentials: credentials.NewStaticCredentialsProvider("lab", "lab", ""),
	})
	l.queue = queue{client, l.stack.Resources["EventQueue"]}
	if _, err := client.SetQueueAttributes(ctx, &sqs.SetQueueAttributesInput{
		QueueUrl: &l.queue.url, Attributes: map[string]string{"VisibilityTimeout": retryAfter},
	}); err != nil {
		return err
	}
	log, err := l.createLog("queue")
	if err != nil {
		return err
	}
	go func() {
		if err := l.Fleet.Drain(ctx, client, l.queue.url); err != nil {
			fmt.Fprintf(log, "%v\n", err)
		}
		log.Close()
	}()
	return nil
}

// Send puts an event on the bus. The stack's rules put it into the queue.
func (l *Lab) Send(ctx context.Context, source, detailType, instance string, detail map[string]any) error {
	arn := "arn:aws:ec2:" + Region + ":" + moto.Account + ":instance/" + instance
	return l.moto.PutEvent(ctx, Region, "", source, detailType, []string{arn}, detail)
}

// SendRaw puts any text into the queue.
func (l *Lab) SendRaw(ctx context.Context, event string) error {
	_, err := l.queue.client.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: &l.queue.url, MessageBody: &event})
	return err
}

// SendState sends the event that an instance's state has changed.
func (l *Lab) SendState(ctx context.Context, instance, state string) error {
	return l.Send(ctx, "aws.ec2", "EC2 Instance State-change Notification", instance,
		map[string]any{"instance-id": instance, "state": state})
}

// SendTags sends the event that an instance's tags have changed.
func (l *Lab) SendTags(ctx context.Context, instance string, version int) error {
	return l.Send(ctx, "aws.tag", "Tag Change on Resource", instance, map[string]any{
		"changed-tag-keys": []string{"any"}, "service": "ec2", "resource-type": "instance", "version": version, "tags": map[string]string{},
	})
}

// Sweep invokes the fleet function as the schedule does, and returns its report.
func (l *Lab) Sweep(ctx context.Context) (string, error) {
	event := fmt.Sprintf(`{"version":"0","id":%q,"detail-type":"Scheduled Event","source":"aws.events","account":%q,`+
		`"time":"2026-01-02T03:04:05Z","region":%q,"resources":[],"detail":{}}`, uuid.NewString(), moto.Account, Region)
	answer, err := l.Fleet.Invoke(ctx, []byte(event))
	return string(answer), err
}
