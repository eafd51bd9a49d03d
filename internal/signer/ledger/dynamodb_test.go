package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger/ledgertest"
)

func TestDynamoDB(t *testing.T) {
	ledgertest.Run(t, func(*testing.T) ledgertest.Ledger {
		return ledger.NewDynamoDB(new(ledgertest.Table), "ledger", time.Now)
	})
}

func TestDynamoDBCrash(t *testing.T) {
	ledgertest.Crash(t, func(*testing.T) (ledger.DynamoDBClient, string) { return new(ledgertest.Table), "ledger" })
}

func TestDynamoDBInterleaved(t *testing.T) {
	ledgertest.Interleave(t, func(*testing.T) (ledger.DynamoDBClient, string) { return new(ledgertest.Table), "ledger" })
}

// noting is a table that records calls, and fails some of them.
type noting struct {
	ledgertest.Table
	mu    sync.Mutex
	calls []string
	// fail returns the error of a call, by its name and how often it was called
	// before, or nil.
	fail func(call string, before int) error
	// unread says that reads leave items unread.
	unread func(before int) bool
}

// note returns how often the call was made before.
func (n *noting) note(call string) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	before := 0
	for _, c := range n.calls {
		if c == call {
			before++
		}
	}
	n.calls = append(n.calls, call)
	if n.fail == nil {
		return before, nil
	}
	return before, n.fail(call, before)
}

func (n *noting) BatchGetItem(ctx context.Context, in *dynamodb.BatchGetItemInput, opts ...func(*dynamodb.Options)) (*dynamodb.BatchGetItemOutput, error) {
	before, err := n.note("BatchGetItem")
	if err != nil {
		return nil, err
	}
	if n.unread != nil && n.unread(before) {
		return &dynamodb.BatchGetItemOutput{UnprocessedKeys: in.RequestItems}, nil
	}
	return n.Table.BatchGetItem(ctx, in, opts...)
}

func (n *noting) PutItem(ctx context.Context, in *dynamodb.PutItemInput, opts ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	if _, err := n.note("PutItem"); err != nil {
		return nil, err
	}
	return n.Table.PutItem(ctx, in, opts...)
}

func (n *noting) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, opts ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	if _, err := n.note("TransactWriteItems"); err != nil {
		return nil, err
	}
	return n.Table.TransactWriteItems(ctx, in, opts...)
}

func (n *noting) Scan(ctx context.Context, in *dynamodb.ScanInput, opts ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	if _, err := n.note("Scan"); err != nil {
		return nil, err
	}
	return n.Table.Scan(ctx, in, opts...)
}

const day = 24 * time.Hour

func start() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

func instance(n int) ec2ref.Instance {
	return ec2ref.Instance{Account: "111122223333", Region: "us-west-2", ID: ec2ref.InstanceID(fmt.Sprintf("i-%017x", n))}
}

// claim is one of instance n, with a key and an address of its own.
func claim(n int, name string) ledger.Claim {
	return ledger.Claim{
		Instance: instance(n), Fingerprints: []string{fmt.Sprintf("k%d", n)},
		Hostname: name, Names: []string{fmt.Sprintf("10.0.0.%d", n)}, ValidUntil: start().Add(7 * day),
	}
}

func canceled(codes ...string) error {
	e := new(types.TransactionCanceledException)
	for _, code := range codes {
		e.CancellationReasons = append(e.CancellationReasons, types.CancellationReason{Code: aws.String(code)})
	}
	return fmt.Errorf("operation error DynamoDB: %w", e)
}

func isRefusal(err error) bool {
	return slices.ContainsFunc([]error{
		ledger.ErrKeyConflict, ledger.ErrKeyInUse, ledger.ErrNameInUse, ledger.ErrTooManyNames, ledger.ErrRetired, ledger.ErrUnclaimed,
	}, func(refusal error) bool { return errors.Is(err, refusal) })
}

