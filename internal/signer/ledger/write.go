package ledger

import (
	"context"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// write is a conditional write of several items, all or none. Its conditions require that
// the items read have not changed. DynamoDB accepts each item once, and at most maxActions
// items. A claim writes at most 2 + MaxKeys + 2*MaxNames; dropped names use the rest.
type write struct {
	table string
	// expires is when DynamoDB may delete the items. Zero means never.
	expires time.Time
	actions []types.TransactWriteItem
}

// putRecord puts the record if it has not changed since the read. The version alone does
// not prove that to a process that was frozen for weeks: DynamoDB deletes a tombstone, and
// the next record of the instance counts from 1 again.
func (w *write) putRecord(i ec2ref.Instance, r, old record) {
	r.version = old.version + 1
	if old.version == 0 {
		w.put(formatRecord(i, r), "attribute_not_exists(pk)", nil)
		return
	}
	condition := "version = :version AND generation = :generation"
	values := item{":version": number(old.version), ":generation": number(old.generation)}
	if len(old.names) == 0 {
		w.put(formatRecord(i, r), condition, values)
		return
	}
	values[":names"] = formatNames(old.names)
	w.put(formatRecord(i, r), condition+" AND #names = :names", values)
	// A reserved word in DynamoDB.
	w.actions[len(w.actions)-1].Put.ExpressionAttributeNames = map[string]string{"#names": attrNames}
}

// putHolder makes the instance the holder of a key or a name. The item must be missing, or
// name the instance or the former holder.
func (w *write) putHolder(pk string, i, former ec2ref.Instance) {
	w.put(
		item{attrPK: text(pk), attrHolder: text(i.String())},
		"attribute_not_exists(pk) OR holder = :former",
		item{":former": text(former.String())},
	)
}

// releaseHolder notes on a name's item which operator released it. The item still names
// the holder: the name is free because the holder's record does not list it.
func (w *write) releaseHolder(name string, holder ec2ref.Instance, by string, expires time.Time) {
	w.put(
		item{
			attrPK: text(namePK(name)), attrHolder: text(holder.String()), attrReleasedBy: text(by),
			attrExpires: number(expires.Unix()),
		},
		"holder = :former",
		item{":former": text(holder.String())},
	)
}

// expireHolder sets an expiry on the item of a dropped name. The same transaction writes
// the holder's record without the name. A later claim of the name puts the item again,
// without an expiry.
func (w *write) expireHolder(name string, holder ec2ref.Instance, expires time.Time) {
	w.put(
		item{attrPK: text(namePK(name)), attrHolder: text(holder.String()), attrExpires: number(expires.Unix())},
		"holder = :former",
		item{":former": text(holder.String())},
	)
}

// maxActions is DynamoDB's bound on a transaction (Amazon DynamoDB API Reference,
// TransactWriteItems).
const maxActions = 100

// checkGivenUp requires that the former holder of a name still does not hold it: either
// it is retired, so its record cannot change, or its record has not changed since the
// read.
func (w *write) checkGivenUp(t holding) {
	condition, values := "version = :version", item{":version": number(t.version)}
	if t.retired {
		// Generation 0 is only a note of a tag event, written after the tombstone expired.
		condition = "attribute_not_exists(pk) OR ended = :true OR generation = :zero"
		values = item{":true": &types.AttributeValueMemberBOOL{Value: true}, ":zero": number[uint64](0)}
	}
	w.actions = append(w.actions, types.TransactWriteItem{ConditionCheck: &types.ConditionCheck{
		TableName:                 &w.table,
		Key:                       item{attrPK: text(instancePK(t.holder))},
		ConditionExpression:       &condition,
		ExpressionAttributeValues: values,
	}})
}

func (w *write) put(it item, condition string, values item) {
	if !w.expires.IsZero() {
		it[attrExpires] = number(w.expires.Unix())
	}
	w.actions = append(w.actions, types.TransactWriteItem{Put: &types.Put{
		TableName:                 &w.table,
		Item:                      it,
		ConditionExpression:       &condition,
		ExpressionAttributeValues: values,
	}})
}

// commit writes. One item needs no transaction, which would cost twice as much.
func (w *write) commit(ctx context.Context, client DynamoDBClient) error {
	if put := w.actions[0].Put; len(w.actions) == 1 && put != nil {
		_, err := client.PutItem(ctx, &dynamodb.PutItemInput{
			TableName:                 put.TableName,
			Item:                      put.Item,
			ConditionExpression:       put.ConditionExpression,
			ExpressionAttributeNames:  put.ExpressionAttributeNames,
			ExpressionAttributeValues: put.ExpressionAttributeValues,
		})
		return err
	}
	_, err := client.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: w.actions})
	return err
}
