package fleet

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// DynamoDB is the part of *dynamodb.Client that Bookmark needs.
type DynamoDB interface {
	GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error)
	PutItem(context.Context, *dynamodb.PutItemInput, ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error)
}

// Bookmark remembers where the next sweep begins, in a DynamoDB table with the
// string partition key "pk": the item "sweep", with the attribute "next". It shares
// the ledger's table, whose keys have other prefixes.
type Bookmark struct {
	Client DynamoDB
	// Table is the table's name or ARN.
	Table string
}

const (
	bookmarkPK   = "pk"
	bookmarkItem = "sweep"
	bookmarkNext = "next"
)

// Load returns the account and region that were saved last, empty if there are
// none. The read is consistent: two sweeps may follow each other closely.
func (b Bookmark) Load(ctx context.Context) (string, error) {
	out, err := b.Client.GetItem(ctx, &dynamodb.GetItemInput{
		TableName:      &b.Table,
		Key:            map[string]types.AttributeValue{bookmarkPK: &types.AttributeValueMemberS{Value: bookmarkItem}},
		ConsistentRead: aws.Bool(true),
	})
	if err != nil {
		return "", fmt.Errorf("get item %s of table %s: %w", bookmarkItem, b.Table, err)
	}
	if len(out.Item) == 0 {
		return "", nil
	}
	next, ok := out.Item[bookmarkNext].(*types.AttributeValueMemberS)
	if !ok {
		return "", fmt.Errorf("item %s of table %s has no text %s", bookmarkItem, b.Table, bookmarkNext)
	}
	return next.Value, nil
}

// Save remembers an account and region, or with empty text that all were done.
func (b Bookmark) Save(ctx context.Context, next string) error {
	_, err := b.Client.PutItem(ctx, &dynamodb.PutItemInput{
		TableName: &b.Table,
		Item: map[string]types.AttributeValue{
			bookmarkPK:   &types.AttributeValueMemberS{Value: bookmarkItem},
			bookmarkNext: &types.AttributeValueMemberS{Value: next},
		},
	})
	if err != nil {
		return fmt.Errorf("put item %s into table %s: %w", bookmarkItem, b.Table, err)
	}
	return nil
}
