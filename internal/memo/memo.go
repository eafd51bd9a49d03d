// Package memo keeps a text in the ledger's table: the last good policy, and where
// the next sweep begins.
package memo

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// DynamoDB is the part of *dynamodb.Client that Memo needs.
type DynamoDB interface {
	GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error)
	PutItem(context.Context, *dynamodb.PutItemInput, ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error)
}

// Memo is one text in a DynamoDB table with the string partition key "pk", in the
// attribute "text". The table is the ledger's, whose own keys have prefixes that end
// in "#".
type Memo struct {
	Client DynamoDB
	// Table is the table's name or ARN.
	Table string
	// Name is the item's key.
	Name string
}

const (
	keyAttribute  = "pk"
	textAttribute = "text"
)

// Load returns the text, and nil if there is none. The read is consistent: a
// process that starts right after a save must find what was saved.
func (m Memo) Load(ctx context.Context) ([]byte, error) {
	out, err := m.Client.GetItem(ctx, &dynamodb.GetItemInput{
		TableName:      &m.Table,
		Key:            map[string]types.AttributeValue{keyAttribute: &types.AttributeValueMemberS{Value: m.Name}},
		ConsistentRead: aws.Bool(true),
	})
	if err != nil {
		return nil, fmt.Errorf("get item %s of table %s: %w", m.Name, m.Table, err)
	}
	if len(out.Item) == 0 {
		return nil, nil
	}
	text, ok := out.Item[textAttribute].(*types.AttributeValueMemberS)
	if !ok {
		return nil, fmt.Errorf("item %s of table %s has no text", m.Name, m.Table)
	}
	return []byte(text.Value), nil
}

// Save replaces the text.
func (m Memo) Save(ctx context.Context, text []byte) error {
	_, err := m.Client.PutItem(ctx, &dynamodb.PutItemInput{
		TableName: &m.Table,
		Item: map[string]types.AttributeValue{
			keyAttribute:  &types.AttributeValueMemberS{Value: m.Name},
			textAttribute: &types.AttributeValueMemberS{Value: string(text)},
		},
	})
	if err != nil {
		return fmt.Errorf("put item %s into table %s: %w", m.Name, m.Table, err)
	}
	return nil
}
