package ledgertest

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
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
		"a year of renames":                         testManyRenames,
		"addresses, then a rename":                  testAddressesThenRename,
		"a dropped name has one holder":             testDroppedName,
		"the present name is never dropped":         testPresentNameStays,
		"its own id is always available":            testOwnID,
		"an operator releases a name":               testRelease,
		"a name with a certificate stays":           testReleaseCertified,
		"a released name is checked again":          testReleasePresentName,
		"an operator ends an instance":              testRetireBy,
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
	short.ValidUntil = f.now.Add(time.Hour)
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
	f.now = f.now.Add(10 * lifetime) // its certificates for a and b have expired, but it is still there
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
	inUse, ok := errors.AsType[*ledger.NameInUseError](err)
	if !ok || !errors.Is(err, ledger.ErrNameInUse) {
		t.Fatalf("error %v, want a NameInUseError", err)
	}
	if want := []string{"db", "web", "10.0.0.1"}; !slices.Equal(inUse.Names(), want) {
		t.Errorf("names %q, want %q", inUse.Names(), want)
	}
	end := f.now.Add(lifetime)
	want := []ledger.HeldName{{Name: "db", Holder: instance(2), ValidUntil: end}, {Name: "web", Holder: instance(1), ValidUntil: end}, {Name: "10.0.0.1", Holder: instance(1), ValidUntil: end}}
	if !slices.Equal(inUse.Held, want) {
		t.Errorf("held %+v, want %+v", inUse.Held, want)
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
	// All of them can be retired at once, and their names can be taken.
	if err := f.Retire(t.Context(), instance(3)); err != nil {
		t.Fatal(err)
	}
	f.now = f.now.Add(lifetime + time.Second)
	f.make(nil, f.withNames(4, "db", many[1:]...))
}

func testNameTakenAgain(t *testing.T, f *fixture) {
	for n := 1; n < 5; n++ {
		f.make(nil, f.withNames(n, "web", "10.0.0.1"))
		f.make(ledger.ErrNameInUse, f.withNames(n+1, "web", "10.0.0.1"))
		if err := f.Retire(t.Context(), instance(n)); err != nil {
			t.Fatal(err)
		}
		f.now = f.now.Add(lifetime + time.Second)
		f.make(ledger.ErrRetired, f.withNames(n, "web"))
	}
}

func testManyRenames(_ *testing.T, f *fixture) {
	for n := range 2 * ledger.MaxNames {
		f.enroll(1, fmt.Sprintf("web-%d", n), "k1")
		f.now = f.now.Add(lifetime / 2)
	}
}

func testAddressesThenRename(_ *testing.T, f *fixture) {
	for n := range ledger.MaxNames {
		f.make(nil, f.withNames(1, "web", fmt.Sprintf("203.0.113.%d", n)))
		f.now = f.now.Add(lifetime / 2)
	}
	f.make(nil, f.withNames(1, "renamed", "203.0.113.200"))
}

// testDroppedName lets another instance take a name that its holder dropped. The former holder
// gets it back only if nobody else has it.
func testDroppedName(_ *testing.T, f *fixture) {
	f.enroll(1, "web", "k1")
	f.enroll(1, "www", "k1")
	f.now = f.now.Add(lifetime)
	f.claim(nil, 1, "www", "k1") // the last certificate for web expires this very second
	f.claim(ledger.ErrNameInUse, 2, "web", "k2")
	f.now = f.now.Add(time.Second)
	f.claim(ledger.ErrNameInUse, 2, "web", "k2") // nobody dropped it yet
	f.claim(nil, 1, "www", "k1")
	f.claim(nil, 1, "web", "k1")
	f.claim(ledger.ErrNameInUse, 2, "web", "k2")

	f.now = f.now.Add(lifetime + time.Second)
	f.claim(nil, 1, "www", "k1")
	f.claim(nil, 2, "web", "k2")
	f.claim(ledger.ErrNameInUse, 1, "web", "k1")
	f.claim(ledger.ErrNameInUse, 3, "web", "k3")
}

