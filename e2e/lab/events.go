//go:build linux

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/google/uuid"

	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
)

// queue is where EventBridge puts events, in moto's SQS.
type queue struct {
	client *sqs.Client
	url    string
}

// startQueue creates the queue, and makes the fleet function drain it.
func (l *Lab) startQueue(ctx context.Context) error {
	client := sqs.New(sqs.Options{
		Region: Region, BaseEndpoint: aws.String(l.moto.URL),
		Credentials: credentials.NewStaticCredentialsProvider("lab", "lab", ""),
	})
	out, err := client.CreateQueue(ctx, &sqs.CreateQueueInput{
		QueueName:  aws.String("hallmark-events"),
		Attributes: map[string]string{"VisibilityTimeout": "5"},
	})
	if err != nil {
		return err
	}
	l.queue = queue{client, aws.ToString(out.QueueUrl)}
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

// Send puts an event into the queue, in the form of EventBridge.
func (l *Lab) Send(ctx context.Context, source, detailType, instance string, detail map[string]any) error {
	event, err := json.Marshal(map[string]any{
		"version": "0", "id": uuid.NewString(), "detail-type": detailType, "source": source,
		"account": moto.Account, "time": time.Now().UTC().Format(time.RFC3339), "region": Region,
		"resources": []string{"arn:aws:ec2:" + Region + ":" + moto.Account + ":instance/" + instance},
		"detail":    detail,
	})
	if err != nil {
		return err
	}
	return l.SendRaw(ctx, string(event))
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
