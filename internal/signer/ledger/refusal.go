package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// Refusal is the latest refused request of an instance that proved its identity. It is for
// reports: nothing is decided by it.
type Refusal struct {
	// At is when, in whole seconds.
	At time.Time
	// Code is the error code in the answer.
	Code string
	// Reason says why, for operators: one printable line of at most MaxReason bytes.
	Reason string
}

const (
	// MaxReason bounds the Reason of a Refusal in bytes.
	MaxReason = 300
	// refusalRetention is how long the ledger keeps a refusal: longer than a machine pauses
	// between two attempts.
	refusalRetention = 30 * 24 * time.Hour
)

// bounded returns the refusal as the ledger keeps it. Parts of a reason come from tags and
// requests, so anything that could change a terminal becomes a space.
func (r Refusal) bounded() Refusal {
	r.At = r.At.UTC().Truncate(time.Second)
	r.Reason = strings.Map(func(c rune) rune {
		if c == utf8.RuneError || !unicode.IsPrint(c) {
			return ' '
		}
		return c
	}, r.Reason)
	if len(r.Reason) > MaxReason {
		const more = "…"
		r.Reason = strings.ToValidUTF8(r.Reason[:MaxReason-len(more)], "") + more
	}
	return r
}

// NoteRefusal notes that a request of the instance was refused, unless a later refusal is
// noted already. It changes no record, and makes one write.
func (d *DynamoDB) NoteRefusal(ctx context.Context, i ec2ref.Instance, r Refusal) error {
	r = r.bounded()
	it := item{
		attrPK: text(refusedPK(i)), attrRefusedAt: number(r.At.Unix()), attrRefusalCode: text(r.Code), attrRefusalReason: text(r.Reason),
		attrExpires: number(r.At.Add(refusalRetention).Unix()),
	}
	_, err := d.client.PutItem(ctx, &dynamodb.PutItemInput{
		TableName: &d.table, Item: it,
		ConditionExpression:       aws.String("attribute_not_exists(pk) OR refused_at < :at"),
		ExpressionAttributeValues: item{":at": number(r.At.Unix())},
	})
	if _, later := errors.AsType[*types.ConditionalCheckFailedException](err); err != nil && !later {
		return fmt.Errorf("note the refusal of %s: %w", i.ID, err)
	}
	return nil
}

func parseRefusal(it item) (Refusal, error) {
	p := parser{item: it}
	r := Refusal{At: p.time(attrRefusedAt), Code: p.text(attrRefusalCode), Reason: p.text(attrRefusalReason)}
	if p.err != nil {
		return Refusal{}, fmt.Errorf("read the ledger's item %s: %w", p.text(attrPK), p.err)
	}
	return r, nil
}
