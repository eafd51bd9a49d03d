package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"

	"github.com/hallmark-ssh/hallmark/internal/backoff"
)

// attempts bounds how often an operation is tried.
const attempts = 12

// errBusy says that DynamoDB answered only part of a read.
var errBusy = errors.New("DynamoDB did not return all items")

// retry reads, decides and writes again while others write the same items or
// DynamoDB is busy. Neither is a refusal: they say nothing about who may hold what. The
// waits have full jitter, because a whole fleet may boot at once.
func retry(ctx context.Context, attempt func(context.Context) error) error {
	policy := backoff.Policy{
		Growth: backoff.Growth{First: 20 * time.Millisecond, Longest: time.Second},
		Random: rand.Float64, // a fleet boots at once
	}
	err := policy.Do(ctx, attempts, func(ctx context.Context) (again bool, after time.Duration, err error) {
		err = attempt(ctx)
		return isPassing(err), 0, err
	})
	switch {
	case !isPassing(err):
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("%w, after: %w", ctx.Err(), err)
	default:
		return fmt.Errorf("after %d attempts: %w", attempts, err)
	}
}

// isPassing reports whether a retry may help. It may not for a network error: the client
// has already retried, and the caller can repeat any operation.
func isPassing(err error) bool {
	if errors.Is(err, errBusy) {
		return true
	}
	if canceled, ok := errors.AsType[*types.TransactionCanceledException](err); ok {
		// Each reason must be temporary. An item that is too large, for example, stays
		// too large.
		return !slices.ContainsFunc(canceled.CancellationReasons, func(r types.CancellationReason) bool {
			return !isPassingReason(aws.ToString(r.Code))
		})
	}
	api, ok := errors.AsType[smithy.APIError](err)
	return ok && isPassingCode(api.ErrorCode())
}

// isPassingReason knows the codes of TransactionCanceledException
// (Amazon DynamoDB API Reference, TransactWriteItems).
func isPassingReason(code string) bool {
	switch code {
	case "", "None", "ConditionalCheckFailed", "TransactionConflict", "ProvisionedThroughputExceeded", "ThrottlingError":
		return true
	default:
		return false
	}
}

// isPassingCode knows the codes of single calls (Amazon DynamoDB Developer Guide,
// "Error handling with DynamoDB").
func isPassingCode(code string) bool {
	switch code {
	case "ConditionalCheckFailedException", "TransactionConflictException", "TransactionInProgressException",
		"ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded", "InternalServerError":
		return true
	default:
		return false
	}
}