func TestDynamoDBTriesAgain(t *testing.T) {
	tests := map[string]struct {
		call string
		err  error
	}{
		"transaction conflict":            {"TransactWriteItems", canceled("TransactionConflict", "None", "None", "None")},
		"conflict and lost race":          {"TransactWriteItems", canceled("None", "ConditionalCheckFailed", "TransactionConflict")},
		"lost race":                       {"TransactWriteItems", canceled("ConditionalCheckFailed")},
		"throttled transaction":           {"TransactWriteItems", canceled("None", "ThrottlingError")},
		"transaction over the throughput": {"TransactWriteItems", canceled("ProvisionedThroughputExceeded", "None")},
		"canceled without a reason":       {"TransactWriteItems", canceled()},
		"transaction under way":           {"TransactWriteItems", &types.TransactionInProgressException{}},
		"throughput of a read":            {"BatchGetItem", &types.ProvisionedThroughputExceededException{}},
		"throttled read":                  {"BatchGetItem", &types.ThrottlingException{}},
		"too many requests":               {"BatchGetItem", &types.RequestLimitExceeded{}},
		"DynamoDB's own error":            {"BatchGetItem", &types.InternalServerError{}},
		"an error without a type":         {"BatchGetItem", &smithy.GenericAPIError{Code: "ThrottlingException"}},
		"throughput of a write":           {"PutItem", &types.ProvisionedThroughputExceededException{}},
		"write during a transaction":      {"PutItem", &types.TransactionConflictException{}},
		"lost race of a write":            {"PutItem", &types.ConditionalCheckFailedException{}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const failures = 5
				table := &noting{fail: func(call string, before int) error {
					if call == test.call && before < failures {
						return test.err
					}
					return nil
				}}
				l := ledger.NewDynamoDB(table, "ledger", start)
				g, err := l.Claim(t.Context(), claim(1, "web"), start())
				if err != nil {
					t.Fatal(err)
				}
				if err := l.Confirm(t.Context(), claim(1, "web"), g, start()); err != nil {
					t.Fatal(err)
				}
				made := len(table.calls)
				if made < failures+3 {
					t.Errorf("calls %v: nothing failed", table.calls)
				}
			})
		})
	}
}

func TestDynamoDBTriesAgainWhatIsUnread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := new(noting)
		table.unread = func(before int) bool { return before < 3 }
		l := ledger.NewDynamoDB(table, "ledger", start)
		if _, err := l.Claim(t.Context(), claim(1, "web"), start()); err != nil {
			t.Fatal(err)
		}
		r, err := l.Lookup(t.Context(), instance(1))
		if err != nil || r.Generation != 1 {
			t.Errorf("record %+v, error %v", r, err)
		}
	})
}

func TestDynamoDBFails(t *testing.T) {
	tests := map[string]struct {
		call string
		err  error
	}{
		"an invalid transaction":         {"TransactWriteItems", canceled("None", "ValidationError")},
		"invalid, and in conflict":       {"TransactWriteItems", canceled("TransactionConflict", "ItemCollectionSizeLimitExceeded")},
		"no permission":                  {"BatchGetItem", &smithy.GenericAPIError{Code: "AccessDeniedException"}},
		"no table":                       {"BatchGetItem", &types.ResourceNotFoundException{}},
		"no way there":                   {"BatchGetItem", errors.New("connection refused")},
		"no way back after a write":      {"TransactWriteItems", errors.New("connection reset")},
		"a transaction of another token": {"TransactWriteItems", &types.IdempotentParameterMismatchException{}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			table := &noting{fail: func(call string, _ int) error {
				if call == test.call {
					return test.err
				}
				return nil
			}}
			l := ledger.NewDynamoDB(table, "ledger", start)
			_, err := l.Claim(t.Context(), claim(1, "web"), start())
			if !errors.Is(err, test.err) || isRefusal(err) {
				t.Errorf("error %v, want %v", err, test.err)
			}
			if n := len(table.calls); n > 2 {
				t.Errorf("%d calls, want no second attempt: %v", n, table.calls)
			}
		})
	}
}

