package live

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// DynamoDB is the part of *dynamodb.Client that Table needs.
type DynamoDB interface {
	GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error)
	PutItem(context.Context, *dynamodb.PutItemInput, ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error)
}

// Table is a LastGood in a DynamoDB table with the string partition key "pk": the
// item "policy", with the attribute "text". It shares the ledger's table, whose
// keys have other prefixes.
type Table struct {
	Client DynamoDB
	// Table is the table's name or ARN.
	Table string
}

const (
	keyAttribute  = "pk"
	key           = "policy"
	textAttribute = "text"
)

// Load returns the text, and nil if there is none. The read is consistent: a
// process that starts right after a save must find what was saved.
func (t Table) Load(ctx context.Context) ([]byte, error) {
	out, err := t.Client.GetItem(ctx, &dynamodb.GetItemInput{
		TableName:      &t.Table,
		Key:            map[string]types.AttributeValue{keyAttribute: &types.AttributeValueMemberS{Value: key}},
		ConsistentRead: aws.Bool(true),
	})
	if err != nil {
		return nil, fmt.Errorf("get item %s of table %s: %w", key, t.Table, err)
	}
	if len(out.Item) == 0 {
		return nil, nil
	}
	text, ok := out.Item[textAttribute].(*types.AttributeValueMemberS)
	if !ok {
		return nil, fmt.Errorf("item %s of table %s has no text", key, t.Table)
	}
	return bounded(text.Value)
}

// Save replaces the text.
func (t Table) Save(ctx context.Context, text []byte) error {
	_, err := t.Client.PutItem(ctx, &dynamodb.PutItemInput{
		TableName: &t.Table,
		Item: map[string]types.AttributeValue{
			keyAttribute:  &types.AttributeValueMemberS{Value: key},
			textAttribute: &types.AttributeValueMemberS{Value: string(text)},
		},
	})
	if err != nil {
		return fmt.Errorf("put item %s into table %s: %w", key, t.Table, err)
	}
	return nil
}

// maxTextBytes bounds a text from outside. A parameter of the advanced tier has at
// most 8 KiB (AWS Systems Manager User Guide, "Managing parameter tiers").
const maxTextBytes = 64 << 10

func bounded(text string) ([]byte, error) {
	switch {
	case text == "":
		return nil, errors.New("it is empty")
	case len(text) > maxTextBytes:
		return nil, fmt.Errorf("%d bytes, more than %d", len(text), maxTextBytes)
	}
	return []byte(text), nil
}
