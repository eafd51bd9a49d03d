package memo

import (
	"context"
	"errors"
	"maps"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// fakeDynamoDB is a table of items by their partition key.
type fakeDynamoDB struct {
	items map[string]map[string]types.AttributeValue
	err   error
}

func keyOf(t *types.AttributeValueMemberS) string { return t.Value }

func (f *fakeDynamoDB) GetItem(_ context.Context, in *dynamodb.GetItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	if !aws.ToBool(in.ConsistentRead) || aws.ToString(in.TableName) != "ledger" {
		return nil, errors.New("an eventually consistent read, or of another table")
	}
	return &dynamodb.GetItemOutput{Item: f.items[keyOf(in.Key["pk"].(*types.AttributeValueMemberS))]}, f.err
}

func (f *fakeDynamoDB) PutItem(_ context.Context, in *dynamodb.PutItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	if f.err == nil {
		f.items[keyOf(in.Item["pk"].(*types.AttributeValueMemberS))] = maps.Clone(in.Item)
	}
	return &dynamodb.PutItemOutput{}, f.err
}

func TestMemo(t *testing.T) {
	client := &fakeDynamoDB{items: make(map[string]map[string]types.AttributeValue)}
	table := Memo{Client: client, Table: "ledger", Name: "policy"}
	if text, err := table.Load(t.Context()); text != nil || err != nil {
		t.Errorf("text %q, error %v of an empty table", text, err)
	}
	for _, text := range []string{"one", "another", ""} {
		if err := table.Save(t.Context(), []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := table.Load(t.Context()); err != nil || string(got) != text {
			t.Errorf("text %q, error %v", got, err)
		}
	}
	client.items["policy"]["text"] = &types.AttributeValueMemberN{Value: "1"}
	if text, err := table.Load(t.Context()); err == nil {
		t.Errorf("text %q of an item that has none", text)
	}
	client.err = errors.New("throttled")
	if _, err := table.Load(t.Context()); !errors.Is(err, client.err) {
		t.Errorf("error %v", err)
	}
	if err := table.Save(t.Context(), []byte("one")); !errors.Is(err, client.err) {
		t.Errorf("error %v", err)
	}
}
