package stored

import (
	"bytes"
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
	// before runs before an item is put.
	before func()
}

func keyOf(t *types.AttributeValueMemberS) string { return t.Value }

func (f *fakeDynamoDB) GetItem(_ context.Context, in *dynamodb.GetItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	if !aws.ToBool(in.ConsistentRead) || aws.ToString(in.TableName) != "ledger" {
		return nil, errors.New("an eventually consistent read, or of another table")
	}
	return &dynamodb.GetItemOutput{Item: f.items[keyOf(in.Key["pk"].(*types.AttributeValueMemberS))]}, f.err
}

func (f *fakeDynamoDB) PutItem(_ context.Context, in *dynamodb.PutItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	if f.before != nil {
		f.before()
	}
	if condition := aws.ToString(in.ConditionExpression); condition != "" {
		stored, _ := f.items[keyOf(in.Item["pk"].(*types.AttributeValueMemberS))]["version"].(*types.AttributeValueMemberN)
		wanted, _ := in.ExpressionAttributeValues[":version"].(*types.AttributeValueMemberN)
		if (stored == nil) != (wanted == nil) || stored != nil && stored.Value != wanted.Value {
			return nil, &types.ConditionalCheckFailedException{}
		}
	}
	if f.err == nil {
		f.items[keyOf(in.Item["pk"].(*types.AttributeValueMemberS))] = maps.Clone(in.Item)
	}
	return &dynamodb.PutItemOutput{}, f.err
}

func TestText(t *testing.T) {
	client := &fakeDynamoDB{items: make(map[string]map[string]types.AttributeValue)}
	table := Text{Client: client, Table: "ledger", Name: "policy"}
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

// updater is what both memos do.
type updater interface {
	Update(ctx context.Context, change func([]byte) ([]byte, error)) error
}

func TestUpdate(t *testing.T) {
	client := &fakeDynamoDB{items: make(map[string]map[string]types.AttributeValue)}
	for name, m := range map[string]updater{"table": Text{Client: client, Table: "ledger", Name: "missing"}, "memory": new(Memory)} {
		t.Run(name, func(t *testing.T) {
			add := func(s string) func([]byte) ([]byte, error) {
				return func(text []byte) ([]byte, error) { return append(bytes.Clone(text), s...), nil }
			}
			for _, s := range []string{"a", "", "b"} {
				if err := m.Update(t.Context(), add(s)); err != nil {
					t.Fatal(err)
				}
			}
			refusal := errors.New("no")
			err := m.Update(t.Context(), func(text []byte) ([]byte, error) {
				if string(text) != "ab" {
					t.Errorf("text %q", text)
				}
				return []byte("lost"), refusal
			})
			if !errors.Is(err, refusal) {
				t.Errorf("error %v", err)
			}
			if err := m.Update(t.Context(), func(text []byte) ([]byte, error) {
				if string(text) != "ab" {
					t.Errorf("text %q after an error", text)
				}
				return text, nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
}

// Two who update at once: neither loses what the other wrote.
func TestUpdateBeginsAgain(t *testing.T) {
	client := &fakeDynamoDB{items: make(map[string]map[string]types.AttributeValue)}
	m := Text{Client: client, Table: "ledger", Name: "missing"}
	add := func(s string) func([]byte) ([]byte, error) {
		return func(text []byte) ([]byte, error) { return append(bytes.Clone(text), s...), nil }
	}
	for _, s := range []string{"a", "b"} { // a new item, and one that is there
		client.before = func() {
			client.before = nil
			if err := m.Update(t.Context(), add("x")); err != nil {
				t.Error(err)
			}
		}
		if err := m.Update(t.Context(), add(s)); err != nil {
			t.Fatal(err)
		}
	}
	if text, err := m.Load(t.Context()); err != nil || string(text) != "xaxb" {
		t.Errorf("text %q, error %v", text, err)
	}
	client.before = func() { // somebody else is always faster
		version := client.items["missing"]["version"].(*types.AttributeValueMemberN)
		version.Value += "0"
	}
	if err := m.Update(t.Context(), add("c")); err == nil {
		t.Error("no end, and no error")
	}
}
