// Package stored keeps a text in the ledger's table: the last good policy, where the next
// sweep begins, which instances EC2 does not show, and the accounts of an organization.
package stored

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// DynamoDB is the part of *dynamodb.Client that Text needs.
type DynamoDB interface {
	GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error)
	PutItem(context.Context, *dynamodb.PutItemInput, ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error)
}

// Text is one text in a DynamoDB table with the string partition key "pk", in the
// attribute "text". The table is the ledger's, whose own keys have prefixes that end
// in "#".
type Text struct {
	Client DynamoDB
	// Table is the table's name or ARN.
	Table string
	// Name is the item's key.
	Name string
}

const (
	keyAttribute  = "pk"
	textAttribute = "text"
	// expiresAttribute is when DynamoDB may delete the item, in seconds since 1970. The
	// table's template names it.
	expiresAttribute = "expires"
	// versionAttribute counts the updates. A text that is only ever saved does not have it.
	versionAttribute = "version"
)

// attempts bounds how often an update starts over because others write too.
const attempts = 10

// Load returns the text, or nil if there is none. The read is consistent: a process that
// starts right after a save must find what was saved.
func (m Text) Load(ctx context.Context) ([]byte, error) {
	text, _, err := m.load(ctx)
	return text, err
}

// Update replaces the text with the result of change, unless that is the same. If others write
// in the meantime, it starts over, so it may call change several times. It returns an error of
// change as it is, and then writes nothing.
func (m Text) Update(ctx context.Context, change func(text []byte) ([]byte, error)) error {
	for range attempts {
		old, version, err := m.load(ctx)
		if err != nil {
			return err
		}
		text, err := change(old)
		if err != nil || bytes.Equal(text, old) {
			return err
		}
		err = m.replace(ctx, text, version)
		if _, conflict := errors.AsType[*types.ConditionalCheckFailedException](err); !conflict {
			return err
		}
	}
	return fmt.Errorf("item %s of table %s changed %d times while it was updated", m.Name, m.Table, attempts)
}

// replace replaces the version of the text that was read, or 0 if there was none.
func (m Text) replace(ctx context.Context, text []byte, version uint64) error {
	number := func(n uint64) types.AttributeValue {
		return &types.AttributeValueMemberN{Value: strconv.FormatUint(n, 10)}
	}
	in := &dynamodb.PutItemInput{
		TableName: &m.Table,
		Item: map[string]types.AttributeValue{
			keyAttribute:     &types.AttributeValueMemberS{Value: m.Name},
			textAttribute:    &types.AttributeValueMemberS{Value: string(text)},
			versionAttribute: number(version + 1),
		},
		ConditionExpression: aws.String("attribute_not_exists(version)"),
	}
	if version > 0 {
		in.ConditionExpression = aws.String("version = :version")
		in.ExpressionAttributeValues = map[string]types.AttributeValue{":version": number(version)}
	}
	if _, err := m.Client.PutItem(ctx, in); err != nil {
		return fmt.Errorf("update item %s of table %s: %w", m.Name, m.Table, err)
	}
	return nil
}

func (m Text) load(ctx context.Context) (content []byte, version uint64, err error) {
	out, err := m.Client.GetItem(ctx, &dynamodb.GetItemInput{
		TableName:      &m.Table,
		Key:            map[string]types.AttributeValue{keyAttribute: &types.AttributeValueMemberS{Value: m.Name}},
		ConsistentRead: aws.Bool(true),
	})
	if err != nil {
		return nil, 0, fmt.Errorf("get item %s of table %s: %w", m.Name, m.Table, err)
	}
	if len(out.Item) == 0 {
		return nil, 0, nil
	}
	text, ok := out.Item[textAttribute].(*types.AttributeValueMemberS)
	if !ok {
		return nil, 0, fmt.Errorf("item %s of table %s has no text", m.Name, m.Table)
	}
	if n, ok := out.Item[versionAttribute].(*types.AttributeValueMemberN); ok {
		if version, err = strconv.ParseUint(n.Value, 10, 64); err != nil {
			return nil, 0, fmt.Errorf("item %s of table %s: version: %w", m.Name, m.Table, err)
		}
	}
	return []byte(text.Value), version, nil
}

// Save replaces the text.
func (m Text) Save(ctx context.Context, text []byte) error {
	return m.save(ctx, text, nil)
}

// SaveUntil replaces the text. DynamoDB may delete it after that time.
func (m Text) SaveUntil(ctx context.Context, text []byte, until time.Time) error {
	return m.save(ctx, text, &types.AttributeValueMemberN{Value: strconv.FormatInt(until.Unix(), 10)})
}

func (m Text) save(ctx context.Context, text []byte, expires types.AttributeValue) error {
	item := map[string]types.AttributeValue{
		keyAttribute:  &types.AttributeValueMemberS{Value: m.Name},
		textAttribute: &types.AttributeValueMemberS{Value: string(text)},
	}
	if expires != nil {
		item[expiresAttribute] = expires
	}
	if _, err := m.Client.PutItem(ctx, &dynamodb.PutItemInput{TableName: &m.Table, Item: item}); err != nil {
		return fmt.Errorf("put item %s into table %s: %w", m.Name, m.Table, err)
	}
	return nil
}
