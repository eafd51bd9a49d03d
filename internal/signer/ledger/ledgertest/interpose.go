package ledgertest

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

// interposed is a client between whose calls something happens.
type interposed struct {
	ledger.DynamoDBClient
	// around is given the number of a call, from 1, and makes it or doesn't.
	around func(n int, call func() error) error

	mu    sync.Mutex
	calls int
}

func (i *interposed) BatchGetItem(ctx context.Context, in *dynamodb.BatchGetItemInput, opts ...func(*dynamodb.Options)) (*dynamodb.BatchGetItemOutput, error) {
	return interpose(i, func() (*dynamodb.BatchGetItemOutput, error) { return i.DynamoDBClient.BatchGetItem(ctx, in, opts...) })
}

func (i *interposed) PutItem(ctx context.Context, in *dynamodb.PutItemInput, opts ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	return interpose(i, func() (*dynamodb.PutItemOutput, error) { return i.DynamoDBClient.PutItem(ctx, in, opts...) })
}

func (i *interposed) Scan(ctx context.Context, in *dynamodb.ScanInput, opts ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	return interpose(i, func() (*dynamodb.ScanOutput, error) { return i.DynamoDBClient.Scan(ctx, in, opts...) })
}

func (i *interposed) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, opts ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	return interpose(i, func() (*dynamodb.TransactWriteItemsOutput, error) {
		return i.DynamoDBClient.TransactWriteItems(ctx, in, opts...)
	})
}

func interpose[Out any](i *interposed, call func() (*Out, error)) (out *Out, err error) {
	i.mu.Lock()
	i.calls++
	n := i.calls
	i.mu.Unlock()
	err = i.around(n, func() error {
		out, err = call()
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// operation is an operation to disturb, with its surroundings.
type operation struct {
	// prepare creates what was there before.
	prepare func(*fixture)
	// run is the operation itself.
	run func(*fixture) (ledger.Grant, error)
	// rival asks for what run asks for, for another instance. If it is nil, nobody can.
	rival func(*fixture) (ledger.Grant, error)
	// recounts says that a repetition starts another generation of the record.
	recounts bool
}

func claimFor(n int, name string, keys ...string) func(*fixture) (ledger.Grant, error) {
	return func(f *fixture) (ledger.Grant, error) {
		c := f.claimOf(n, name, keys...)
		c.Names = []string{"address-of-" + name}
		return f.Claim(f.t.Context(), c, f.now)
	}
}

func operations() map[string]operation {
	enrolled := func(f *fixture) { f.enroll(1, "web", "k1") }
	return map[string]operation{
		"first claim, name wanted by another": {
			prepare: func(*fixture) {},
			run:     claimFor(1, "web", "k1", "k2"), rival: claimFor(2, "web", "k3"),
		},
		"first claim, key held by another": {
			prepare: func(*fixture) {},
			run:     claimFor(1, "web", "k1", "k2"), rival: claimFor(2, "db", "k3", "k2"),
		},
		"renewal": {
			prepare: func(f *fixture) { enrolled(f); f.now = f.now.Add(lifetime / 3) },
			run:     claimFor(1, "web", "k1"), rival: claimFor(2, "web", "k2"),
		},
		"renaming": {
			prepare: enrolled,
			run:     claimFor(1, "www", "k1"), rival: claimFor(2, "www", "k2"),
		},
		"another key": {
			prepare: enrolled,
			run:     claimFor(1, "web", "k1", "k2"), rival: claimFor(2, "db", "k2"),
		},
		"claim of a name set free": {
			prepare: func(f *fixture) { enrolled(f); f.endFirst(); f.now = f.now.Add(lifetime + time.Second) },
			run:     claimFor(2, "web", "k2"), rival: claimFor(3, "web", "k3"),
		},
		"claim of a name that its holder dropped": {
			prepare: func(f *fixture) {
				enrolled(f)
				f.enroll(1, "www", "k1")
				f.now = f.now.Add(lifetime + time.Second)
				f.claim(nil, 1, "www", "k1")
			},
			run: claimFor(2, "web", "k2"), rival: claimFor(1, "web", "k1"),
		},
		"release": {
			prepare: func(f *fixture) { enrolled(f); f.now = f.now.Add(lifetime + time.Second) },
			run: func(f *fixture) (ledger.Grant, error) {
				_, err := f.Release(f.t.Context(), "web", operator, f.now)
				if errors.Is(err, ledger.ErrNotHeld) {
					err = nil // an operator who repeats it finds it done
				}
				return ledger.Grant{}, err
			},
		},
		"claim that drops a name": {
			prepare: func(f *fixture) {
				enrolled(f)
				f.enroll(1, "www", "k1")
				f.now = f.now.Add(lifetime + time.Second)
			},
			run: claimFor(1, "www", "k1"),
		},
		"leave": {
			prepare: enrolled, recounts: true,
			run: func(f *fixture) (ledger.Grant, error) {
				l := ledger.Leave{Instance: instance(1), Fingerprints: []string{"k1"}, IssuedAt: f.now}
				_, err := f.Leave(f.t.Context(), l, f.now)
				return ledger.Grant{}, err
			},
		},
		"end of an expired record": {
			prepare: func(f *fixture) { enrolled(f); f.now = f.now.Add(lifetime + time.Second) },
			run: func(f *fixture) (ledger.Grant, error) {
				_, err := f.RetireExpired(f.t.Context(), instance(1), f.now)
				return ledger.Grant{}, err
			},
		},
		"re-key": {
			prepare: func(f *fixture) { enrolled(f); f.permit(nil, 1, "k2") },
			run:     claimFor(1, "web", "k2"), rival: claimFor(2, "db", "k2"),
		},
		"confirmation": {
			prepare: func(f *fixture) { f.claim(nil, 1, "web", "k1") },
			run: func(f *fixture) (ledger.Grant, error) {
				return ledger.Grant{}, f.Confirm(f.t.Context(), f.claimOf(1, "web", "k1"), ledger.Grant{Generation: 1}, f.now)
			},
		},
		"permit": {
			prepare: enrolled,
			run: func(f *fixture) (ledger.Grant, error) {
				p := ledger.Permit{Fingerprint: "k2", ValidUntil: f.now.Add(time.Hour), By: operator}
				return ledger.Grant{}, f.Permit(f.t.Context(), instance(1), p)
			},
		},
		"end": {
			prepare: enrolled,
			run: func(f *fixture) (ledger.Grant, error) {
				return ledger.Grant{}, f.Retire(f.t.Context(), instance(1))
			},
		},
		"end before any claim": {
			prepare: func(*fixture) {},
			run: func(f *fixture) (ledger.Grant, error) {
				return ledger.Grant{}, f.Retire(f.t.Context(), instance(1))
			},
		},
	}
}
