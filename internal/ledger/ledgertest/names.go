package ledgertest

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ledger"
)

func nameTests() map[string]func(*testing.T, *fixture) {
	return map[string]func(*testing.T, *fixture){
		"a name has one holder":                     testNameInUse,
		"a name outlasts holder and last claim":     testNameOutlasts,
		"a shorter claim frees no name earlier":     testNameEndNeverShrinks,
		"a former name is kept":                     testFormerName,
		"a former name is free before the present":  testFormerNameFreed,
		"renaming while another claims":             testRenaming,
		"host names and addresses are in one space": testOneSpace,
		"an address has one holder":                 testAddressInUse,
		"an address outlasts its use":               testAddressOutlasts,
		"a refusal says all names and holders":      testNameInUseError,
		"a name may be claimed twice over":          testNameTwice,
		"names are bounded":                         testBoundedNames,
		"a name may be taken again and again":       testNameTakenAgain,
	}
}

func (f *fixture) withNames(n int, hostname string, names ...string) ledger.Claim {
	c := f.claimOf(n, hostname, fmt.Sprintf("k%d", n))
	c.Names = names
	return c
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

func testFormerNameFreed(t *testing.T, f *fixture) {
	f.claim(nil, 1, "web", "k1")
	f.now = f.now.Add(lifetime / 2)
	f.claim(nil, 1, "www", "k1")
	f.endFirst()
	f.now = f.now.Add(lifetime/2 + time.Second)
	f.claim(nil, 2, "web", "k2")
	f.claim(ledger.ErrNameInUse, 3, "www", "k3")
	f.now = f.now.Add(lifetime / 2)
	f.claim(nil, 3, "www", "k3")
}

func testRenaming(t *testing.T, f *fixture) {
	for _, name := range []string{"a", "b", "c"} {
		f.enroll(1, name, "k1")
		f.claim(ledger.ErrNameInUse, 2, "a", "k2")
	}
	f.now = f.now.Add(10 * lifetime) // its certificates for a and b have ended, but it is there
	f.claim(ledger.ErrNameInUse, 2, "a", "k2")
	f.claim(nil, 1, "a", "k1")
	f.endFirst()
	f.claim(ledger.ErrNameInUse, 2, "a", "k2")
	f.claim(nil, 2, "b", "k2")
}

func testOneSpace(t *testing.T, f *fixture) {
	f.make(nil, f.withNames(1, "web", "10.0.0.1"))
	f.make(ledger.ErrNameInUse, f.withNames(2, "10.0.0.1"))
	f.make(ledger.ErrNameInUse, f.withNames(2, "db", "web"))
	f.make(nil, f.withNames(2, "db"))
}

func testAddressInUse(t *testing.T, f *fixture) {
	f.make(nil, f.withNames(1, "web", "10.0.0.1", "10.0.0.2"))
	f.make(ledger.ErrNameInUse, f.withNames(2, "db", "10.0.0.3", "10.0.0.1"))
	f.make(nil, f.withNames(3, "db", "10.0.0.3")) // the refused claim holds nothing
	f.make(nil, f.withNames(1, "web", "10.0.0.2"))
	f.make(ledger.ErrNameInUse, f.withNames(2, "app", "10.0.0.1"))
}

func testAddressOutlasts(t *testing.T, f *fixture) {
	f.make(nil, f.withNames(1, "web", "10.0.0.1"))
	f.endFirst()
	f.now = f.now.Add(lifetime)
	f.make(ledger.ErrNameInUse, f.withNames(2, "db", "10.0.0.1"))
	f.now = f.now.Add(time.Second)
	f.make(nil, f.withNames(2, "db", "10.0.0.1"))
}

func testNameInUseError(t *testing.T, f *fixture) {
	f.make(nil, f.withNames(1, "web", "10.0.0.1"))
	f.make(nil, f.withNames(2, "db", "10.0.0.2"))
	_, err := f.Claim(t.Context(), f.withNames(3, "db", "10.0.0.3", "web", "10.0.0.1"), f.now)
	var inUse *ledger.NameInUseError
	if !errors.As(err, &inUse) || !errors.Is(err, ledger.ErrNameInUse) {
		t.Fatalf("error %v, want a NameInUseError", err)
	}
	if want := []string{"db", "web", "10.0.0.1"}; !slices.Equal(inUse.Names, want) {
		t.Errorf("names %q, want %q", inUse.Names, want)
	}
	if want := []string{instance(2).ID, instance(1).ID, instance(1).ID}; !slices.Equal(inUse.Holders, want) {
		t.Errorf("holders %q, want %q", inUse.Holders, want)
	}
	f.make(nil, f.withNames(3, "app", "10.0.0.3"))
}

func testNameTwice(t *testing.T, f *fixture) {
	c := f.withNames(1, "web", "web", "10.0.0.1", "10.0.0.1")
	c.Fingerprints = []string{"k1", "k1"}
	f.make(nil, c)
	f.make(nil, c)
}

func testBoundedNames(t *testing.T, f *fixture) {
	name := func(n int) string { return fmt.Sprintf("name-%d", n) }
	for n := range ledger.MaxNames {
		f.enroll(1, name(n), "k1")
	}
	f.claim(ledger.ErrTooManyNames, 1, "one-too-many", "k1")
	f.claim(nil, 1, name(0), "k1")
	f.claim(nil, 2, "one-too-many", "k2")

	var many []string
	for n := range ledger.MaxNames {
		many = append(many, fmt.Sprintf("10.0.0.%d", n))
	}
	f.make(ledger.ErrTooManyNames, f.withNames(3, "db", many...))
	f.make(nil, f.withNames(3, "db", many[1:]...))
	// All of them at once can end, and can be taken.
	if err := f.End(t.Context(), instance(3)); err != nil {
		t.Fatal(err)
	}
	f.now = f.now.Add(lifetime + time.Second)
	f.make(nil, f.withNames(4, "db", many[1:]...))
}

func testNameTakenAgain(t *testing.T, f *fixture) {
	for n := 1; n < 5; n++ {
		f.make(nil, f.withNames(n, "web", "10.0.0.1"))
		f.make(ledger.ErrNameInUse, f.withNames(n+1, "web", "10.0.0.1"))
		if err := f.End(t.Context(), instance(n)); err != nil {
			t.Fatal(err)
		}
		f.now = f.now.Add(lifetime + time.Second)
		f.make(ledger.ErrEnded, f.withNames(n, "web"))
	}
}