// TestDynamoDBGivesUp has endless conflicts. The waits grow, and end with the context or after
// a bounded number of attempts; neither is a refusal.
func TestDynamoDBGivesUp(t *testing.T) {
	run := func(t *testing.T, timeout time.Duration) (elapsed time.Duration, attempts int, err error) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			began := time.Now()
			last, longest := began, time.Duration(0)
			table := &noting{fail: func(call string, before int) error {
				if call != "TransactWriteItems" {
					return nil
				}
				if waited := time.Since(last); waited > longest {
					t.Errorf("waited %s before attempt %d, want at most %s", waited, before+1, longest)
				}
				last, longest = time.Now(), min(20*time.Millisecond<<before, time.Second)
				return canceled("TransactionConflict")
			}}
			_, err = ledger.NewDynamoDB(table, "ledger", start).Claim(ctx, claim(1, "web"), start())
			elapsed, attempts = time.Since(began), len(table.calls)/2
		})
		return elapsed, attempts, err
	}
	t.Run("with the context", func(t *testing.T) {
		elapsed, _, err := run(t, 50*time.Millisecond)
		if !errors.Is(err, context.DeadlineExceeded) || isRefusal(err) {
			t.Errorf("error %v, want that of the context", err)
		}
		if elapsed != 50*time.Millisecond {
			t.Errorf("it took %s", elapsed)
		}
	})
	t.Run("after many attempts", func(t *testing.T) {
		_, attempts, err := run(t, time.Hour)
		if _, conflict := errors.AsType[*types.TransactionCanceledException](err); !conflict || isRefusal(err) {
			t.Errorf("error %v, want the conflict", err)
		}
		if attempts != 12 {
			t.Errorf("%d attempts, want 12", attempts)
		}
	})
}

// TestDynamoDBCalls says what each operation costs.
func TestDynamoDBCalls(t *testing.T) {
	table := new(noting)
	l := ledger.NewDynamoDB(table, "ledger", start)
	var g ledger.Grant
	claims := func(c ledger.Claim, now time.Time) func() error {
		return func() (err error) {
			c.ValidUntil = now.Add(7 * day)
			g, err = l.Claim(t.Context(), c, now)
			return err
		}
	}
	ctx, later := t.Context(), start().Add(60*day)
	steps := []struct {
		name string
		run  func() error
		want []string
	}{
		{"first claim", claims(claim(1, "web"), start()), []string{"BatchGetItem", "TransactWriteItems"}},
		{"confirmation", func() error { return l.Confirm(ctx, claim(1, "web"), g, start()) }, []string{"PutItem"}},
		{"renewal", claims(claim(1, "web"), start().Add(day)), []string{"BatchGetItem", "PutItem"}},
		{"its confirmation", func() error { return l.Confirm(ctx, claim(1, "web"), g, start()) }, []string{"PutItem"}},
		{"a confirmation after a note", func() error {
			if err := l.SeeTags(ctx, instance(1), 1); err != nil {
				return err
			}
			table.calls = nil
			return l.Confirm(ctx, claim(1, "web"), g, start())
		}, []string{"PutItem", "BatchGetItem", "PutItem"}},
		{"the same again", claims(claim(1, "web"), start().Add(day)), []string{"BatchGetItem"}},
		{"end", func() error { return l.Retire(ctx, instance(1)) }, []string{"BatchGetItem", "BatchGetItem", "TransactWriteItems"}},
		{"end again", func() error { return l.Retire(ctx, instance(1)) }, []string{"BatchGetItem"}},
		{"claim of a name set free", claims(claim(2, "web"), later), []string{"BatchGetItem", "BatchGetItem", "TransactWriteItems"}},
		{"lookup", func() error { _, err := l.Lookup(ctx, instance(2)); return err }, []string{"BatchGetItem"}},
	}
	for _, step := range steps {
		table.calls = nil
		if err := step.run(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if !slices.Equal(table.calls, step.want) {
			t.Errorf("%s: calls %v, want %v", step.name, table.calls, step.want)
		}
	}
}

func expires(item map[string]types.AttributeValue) string {
	if n, ok := item["expires"].(*types.AttributeValueMemberN); ok {
		return n.Value
	}
	return ""
}

func epoch(t time.Time) string { return fmt.Sprint(t.Unix()) }

func instancePK(n int) string {
	return fmt.Sprintf("instance#%s/%s/%s", instance(n).Account, instance(n).Region, instance(n).ID)
}

func TestDynamoDBTombstone(t *testing.T) {
	tests := map[string]struct{ endedAt, want time.Time }{
		"certificates are out":        {start().Add(day), start().Add(14 * day)},
		"certificates ended long ago": {start().Add(60 * day), start().Add(67 * day)},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			table := new(ledgertest.Table)
			l := ledger.NewDynamoDB(table, "ledger", func() time.Time { return test.endedAt })
			if _, err := l.Claim(t.Context(), claim(1, "web"), start()); err != nil {
				t.Fatal(err)
			}
			for _, pk := range []string{instancePK(1), "name#web", "name#10.0.0.1", "key#k1"} {
				if e := expires(table.Item(pk)); e != "" {
					t.Errorf("%s expires at %s before the end", pk, e)
				}
			}
			if err := l.Retire(t.Context(), instance(1)); err != nil {
				t.Fatal(err)
			}
			for pk, want := range map[string]string{
				instancePK(1): epoch(test.want), "name#web": epoch(test.want), "name#10.0.0.1": epoch(test.want), "key#k1": "",
			} {
				if e := expires(table.Item(pk)); e != want {
					t.Errorf("%s expires at %q, want %q", pk, e, want)
				}
			}
		})
	}
}

