package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// Table is a DynamoDB table in memory, for tests that must run anywhere. It supports the calls
// and conditions that the ledger uses, and refuses others. The tests in e2e/fake/dynamodb
// compare it with the real thing. The zero value is an empty table.
type Table struct {
	mu    sync.Mutex
	items map[string]map[string]types.AttributeValue
}

// Item returns the item with the key, or nil.
func (t *Table) Item(pk string) map[string]types.AttributeValue {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.items[pk])
}

// Delete deletes the item with the key, as DynamoDB does when it has expired.
func (t *Table) Delete(pk string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.items, pk)
}

// BatchGetItem implements ledger.DynamoDBClient. It requires consistent reads.
func (t *Table) BatchGetItem(ctx context.Context, in *dynamodb.BatchGetItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.BatchGetItemOutput, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	out := &dynamodb.BatchGetItemOutput{Responses: make(map[string][]map[string]types.AttributeValue)}
	for table, request := range in.RequestItems {
		if !aws.ToBool(request.ConsistentRead) || len(request.Keys) > 100 {
			return nil, fmt.Errorf("consistent read %v of %d keys", aws.ToBool(request.ConsistentRead), len(request.Keys))
		}
		seen := make(map[string]bool)
		for _, key := range request.Keys {
			pk := primaryKey(key)
			if seen[pk] {
				return nil, fmt.Errorf("key %s twice in one read", pk)
			}
			seen[pk] = true
			if item, there := t.items[pk]; there {
				out.Responses[table] = append(out.Responses[table], maps.Clone(item))
			}
		}
	}
	return out, nil
}

// PutItem implements ledger.DynamoDBClient.
func (t *Table) PutItem(ctx context.Context, in *dynamodb.PutItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	holds, err := t.holds(primaryKey(in.Item), condition{in.ConditionExpression, in.ExpressionAttributeNames, in.ExpressionAttributeValues})
	switch {
	case err != nil:
		return nil, err
	case !holds:
		return nil, &types.ConditionalCheckFailedException{Message: aws.String("The conditional request failed")}
	}
	t.put(in.Item)
	return &dynamodb.PutItemOutput{}, nil
}

// Scan implements ledger.DynamoDBClient. It returns the items in the order of their keys. It
// requires a bounded page and named attributes, or one segment with all of them.
func (t *Table) Scan(ctx context.Context, in *dynamodb.ScanInput, _ ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	limit, segments := int32(segmentPage), aws.ToInt32(in.TotalSegments)
	switch {
	case in.FilterExpression == nil:
		return nil, errors.New("a scan without filter")
	case segments > 0 && in.Segment != nil && in.ProjectionExpression == nil:
	case in.Limit == nil || in.Select != types.SelectSpecificAttributes || in.ProjectionExpression == nil:
		return nil, errors.New("a scan without segments, limit or named attributes")
	default:
		limit, segments = *in.Limit, 1
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	out, read := new(dynamodb.ScanOutput), int32(0)
	from := primaryKey(in.ExclusiveStartKey)
	for _, pk := range slices.Sorted(maps.Keys(t.items)) {
		if pk <= from || segmentOf(pk, segments) != aws.ToInt32(in.Segment) {
			continue
		}
		if read++; read > limit {
			out.LastEvaluatedKey = map[string]types.AttributeValue{"pk": &types.AttributeValueMemberS{Value: from}}
			break
		}
		from = pk
		holds, err := expression{item: t.items[pk], values: in.ExpressionAttributeValues}.holds(*in.FilterExpression)
		if err != nil {
			return nil, err
		}
		if holds {
			out.Items = append(out.Items, project(t.items[pk], in.ProjectionExpression))
		}
	}
	return out, nil
}

// segmentPage is how many items this table puts on a page of a segment: few, so that tests
// need several.
const segmentPage = 10

// segmentOf returns the segment of an item.
func segmentOf(pk string, segments int32) int32 {
	return int32(crc32.ChecksumIEEE([]byte(pk)) % uint32(segments)) //nolint:gosec // both are small
}

// project returns the named attributes of an item, or all if none are named.
func project(item map[string]types.AttributeValue, names *string) map[string]types.AttributeValue {
	if names == nil {
		return maps.Clone(item)
	}
	projected := make(map[string]types.AttributeValue)
	for name := range strings.SplitSeq(*names, ", ") {
		if value, there := item[name]; there {
			projected[name] = value
		}
	}
	return projected
}

// TransactWriteItems implements ledger.DynamoDBClient.
func (t *Table) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, _ ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.check(in.TransactItems); err != nil {
		return nil, err
	}
	for _, action := range in.TransactItems {
		if action.Put != nil {
			t.put(action.Put.Item)
		}
	}
	return &dynamodb.TransactWriteItemsOutput{}, nil
}

// check returns the error of a transaction that DynamoDB would refuse.
func (t *Table) check(actions []types.TransactWriteItem) error {
	if len(actions) > 100 {
		return fmt.Errorf("%d actions in one transaction", len(actions))
	}
	seen := make(map[string]bool)
	reasons := make([]types.CancellationReason, len(actions))
	canceled := false
	for n, action := range actions {
		pk, wanted := parts(action)
		if seen[pk] {
			return fmt.Errorf("item %s twice in one transaction", pk)
		}
		seen[pk] = true
		holds, err := t.holds(pk, wanted)
		if err != nil {
			return err
		}
		reasons[n].Code = aws.String("None")
		if !holds {
			reasons[n].Code, canceled = aws.String("ConditionalCheckFailed"), true
		}
	}
	if canceled {
		return &types.TransactionCanceledException{CancellationReasons: reasons}
	}
	return nil
}

// condition is what a write depends on.
type condition struct {
	text   *string
	names  map[string]string
	values map[string]types.AttributeValue
}

func parts(action types.TransactWriteItem) (pk string, wanted condition) {
	if c := action.ConditionCheck; c != nil {
		return primaryKey(c.Key), condition{c.ConditionExpression, c.ExpressionAttributeNames, c.ExpressionAttributeValues}
	}
	put := action.Put
	return primaryKey(put.Item), condition{put.ConditionExpression, put.ExpressionAttributeNames, put.ExpressionAttributeValues}
}

func (t *Table) put(item map[string]types.AttributeValue) {
	if t.items == nil {
		t.items = make(map[string]map[string]types.AttributeValue)
	}
	t.items[primaryKey(item)] = maps.Clone(item)
}

// holds evaluates a condition on the item with the key.
func (t *Table) holds(pk string, wanted condition) (bool, error) {
	if wanted.text == nil {
		return false, errors.New("a write without condition")
	}
	return expression{t.items[pk], wanted.values, wanted.names}.holds(*wanted.text)
}

func primaryKey(item map[string]types.AttributeValue) string {
	if s, ok := item["pk"].(*types.AttributeValueMemberS); ok {
		return s.Value
	}
	return ""
}
