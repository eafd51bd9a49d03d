package ledgertest

import (
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

// errCrash is the error of a call before or after which the process crashed.
var errCrash = errors.New("crashed here")

// crashing returns a client whose process crashes at one call: that call is either made or
// not, and nothing works afterwards.
func crashing(client ledger.DynamoDBClient, at int, made bool) *interposed {
	return &interposed{DynamoDBClient: client, around: func(n int, call func() error) error {
		if n < at {
			return call()
		}
		if n == at && made {
			if err := call(); err != nil {
				return err
			}
		}
		return errCrash
	}}
}

// Crash crashes each operation before and after each of its calls to DynamoDB. Then the
// instance tries again, or another one comes first. The result must be the same as without a
// crash: no key or name has two holders, none is unavailable to everybody, and the records are
// those of a ledger that can't crash. Open returns the client of a new and empty table, and
// its name.
func Crash(t *testing.T, open func(*testing.T) (ledger.DynamoDBClient, string)) {
	for name, o := range operations() {
		t.Run(name, func(t *testing.T) {
			for at := 1; crashAt(t, o, open, at); at++ {
			}
		})
	}
}

// crashAt reports whether the operation makes that many calls.
func crashAt(t *testing.T, o operation, open func(*testing.T) (ledger.DynamoDBClient, string), at int) bool {
	reached := false
	for _, made := range []bool{false, true} {
		for _, rival := range []bool{false, true} {
			if rival && o.rival == nil {
				continue
			}
			t.Run(fmt.Sprintf("at call %d, made %v, rival %v", at, made, rival), func(t *testing.T) {
				client, table := open(t)
				f := newFixture(t, nil)
				f.Ledger = ledger.NewDynamoDB(client, table, func() time.Time { return f.now })
				o.prepare(f)

				c := crashing(client, at, made)
				doomed := *f
				doomed.Ledger = ledger.NewDynamoDB(c, table, func() time.Time { return f.now })
				_, err := o.run(&doomed)
				if reached = c.calls >= at; errors.Is(err, errCrash) != reached {
					t.Fatalf("error %v after %d calls", err, c.calls)
				}
				if rival {
					o.wantOneHolder(f)
				} else {
					o.wantAsWithoutCrash(f)
				}
			})
		}
	}
	return reached
}

// wantOneHolder lets the rival come before the instance tries again.
func (o operation) wantOneHolder(f *fixture) {
	f.t.Helper()
	_, theirs := o.rival(f)
	_, own := o.run(f)
	loss := theirs
	if theirs == nil {
		loss = own
	}
	if (theirs == nil) == (own == nil) || !errors.Is(loss, ledger.ErrNameInUse) && !errors.Is(loss, ledger.ErrKeyInUse) {
		f.t.Errorf("the rival got error %v, the instance %v; want one holder", theirs, own)
	}
}

// wantAsWithoutCrash compares with a ledger in memory.
func (o operation) wantAsWithoutCrash(f *fixture) {
	f.t.Helper()
	whole := newFixture(f.t, nil)
	whole.Ledger = &ledger.Memory{Now: func() time.Time { return whole.now }}
	o.prepare(whole)
	f.now = whole.now
	want, err := o.run(whole)
	if err != nil {
		f.t.Fatal(err)
	}
	got, err := o.run(f)
	if err != nil {
		f.t.Fatalf("the second attempt: %v", err)
	}
	if got, want = visible(got), visible(want); got != want {
		f.t.Errorf("grant %+v, want %+v", got, want)
	}
	for n := range 4 {
		got, want := f.records()[n], whole.records()[n]
		if o.recounts {
			got.Generation, want.Generation = 0, 0
		}
		if !reflect.DeepEqual(got, want) {
			f.t.Errorf("instance %d: %+v, want %+v", n, got, want)
		}
	}
}
