package ledger

import (
	"context"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// write is a conditional write of several items, all or none. Its conditions say
// that what was decided on has not changed. It names each item once, as DynamoDB
// demands, and at most 2 + MaxKeys + 2*MaxNames of them, of the maxActions that may be.
// Names that are dropped take what room is left.
type write struct {
	table string
	// expires is when the items that are put may be deleted. Zero is never.
	expires time.Time
	actions []types.TransactWriteItem
}

// putRecord puts the record if it is still the one that was read. The version alone does
// not show that to a process that was frozen for weeks: DynamoDB deletes a tombstone, and
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
	// A reserved word of DynamoDB's.
	w.actions[len(w.actions)-1].Put.ExpressionAttributeNames = map[string]string{"#names": attrNames}
}

// putHolder makes the instance the holder of a key or a name, if nobody is, or it is
// already, or the former holder still is.
func (w *write) putHolder(pk string, i, former ec2ref.Instance) {
	w.put(
		item{attrPK: text(pk), attrHolder: text(i.String())},
		"attribute_not_exists(pk) OR holder = :former",
		item{":former": text(former.String())},
	)
}

// releaseHolder notes on a name who released it. Who the holder was stays: the name
// is free because the holder's record does not list it.
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

// expireHolder lets the item of a name be deleted that its holder's record, which the
// same transaction writes, no longer lists. Whoever claims the name meanwhile puts the
// item again, without an end.
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

// checkGivenUp wants that the former holder of a name still does not hold it: it is
// gone for good, and its claims cannot change any more, or they have not changed since
// they were read.
func (w *write) checkGivenUp(t tenure) {
	condition, values := "version = :version", item{":version": number(t.version)}
	if t.ended {
		// Of generation 0 is a mere note of a tag event, written after the tombstone went.
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
