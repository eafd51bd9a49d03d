package ledgertest

import (
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

// outcome is everything that anybody sees of two operations.
type outcome struct {
	first, second result
	records       [4]ledger.Record
}

type result struct {
	grant   ledger.Grant
	refusal error
}

// Interleave disturbs each operation with another one, which happens as a whole before one of
// its calls to DynamoDB. The result must be the same as if one had happened after the other,
// in a ledger that does one thing at a time. Open returns the client of a new and empty table,
// and its name.
func Interleave(t *testing.T, open func(*testing.T) (ledger.DynamoDBClient, string)) {
	for name, o := range operations() {
		for rivalName, rival := range o.rivals() {
			t.Run(name+"/"+rivalName, func(t *testing.T) {
				for at := 1; interleaveAt(t, o, rival, open, at); at++ {
				}
			})
		}
	}
}

// rivals are the operations that may happen at the same time.
func (o operation) rivals() map[string]func(*fixture) (ledger.Grant, error) {
	end := func(n int) func(*fixture) (ledger.Grant, error) {
		return func(f *fixture) (ledger.Grant, error) { return ledger.Grant{}, f.Retire(f.t.Context(), instance(n)) }
	}
	all := map[string]func(*fixture) (ledger.Grant, error){
		"the same":              o.run,
		"the end of instance 1": end(1),
		"the end of instance 2": end(2),
		"a renaming":            claimFor(1, "app", "k1"),
		"a release": func(f *fixture) (ledger.Grant, error) {
			_, err := f.Release(f.t.Context(), "web", operator, f.now)
			return ledger.Grant{}, err
		},
		"a permit": func(f *fixture) (ledger.Grant, error) {
			p := ledger.Permit{Fingerprint: "k9", ValidUntil: f.now.Add(time.Hour), By: operator}
			return ledger.Grant{}, f.Permit(f.t.Context(), instance(1), p)
		},
	}
	if o.rival != nil {
		all["a rival"] = o.rival
	}
	return all
}

// interleaveAt reports whether the operation makes that many calls.
func interleaveAt(t *testing.T, o operation, rival func(*fixture) (ledger.Grant, error), open func(*testing.T) (ledger.DynamoDBClient, string), at int) bool {
	t.Helper()
	client, table := open(t)
	f := newFixture(t, nil)
	f.Ledger = ledger.NewDynamoDB(client, table, func() time.Time { return f.now })
	o.prepare(f)

	var got outcome
	reached := false
	disturbed := *f
	disturbed.Ledger = ledger.NewDynamoDB(&interposed{DynamoDBClient: client, around: func(n int, call func() error) error {
		if n == at {
			reached = true
			got.second = resultOf(rival(f))
		}
		return call()
	}}, table, func() time.Time { return f.now })
	got.first = resultOf(o.run(&disturbed))
	if !reached {
		return false
	}
	got.records = f.records()

	before, after := o.serially(t, rival, true), o.serially(t, rival, false)
	if !reflect.DeepEqual(got, before) && !reflect.DeepEqual(got, after) {
		t.Errorf("disturbed at call %d: %+v\nwant %+v\nor %+v", at, got, before, after)
	}
	return true
}

// serially does one after the other in a ledger in memory.
func (o operation) serially(t *testing.T, rival func(*fixture) (ledger.Grant, error), rivalFirst bool) outcome {
	t.Helper()
	f := newFixture(t, nil)
	f.Ledger = &ledger.Memory{Now: func() time.Time { return f.now }}
	o.prepare(f)
	var out outcome
	if rivalFirst {
		out.second = resultOf(rival(f))
	}
	out.first = resultOf(o.run(f))
	if !rivalFirst {
		out.second = resultOf(rival(f))
	}
	out.records = f.records()
	return out
}

// resultOf keeps which refusal an error is, without its text.
func resultOf(g ledger.Grant, err error) result {
	for _, refusal := range []error{
		ledger.ErrKeyConflict, ledger.ErrKeyInUse, ledger.ErrNameInUse, ledger.ErrTooManyNames, ledger.ErrRetired, ledger.ErrUnclaimed, ledger.ErrNotHeld, ledger.ErrCertified,
	} {
		if errors.Is(err, refusal) {
			return result{g, refusal}
		}
	}
	if err != nil {
		err = fmt.Errorf("no refusal: %w", err) // equal to nothing
	}
	return result{visible(g), err}
}

// visible returns what a grant says about the claim. How often the record was written does not
// matter: after a crash, the caller writes it again.
func visible(g ledger.Grant) ledger.Grant {
	return ledger.Grant{Generation: g.Generation, ConfirmedHostname: g.ConfirmedHostname, PermittedBy: g.PermittedBy}
}

func (f *fixture) records() [4]ledger.Record {
	f.t.Helper()
	var all [4]ledger.Record
	for n := range all {
		all[n] = f.lookup(n)
		all[n].Version = 0 // see visible
	}
	return all
}
