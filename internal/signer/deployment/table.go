package deployment

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
)

// dynamoDB is the part of DynamoDB that the ledger and the last good policy need.
//
// It holds functions, not the SDK's client: because Teleport's library uses templates,
// the linker keeps every method of a type stored in an interface. It would link all of
// DynamoDB, which made bootstrap 1.6 MB larger.
type dynamoDB struct {
	batchGet operation[dynamodb.BatchGetItemInput, dynamodb.BatchGetItemOutput]
	get      operation[dynamodb.GetItemInput, dynamodb.GetItemOutput]
	put      operation[dynamodb.PutItemInput, dynamodb.PutItemOutput]
	scan     operation[dynamodb.ScanInput, dynamodb.ScanOutput]
	transact operation[dynamodb.TransactWriteItemsInput, dynamodb.TransactWriteItemsOutput]
}

type operation[In, Out any] func(context.Context, *In, ...func(*dynamodb.Options)) (*Out, error)

// newDynamoDB returns the DynamoDB of the table's region. The table may be given by its
// ARN.
func newDynamoDB(cfg aws.Config, table string) *dynamoDB {
	c := dynamodb.NewFromConfig(cfg, func(o *dynamodb.Options) { o.Region = RegionOf(table, o.Region) })
	return &dynamoDB{batchGet: c.BatchGetItem, get: c.GetItem, put: c.PutItem, scan: c.Scan, transact: c.TransactWriteItems}
}

func (d *dynamoDB) BatchGetItem(ctx context.Context, in *dynamodb.BatchGetItemInput, options ...func(*dynamodb.Options)) (*dynamodb.BatchGetItemOutput, error) {
	return d.batchGet(ctx, in, options...)
}

func (d *dynamoDB) GetItem(ctx context.Context, in *dynamodb.GetItemInput, options ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	return d.get(ctx, in, options...)
}

func (d *dynamoDB) PutItem(ctx context.Context, in *dynamodb.PutItemInput, options ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	return d.put(ctx, in, options...)
}

func (d *dynamoDB) Scan(ctx context.Context, in *dynamodb.ScanInput, options ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	return d.scan(ctx, in, options...)
}

func (d *dynamoDB) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, options ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	return d.transact(ctx, in, options...)
}
