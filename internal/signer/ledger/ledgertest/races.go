package ledgertest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

func raceTests() map[string]func(*testing.T, *fixture) {
	return map[string]func(*testing.T, *fixture){
		"concurrent claims of one key":         testConcurrentKey,
		"concurrent claims of one instance":    testConcurrentInstance,
		"concurrent claims of one name":        testConcurrentName,
		"concurrent claims of one address":     testConcurrentAddress,
		"concurrent claims of a name set free": testConcurrentTaking,
		"concurrent equal claims all succeed":  testConcurrentEqual,
		"concurrent claims and an end":         testConcurrentRetire,
		"concurrent use of one permit":         testConcurrentPermit,
	}
}

const racers = 50

// race makes claims at the same time and returns their errors.
func (f *fixture) race(claim func(n int) ledger.Claim) []error { return f.raceOf(racers, claim) }

func (f *fixture) raceOf(many int, claim func(n int) ledger.Claim) []error {
	var (
		wg    sync.WaitGroup
		start = make(chan struct{})
		errs  = make([]error, many)
	)
	for n := range many {
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

func testConcurrentAddress(t *testing.T, f *fixture) {
	wantOneWinner(t, f.race(func(n int) ledger.Claim {
		return f.withNames(n, fmt.Sprintf("host-%d", n), "10.0.0.1")
	}), ledger.ErrNameInUse)
}

func testConcurrentTaking(t *testing.T, f *fixture) {
	f.make(nil, f.withNames(racers, "web", "10.0.0.1"))
	if err := f.Retire(t.Context(), instance(racers)); err != nil {
		t.Fatal(err)
	}
	f.now = f.now.Add(lifetime + time.Second)
	wantOneWinner(t, f.race(func(n int) ledger.Claim { return f.withNames(n, "web", "10.0.0.1") }), ledger.ErrNameInUse)
}

// testConcurrentEnd retires an instance in the middle of its own claims: each is granted or
// refused, and none can be confirmed afterwards.
func testConcurrentRetire(t *testing.T, f *fixture) {
	retired := make(chan error, 1)
	go func() { retired <- f.Retire(t.Context(), instance(1)) }()
	for _, err := range f.race(func(int) ledger.Claim { return f.claimOf(1, "web", "k1") }) {
		if err != nil && !errors.Is(err, ledger.ErrRetired) {
			t.Error(err)
		}
	}
	if err := <-retired; err != nil {
		t.Fatal(err)
	}
	r := f.lookup(1)
	if !r.Retired {
		t.Error("it has not ended")
	}
	c := f.claimOf(1, "web", "k1")
	if err := f.Confirm(t.Context(), c, ledger.Grant{Generation: r.Generation}, f.now); !errors.Is(err, ledger.ErrRetired) {
		t.Errorf("confirmation: error %v, want %v", err, ledger.ErrRetired)
	}
}

// testConcurrentPermit lets claims race for one permit, each with the permitted key and one of
// its own. The first starts a new set of keys; the others add a key to it. There are fewer
// claims than a ledger makes attempts, because each may lose to every other.
func testConcurrentPermit(t *testing.T, f *fixture) {
	const many = 10
	f.enroll(1, "web", "old")
	f.permit(nil, 1, "new")
	errs := f.raceOf(many, func(n int) ledger.Claim { return f.claimOf(1, "web", "new", fmt.Sprintf("k%d", n)) })
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	r := f.lookup(1)
	if r.Generation != 2 || len(r.Fingerprints) != many+1 || slices.Contains(r.Fingerprints, "old") {
		t.Errorf("generation %d with keys %v, want generation 2 with %d keys and without the old one", r.Generation, r.Fingerprints, many+1)
	}
}
