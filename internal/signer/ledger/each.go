package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// Visitor is called with what the ledger holds. Its functions are never called twice at once.
type Visitor struct {
	// Record gets the record of each instance that ever claimed anything or was retired.
	Record func(ec2ref.Instance, Record) error
	// Refusal gets the latest refused request of each instance.
	Refusal func(ec2ref.Instance, Refusal) error
}

// segments is how many parts of the table Each reads at once.
const segments = 8

// eachFilter leaves out the items of keys and names, and records that only note a tag event.
const eachFilter = "begins_with(pk, :refused) OR begins_with(pk, :instance) AND generation > :zero"

// Each visits every record and every refusal, in no order. It stops at the visitor's first
// error and returns it. It reads the whole table, eventually consistent and a page at a time:
// it is for reports, and nothing may be decided by it.
func (d *DynamoDB) Each(ctx context.Context, v Visitor) error {
	var mu sync.Mutex
	visit := func(it item) error {
		mu.Lock()
		defer mu.Unlock()
		return v.visit(it)
	}
	group, ctx := errgroup.WithContext(ctx)
	for n := range int32(segments) {
		group.Go(func() error { return d.eachOf(ctx, n, visit) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("read all records: %w", err)
	}
	return nil
}

// eachOf reads one segment of the table.
func (d *DynamoDB) eachOf(ctx context.Context, segment int32, visit func(item) error) error {
	in := &dynamodb.ScanInput{
		TableName: &d.table, Segment: aws.Int32(segment), TotalSegments: aws.Int32(segments),
		FilterExpression: aws.String(eachFilter),
		ExpressionAttributeValues: item{
			":instance": text(instancePrefix), ":refused": text(refusedPrefix), ":zero": number[uint64](0),
		},
	}
	for {
		var page *dynamodb.ScanOutput
		err := retry(ctx, func(ctx context.Context) (err error) {
			page, err = d.client.Scan(ctx, in)
			return err
		})
		if err != nil {
			return err
		}
		for _, it := range page.Items {
			if err := visit(it); err != nil {
				return err
			}
		}
		if len(page.LastEvaluatedKey) == 0 {
			return nil
		}
		in.ExclusiveStartKey = page.LastEvaluatedKey
	}
}

func (v Visitor) visit(it item) error {
	p := parser{item: it}
	pk := p.text(attrPK)
	name, isRefusal := strings.CutPrefix(pk, refusedPrefix)
	i, err := ec2ref.ParseInstance(strings.TrimPrefix(name, instancePrefix))
	if err := errors.Join(p.err, err); err != nil {
		return fmt.Errorf("read the ledger's item %s: %w", pk, err)
	}
	if isRefusal {
		r, err := parseRefusal(it)
		if err != nil {
			return err
		}
		return v.Refusal(i, r)
	}
	r, err := parseRecord(it)
	if err != nil {
		return err
	}
	return v.Record(i, r.exported())
}
