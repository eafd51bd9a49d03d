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
)

const (
	attempts    = 12
	firstWait   = 20 * time.Millisecond
	longestWait = time.Second
)

// errBusy says that DynamoDB answered only part of a read.
var errBusy = errors.New("DynamoDB left items unread")

// patiently reads, decides and writes again while others write the same items or
// DynamoDB is busy. Neither is a refusal: they say nothing about who may hold what. The
// waits have full jitter, because a whole fleet may boot at once.
func patiently(ctx context.Context, attempt func(context.Context) error) error {
	for n := 1; ; n++ {
		err := attempt(ctx)
		if err == nil || !isPassing(err) {
			return err
		}
		if n == attempts {
			return fmt.Errorf("after %d attempts: %w", n, err)
		}
		longest := min(firstWait<<(n-1), longestWait)
		if wait(ctx, rand.N(longest)) != nil { //nolint:gosec // jitter is no secret
			return fmt.Errorf("%w, after: %w", ctx.Err(), err)
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
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