func testPresentNameStays(_ *testing.T, f *fixture) {
	f.enroll(1, "web", "k1")
	f.now = f.now.Add(10 * lifetime)
	f.claim(nil, 1, "www", "k1") // and then the signer crashes
	f.claim(ledger.ErrNameInUse, 2, "web", "k2")
}

func testOwnID(_ *testing.T, f *fixture) {
	for n := range ledger.MaxNames {
		f.enroll(1, fmt.Sprintf("web-%d", n), "k1")
	}
	f.claim(ledger.ErrTooManyNames, 1, "www", "k1")
	f.claim(nil, 1, string(instance(1).ID), "k1")
	f.make(ledger.ErrTooManyNames, f.withNames(1, string(instance(1).ID), "203.0.113.1"))
	f.claim(nil, 1, "web-3", "k1")
}

func (f *fixture) release(want error, name string) ec2ref.Instance {
	f.t.Helper()
	holder, err := f.Release(f.t.Context(), name, operator, f.now)
	if !errors.Is(err, want) {
		f.t.Fatalf("release of %s: error %v, want %v", name, err, want)
	}
	return holder
}

func testRelease(t *testing.T, f *fixture) {
	f.release(ledger.ErrNotHeld, "web")
	f.enroll(1, "db", "k1")
	f.make(nil, f.withNames(1, "web", "10.0.0.1")) // never confirmed: squatted
	f.now = f.now.Add(lifetime + time.Second)
	if holder := f.release(nil, "web"); holder != instance(1) {
		t.Errorf("released from %v, want %v", holder, instance(1))
	}
	f.release(ledger.ErrNotHeld, "web")
	f.make(ledger.ErrNameInUse, f.withNames(2, "web", "10.0.0.1"))
	f.make(nil, f.withNames(2, "web"))
	f.claim(ledger.ErrNameInUse, 1, "web", "k1")
	f.claim(nil, 1, "db", "k1")
	if f.lookup(1).Retired {
		t.Error("the former holder has ended")
	}
}

func testReleaseCertified(t *testing.T, f *fixture) {
	f.enroll(1, "web", "k1")
	f.now = f.now.Add(lifetime)
	f.release(ledger.ErrCertified, "web")
	f.endFirst()
	f.release(ledger.ErrCertified, "web")
	f.now = f.now.Add(time.Second)
	f.release(ledger.ErrNotHeld, "web") // its holder is retired: the next instance to claim it gets it
	f.claim(nil, 2, "web", "k2")
	if !f.lookup(1).Retired {
		t.Error("a release brings back who ended")
	}
}

// testReleasePresentName releases the name of a machine that has been stopped for long. The
// machine stays enrolled, but its name must not count as found free in Teleport.
func testReleasePresentName(t *testing.T, f *fixture) {
	f.enroll(1, "web", "k1")
	f.now = f.now.Add(10 * lifetime)
	f.release(nil, "web")
	if r := f.lookup(1); r.ConfirmedHostname == "" || r.ConfirmedHostname == "web" || !r.ValidUntil.IsZero() {
		t.Errorf("confirmed as %q until %s, want another name than web and no end", r.ConfirmedHostname, r.ValidUntil)
	}
	if g := f.claim(nil, 1, "web", "k1"); g.ConfirmedHostname == "web" {
		t.Error("the name passes for confirmed")
	}
	f.claim(ledger.ErrNameInUse, 2, "web", "k2")
}

func testRetireBy(t *testing.T, f *fixture) {
	f.enroll(1, "web", "k1")
	f.enroll(2, "db", "k2")
	for n := range 2 {
		if err := f.RetireBy(t.Context(), instance(n+1), operator); err != nil {
			t.Fatal(err)
		}
		f.endFirst()
	}
	if r := f.lookup(1); !r.Retired || r.RetiredBy != operator {
		t.Errorf("ended %v by %q, want by %q", r.Retired, r.RetiredBy, operator)
	}
	f.claim(ledger.ErrRetired, 1, "web", "k1")
	f.claim(ledger.ErrNameInUse, 3, "web", "k3")
	f.now = f.now.Add(lifetime + time.Second)
	f.claim(nil, 3, "web", "k3")
}
