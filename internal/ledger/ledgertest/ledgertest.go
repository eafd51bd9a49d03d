// Package ledgertest holds every implementation of the ledger to the same rules.
package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ledger"
)

// Ledger is what is tested.
type Ledger interface {
	Claim(ctx context.Context, c ledger.Claim, now time.Time) (ledger.Grant, error)
	Confirm(ctx context.Context, c ledger.Claim, g ledger.Grant) error
	End(ctx context.Context, i ledger.Instance) error
}

// lifetime is how long the certificates of the tests last.
const lifetime = 7 * 24 * time.Hour

// Run runs the contract tests. New returns an empty ledger each time.
func Run(t *testing.T, open func(*testing.T) Ledger) {
	tests := map[string]func(*testing.T, *fixture){
		"claiming again is idempotent":          testIdempotent,
		"a subset of the keys is fine":          testSubset,
		"other keys are refused":                testOtherKeys,
		"a known key may bring new ones":        testAddedKeys,
		"recorded keys are bounded":             testBoundedKeys,
		"a key never moves":                     testKeyInUse,
		"a key never moves after the end":       testKeyInUseAfterEnd,
		"the same id elsewhere is a stranger":   testSameIDElsewhere,
		"a name has one holder":                 testNameInUse,
		"a name outlasts holder and last claim": testNameOutlasts,
		"a shorter claim frees no name earlier": testNameEndNeverShrinks,
		"a former name is kept":                 testFormerName,
		"a refused claim changes nothing":       testRefusedChangesNothing,
		"confirming remembers the name":         testConfirmedHostname,
		"confirming fails after the end":        testConfirmAfterEnd,
		"confirming needs a claim":              testConfirmWithoutClaim,
		"an ended instance stays ended":         testEndedStaysEnded,
		"an end may come before any claim":      testEndBeforeClaim,
		"concurrent claims of one key":          testConcurrentKey,
		"concurrent claims of one instance":     testConcurrentInstance,
		"concurrent claims of one name":         testConcurrentName,
		"concurrent equal claims all succeed":   testConcurrentEqual,
		"a canceled context is an error":        testCanceled,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			test(t, &fixture{t: t, Ledger: open(t), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)})
		})
	}
}

// fixture is a ledger and a clock.
type fixture struct {
	Ledger
	t   *testing.T
	now time.Time
}

func instance(n int) ledger.Instance {
	return ledger.Instance{Account: "111122223333", Region: "us-west-2", ID: fmt.Sprintf("i-%017x", n)}
}

func (f *fixture) claimOf(n int, name string, keys ...string) ledger.Claim {
	return ledger.Claim{Instance: instance(n), Fingerprints: keys, Hostname: name, End: f.now.Add(lifetime)}
}

// claim wants the claim accepted, or refused with the error wanted.
func (f *fixture) claim(want error, n int, name string, keys ...string) ledger.Grant {
	f.t.Helper()
	g, err := f.Claim(f.t.Context(), f.claimOf(n, name, keys...), f.now)
	if !errors.Is(err, want) {
		f.t.Fatalf("claim of instance %d, name %s, keys %v: error %v, want %v", n, name, keys, err, want)
	}
	return g
}

// endFirst ends instance 1.
func (f *fixture) endFirst() {
	f.t.Helper()
	if err := f.End(f.t.Context(), instance(1)); err != nil {
		f.t.Fatal(err)
	}
}

func testIdempotent(t *testing.T, f *fixture) {
	first := f.claim(nil, 1, "web", "k1", "k2")
	again := f.claim(nil, 1, "web", "k2", "k1")
	if first.Generation != again.Generation {
		t.Errorf("generations %d and %d of one life", first.Generation, again.Generation)
	}
}

func testSubset(_ *testing.T, f *fixture) {
	f.claim(nil, 1, "web", "k1", "k2", "k3")
	f.claim(nil, 1, "web", "k2")
	f.claim(nil, 1, "web", "k3", "k1")
}

func testOtherKeys(_ *testing.T, f *fixture) {
	f.claim(nil, 1, "web", "k1", "k2")
	f.claim(ledger.ErrKeyConflict, 1, "web", "k3")
	f.claim(ledger.ErrKeyConflict, 1, "web", "k3", "k4")
}