// An event after the end must not make the tombstone permanent, nor bring the instance back.
func TestDynamoDBLateEventsLeaveTheTombstone(t *testing.T) {
	table := new(ledgertest.Table)
	l := ledger.NewDynamoDB(table, "ledger", start)
	g, err := l.Claim(t.Context(), claim(1, "web"), start())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Retire(t.Context(), instance(1)); err != nil {
		t.Fatal(err)
	}
	tombstone := table.Item(instancePK(1))
	permit := ledger.Permit{Fingerprint: "k9", ValidUntil: start().Add(time.Hour), By: "somebody"}
	for what, err := range map[string]error{
		"note":         l.SeeTags(t.Context(), instance(1), 9),
		"permit":       l.Permit(t.Context(), instance(1), permit),
		"confirmation": l.Confirm(t.Context(), claim(1, "web"), g, start()),
	} {
		if !errors.Is(err, ledger.ErrRetired) {
			t.Errorf("%s: error %v, want %v", what, err, ledger.ErrRetired)
		}
	}
	if got := table.Item(instancePK(1)); !reflect.DeepEqual(got, tombstone) {
		t.Errorf("the tombstone is %v, want %v", got, tombstone)
	}
}

// A note about an instance that never enrolled disappears by itself, and a claim makes the
// record permanent.
func TestDynamoDBNoteOfAnUnknownInstance(t *testing.T) {
	table := new(ledgertest.Table)
	l := ledger.NewDynamoDB(table, "ledger", start)
	if err := l.SeeTags(t.Context(), instance(1), 1); !errors.Is(err, ledger.ErrSeen) {
		t.Fatal(err)
	}
	if got, want := expires(table.Item(instancePK(1))), epoch(start().Add(time.Hour)); got != want {
		t.Errorf("it expires at %q, want %q", got, want)
	}
	if _, err := l.Claim(t.Context(), claim(1, "web"), start()); err != nil {
		t.Fatal(err)
	}
	if got := expires(table.Item(instancePK(1))); got != "" {
		t.Errorf("after a claim it expires at %q", got)
	}
}

func TestDynamoDBTombstoneOfAnUnknownInstance(t *testing.T) {
	table := new(ledgertest.Table)
	if err := ledger.NewDynamoDB(table, "ledger", start).Retire(t.Context(), instance(1)); err != nil {
		t.Fatal(err)
	}
	if got, want := expires(table.Item(instancePK(1))), epoch(start().Add(7*day)); got != want {
		t.Errorf("it expires at %q, want %q", got, want)
	}
}

