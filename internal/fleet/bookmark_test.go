package fleet

import (
	"context"
	"errors"
	"maps"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// fakeTable is a table of items by their partition key.
type fakeTable struct {
	items map[string]map[string]types.AttributeValue
	err   error
}

func keyOf(v types.AttributeValue) string { return v.(*types.AttributeValueMemberS).Value }

func (f *fakeTable) GetItem(_ context.Context, in *dynamodb.GetItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	if !aws.ToBool(in.ConsistentRead) || aws.ToString(in.TableName) != "ledger" {
		return nil, errors.New("an eventually consistent read, or of another table")
	}
	return &dynamodb.GetItemOutput{Item: f.items[keyOf(in.Key["pk"])]}, f.err
}

func (f *fakeTable) PutItem(_ context.Context, in *dynamodb.PutItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	if f.err == nil {
		f.items[keyOf(in.Item["pk"])] = maps.Clone(in.Item)
	}
	return &dynamodb.PutItemOutput{}, f.err
}

func TestBookmark(t *testing.T) {
	table := &fakeTable{items: make(map[string]map[string]types.AttributeValue)}
	b := Bookmark{Client: table, Table: "ledger"}
	if next, err := b.Load(t.Context()); next != "" || err != nil {
		t.Errorf("%q, error %v of an empty table", next, err)
	}
	for _, want := range []string{"111122223333/us-west-2", ""} {
		if err := b.Save(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		if next, err := b.Load(t.Context()); err != nil || next != want || table.items["sweep"] == nil {
			t.Errorf("%q, error %v, want %q", next, err, want)
		}
	}
	table.items["sweep"]["next"] = &types.AttributeValueMemberN{Value: "1"}
	if next, err := b.Load(t.Context()); err == nil {
		t.Errorf("%q of an item that has no text", next)
	}
	table.err = errors.New("throttled")
	if _, err := b.Load(t.Context()); !errors.Is(err, table.err) {
		t.Errorf("error %v", err)
	}
	if err := b.Save(t.Context(), "x"); !errors.Is(err, table.err) {
		t.Errorf("error %v", err)
	}
}