func testAddedKeys(_ *testing.T, f *fixture) {
	f.claim(nil, 1, "web", "k1")
	f.claim(nil, 1, "web", "k1", "k2")
	f.claim(nil, 1, "web", "k2")
	f.claim(ledger.ErrKeyInUse, 2, "db", "k2")
}

func testBoundedKeys(_ *testing.T, f *fixture) {
	f.claim(nil, 1, "web", "k0")
	for n := 1; n < ledger.MaxKeys; n++ {
		f.claim(nil, 1, "web", "k0", fmt.Sprintf("k%d", n))
	}
	f.claim(ledger.ErrKeyConflict, 1, "web", "k0", "one too many")
	f.claim(nil, 1, "web", "k0", "k1")
}

func testKeyInUse(_ *testing.T, f *fixture) {
	f.claim(nil, 1, "web", "k1")
	f.claim(ledger.ErrKeyInUse, 2, "db", "k1")
	f.claim(ledger.ErrKeyInUse, 2, "db", "k2", "k1")
	f.claim(nil, 2, "db", "k2")
	f.claim(ledger.ErrKeyInUse, 2, "db", "k2", "k1")
}

func testKeyInUseAfterEnd(_ *testing.T, f *fixture) {
	f.claim(nil, 1, "web", "k1")
	f.endFirst()
	f.now = f.now.Add(10 * lifetime)
	f.claim(ledger.ErrKeyInUse, 2, "db", "k1")
}

func testSameIDElsewhere(t *testing.T, f *fixture) {
	f.claim(nil, 1, "web", "k1")
	for _, other := range []ledger.Instance{
		{Account: "444455556666", Region: instance(1).Region, ID: instance(1).ID},
		{Account: instance(1).Account, Region: "eu-west-1", ID: instance(1).ID},
	} {
		c := f.claimOf(1, "db", "k1")
		c.Instance = other
		if _, err := f.Claim(t.Context(), c, f.now); !errors.Is(err, ledger.ErrKeyInUse) {
			t.Errorf("claim of %+v: error %v, want %v", other, err, ledger.ErrKeyInUse)
		}
	}
}

func testNameInUse(_ *testing.T, f *fixture) {
	f.claim(nil, 1, "web", "k1")
	f.claim(ledger.ErrNameInUse, 2, "web", "k2")
	f.now = f.now.Add(10 * lifetime) // a stopped machine keeps its name
	f.claim(ledger.ErrNameInUse, 2, "web", "k2")
}

func testNameOutlasts(_ *testing.T, f *fixture) {
	f.claim(nil, 1, "web", "k1")
	f.endFirst()
	f.claim(ledger.ErrNameInUse, 2, "web", "k2")
	f.now = f.now.Add(lifetime)
	f.claim(ledger.ErrNameInUse, 2, "web", "k2")
	f.now = f.now.Add(time.Second)
	f.claim(nil, 2, "web", "k2")
}

func testNameEndNeverShrinks(t *testing.T, f *fixture) {
	f.claim(nil, 1, "web", "k1")
	short := f.claimOf(1, "web", "k1")
	short.End = f.now.Add(time.Hour)
	if _, err := f.Claim(t.Context(), short, f.now); err != nil {
		t.Fatal(err)
	}
	f.endFirst()
	f.now = f.now.Add(2 * time.Hour)
	f.claim(ledger.ErrNameInUse, 2, "web", "k2")
}

func testFormerName(_ *testing.T, f *fixture) {
	f.claim(nil, 1, "web", "k1")
	f.claim(nil, 1, "www", "k1")
	f.claim(ledger.ErrNameInUse, 2, "web", "k2")
	f.claim(ledger.ErrNameInUse, 2, "www", "k2")
	f.claim(nil, 1, "web", "k1")
}

func testRefusedChangesNothing(_ *testing.T, f *fixture) {
	f.claim(nil, 1, "web", "k1")
	f.claim(ledger.ErrNameInUse, 2, "web", "k2")
	f.claim(ledger.ErrKeyInUse, 2, "db", "k1", "k3")
	f.claim(nil, 3, "db", "k2", "k3")
}