// TestDynamoDBDeletesLate runs with each of the items that may be deleted still there, or
// gone. Nobody may see a difference.
func TestDynamoDBDeletesLate(t *testing.T) {
	later := start().Add(60 * day)
	for name, deleted := range map[string][]string{
		"nothing is deleted yet":   nil,
		"the tombstone is deleted": {instancePK(1)},
		"a name is deleted":        {"name#web"},
		"all is deleted":           {instancePK(1), "name#web", "name#10.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			table := new(ledgertest.Table)
			l := ledger.NewDynamoDB(table, "ledger", start)
			if _, err := l.Claim(t.Context(), claim(1, "web"), start()); err != nil {
				t.Fatal(err)
			}
			if err := l.Retire(t.Context(), instance(1)); err != nil {
				t.Fatal(err)
			}
			for _, pk := range deleted {
				table.Delete(pk)
			}
			c := claim(2, "web")
			c.Names, c.ValidUntil = []string{"10.0.0.1"}, later.Add(7*day)
			if _, err := l.Claim(t.Context(), c, later); err != nil {
				t.Fatal(err)
			}
			for _, pk := range []string{"name#web", "name#10.0.0.1", instancePK(2)} {
				if e := expires(table.Item(pk)); e != "" {
					t.Errorf("%s of the new holder expires at %s", pk, e)
				}
			}
			c = claim(3, "db")
			c.Fingerprints = []string{"k1"}
			if _, err := l.Claim(t.Context(), c, later); !errors.Is(err, ledger.ErrKeyInUse) {
				t.Errorf("claim of its key: error %v, want %v", err, ledger.ErrKeyInUse)
			}
		})
	}
}

// A tag event about an instance that disappeared long ago must not keep its name from others.
func TestDynamoDBNoteOfAFormerHolder(t *testing.T) {
	table := new(ledgertest.Table)
	l := ledger.NewDynamoDB(table, "ledger", start)
	if _, err := l.Claim(t.Context(), claim(1, "web"), start()); err != nil {
		t.Fatal(err)
	}
	table.Delete(instancePK(1)) // the tombstone has expired
	if err := l.SeeTags(t.Context(), instance(1), 1); !errors.Is(err, ledger.ErrSeen) {
		t.Fatal(err)
	}
	if _, err := l.Claim(t.Context(), claim(2, "web"), start().Add(60*day)); err != nil {
		t.Errorf("claim of its name: %v", err)
	}
}

// In TestDynamoDBTakingLosesRace the former holder comes back between read and write. The last
// condition is for this.
func TestDynamoDBTakingLosesRace(t *testing.T) {
	later := start().Add(60 * day)
	table := new(noting)
	l := ledger.NewDynamoDB(table, "ledger", start)
	if _, err := l.Claim(t.Context(), claim(1, "web"), start()); err != nil {
		t.Fatal(err)
	}
	record := table.Item(instancePK(1))
	table.Delete(instancePK(1))
	table.fail = func(call string, before int) error {
		if call == "TransactWriteItems" && before == 1 {
			_, err := table.Table.PutItem(t.Context(), &dynamodb.PutItemInput{
				Item: record, ConditionExpression: aws.String("attribute_not_exists(pk)"),
			})
			return err
		}
		return nil
	}
	if _, err := l.Claim(t.Context(), claim(2, "web"), later); !errors.Is(err, ledger.ErrNameInUse) {
		t.Errorf("error %v, want %v", err, ledger.ErrNameInUse)
	}
}

// In TestDynamoDBMendedByHand an operator gives an instance's name to another. Retiring the
// instance must succeed, and leave that name alone.
func TestDynamoDBMendedByHand(t *testing.T) {
	table := new(ledgertest.Table)
	l := ledger.NewDynamoDB(table, "ledger", start)
	if _, err := l.Claim(t.Context(), claim(1, "web"), start()); err != nil {
		t.Fatal(err)
	}
	table.Delete("name#web")
	if _, err := l.Claim(t.Context(), claim(2, "web"), start()); err != nil {
		t.Fatal(err)
	}
	edited := table.Item("name#web")
	if _, err := l.Claim(t.Context(), claim(1, "web"), start()); !errors.Is(err, ledger.ErrNameInUse) {
		t.Errorf("error %v, want %v", err, ledger.ErrNameInUse)
	}
	if err := l.Retire(t.Context(), instance(1)); err != nil {
		t.Fatal(err)
	}
	if got := table.Item("name#web"); !reflect.DeepEqual(got, edited) {
		t.Errorf("the name's item is %v, want %v", got, edited)
	}
}