func testConfirmedHostname(t *testing.T, f *fixture) {
	first := f.claim(nil, 1, "web", "k1")
	if again := f.claim(nil, 1, "web", "k1"); first.ConfirmedHostname != "" || again.ConfirmedHostname != "" {
		t.Errorf("names %q and %q are confirmed before anyone confirmed", first.ConfirmedHostname, again.ConfirmedHostname)
	}
	if err := f.Confirm(t.Context(), f.claimOf(1, "web", "k1"), first); err != nil {
		t.Fatal(err)
	}
	if g := f.claim(nil, 1, "www", "k1"); g.ConfirmedHostname != "web" {
		t.Errorf("confirmed name %q, want web", g.ConfirmedHostname)
	}
}

func testConfirmAfterEnd(t *testing.T, f *fixture) {
	g := f.claim(nil, 1, "web", "k1")
	f.endFirst()
	if err := f.Confirm(t.Context(), f.claimOf(1, "web", "k1"), g); !errors.Is(err, ledger.ErrEnded) {
		t.Errorf("error %v, want %v", err, ledger.ErrEnded)
	}
}

func testConfirmWithoutClaim(t *testing.T, f *fixture) {
	c := f.claimOf(1, "web", "k1")
	if err := f.Confirm(t.Context(), c, ledger.Grant{Generation: 1}); !errors.Is(err, ledger.ErrUnclaimed) {
		t.Errorf("error %v, want %v", err, ledger.ErrUnclaimed)
	}
	g := f.claim(nil, 1, "web", "k1")
	g.Generation++
	if err := f.Confirm(t.Context(), c, g); !errors.Is(err, ledger.ErrUnclaimed) {
		t.Errorf("another generation: error %v, want %v", err, ledger.ErrUnclaimed)
	}
}

func testEndedStaysEnded(_ *testing.T, f *fixture) {
	f.claim(nil, 1, "web", "k1")
	f.endFirst()
	f.endFirst()
	f.claim(ledger.ErrEnded, 1, "web", "k1")
	f.claim(ledger.ErrEnded, 1, "www", "k2")
}

func testEndBeforeClaim(_ *testing.T, f *fixture) {
	f.endFirst()
	f.claim(ledger.ErrEnded, 1, "web", "k1")
}

const racers = 50

// race makes claims at once and returns their errors.
func (f *fixture) race(claim func(n int) ledger.Claim) []error {
	var (
		wg    sync.WaitGroup
		start = make(chan struct{})
		errs  = make([]error, racers)
	)
	for n := range racers {
		c := claim(n)
		wg.Go(func() {
			<-start
			_, errs[n] = f.Claim(f.t.Context(), c, f.now)
		})
	}
	close(start)
	wg.Wait()
	return errs
}

func wantOneWinner(t *testing.T, errs []error, loss error) {
	t.Helper()
	winners := 0
	for _, err := range errs {
		switch {
		case err == nil:
			winners++
		case !errors.Is(err, loss):
			t.Errorf("error %v, want %v", err, loss)
		}
	}
	if winners != 1 {
		t.Errorf("%d winners of %d, want 1", winners, len(errs))
	}
}

func testConcurrentKey(t *testing.T, f *fixture) {
	wantOneWinner(t, f.race(func(n int) ledger.Claim {
		return f.claimOf(n, fmt.Sprintf("host-%d", n), "baked into the image")
	}), ledger.ErrKeyInUse)
}

func testConcurrentInstance(t *testing.T, f *fixture) {
	wantOneWinner(t, f.race(func(n int) ledger.Claim {
		return f.claimOf(1, "web", fmt.Sprintf("k%d", n))
	}), ledger.ErrKeyConflict)
}

func testConcurrentName(t *testing.T, f *fixture) {
	wantOneWinner(t, f.race(func(n int) ledger.Claim {
		return f.claimOf(n, "web", fmt.Sprintf("k%d", n))
	}), ledger.ErrNameInUse)
}

func testConcurrentEqual(t *testing.T, f *fixture) {
	for _, err := range f.race(func(int) ledger.Claim { return f.claimOf(1, "web", "k1", "k2") }) {
		if err != nil {
			t.Error(err)
		}
	}
}

func testCanceled(t *testing.T, f *fixture) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Claim(ctx, f.claimOf(1, "web", "k1"), f.now); !errors.Is(err, context.Canceled) {
		t.Errorf("claim: error %v", err)
	}
	if err := f.End(ctx, instance(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("end: error %v", err)
	}
	f.claim(nil, 1, "web", "k1")
}