// TestDynamoDBSpoiledItem has items that nothing here wrote. They must neither free what they
// hold nor look like a refusal.
func TestDynamoDBSpoiledItem(t *testing.T) {
	s := func(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }
	n := func(s string) types.AttributeValue { return &types.AttributeValueMemberN{Value: s} }
	for name, spoiled := range map[string]map[string]types.AttributeValue{
		"no version":              {"pk": s(instancePK(1)), "generation": n("1")},
		"version of another type": {"pk": s(instancePK(1)), "version": s("1")},
		"negative version":        {"pk": s(instancePK(1)), "version": n("-1")},
		"ended of another type":   {"pk": s(instancePK(1)), "version": n("1"), "ended": s("true")},
		"keys of another type":    {"pk": s(instancePK(1)), "version": n("1"), "keys": s("k1")},
		"a name's end":            {"pk": s(instancePK(1)), "version": n("1"), "names": &types.AttributeValueMemberM{Value: map[string]types.AttributeValue{"web": s("soon")}}},
		"a permit's end":          {"pk": s(instancePK(1)), "version": n("1"), "permit": &types.AttributeValueMemberM{Value: map[string]types.AttributeValue{"end": n("1.5")}}},
		"a name's holder":         {"pk": s("name#web"), "holder": s("i-1")},
		"a name without holder":   {"pk": s("name#web")},
		"a key's holder":          {"pk": s("key#k1"), "holder": n("1")},
	} {
		t.Run(name, func(t *testing.T) {
			table := new(noting)
			if _, err := table.Table.PutItem(t.Context(), &dynamodb.PutItemInput{
				Item: spoiled, ConditionExpression: aws.String("attribute_not_exists(pk)"),
			}); err != nil {
				t.Fatal(err)
			}
			_, err := ledger.NewDynamoDB(table, "ledger", start).Claim(t.Context(), claim(1, "web"), start())
			if err == nil || isRefusal(err) {
				t.Errorf("error %v, want one that is no refusal", err)
			}
			if want := []string{"BatchGetItem"}; !slices.Equal(table.calls, want) {
				t.Errorf("calls %v, want %v", table.calls, want)
			}
		})
	}
}

// DynamoDB deletes a tombstone in time, and the next record of the instance counts its
// versions from 1 again. A process that was frozen since must not mistake it for the one it
// knows.
func TestDynamoDBFrozenWriterOverwritesNoNewRecord(t *testing.T) {
	for what, write := range map[string]func(l *ledger.DynamoDB, g ledger.Grant) error{
		"confirmation": func(l *ledger.DynamoDB, g ledger.Grant) error {
			return l.Confirm(t.Context(), claim(1, "web"), g, start())
		},
		"note": func(l *ledger.DynamoDB, _ ledger.Grant) error {
			_, err := l.Announce(t.Context(), instance(1))
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			table := new(noting)
			l := ledger.NewDynamoDB(table, "ledger", start)
			g, err := l.Claim(t.Context(), claim(1, "web"), start())
			if err != nil {
				t.Fatal(err)
			}
			renewed := claim(1, "web")
			renewed.Fingerprints, renewed.ValidUntil = []string{"new"}, renewed.ValidUntil.Add(30*day)
			table.fail = func(call string, before int) error {
				if call != "PutItem" || before > 0 {
					return nil
				}
				table.Delete(instancePK(1))
				if _, err := ledger.NewDynamoDB(&table.Table, "ledger", start).Claim(t.Context(), renewed, start().Add(30*day)); err != nil {
					t.Error(err)
				}
				return nil
			}
			if err := write(l, g); what == "confirmation" && !errors.Is(err, ledger.ErrUnclaimed) {
				t.Errorf("error %v, want %v", err, ledger.ErrUnclaimed)
			}
			r, err := l.Lookup(t.Context(), instance(1))
			if err != nil || !slices.Equal(r.Fingerprints, renewed.Fingerprints) || r.ConfirmedHostname != "" {
				t.Errorf("record %+v, error %v: want the new one", r, err)
			}
		})
	}
}
