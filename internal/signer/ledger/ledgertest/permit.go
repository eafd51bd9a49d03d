package ledgertest

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

func permitTests() map[string]func(*testing.T, *fixture) {
	return map[string]func(*testing.T, *fixture){
		"a permit is used once":                   testPermitOnce,
		"a permit names one of the new keys":      testPermitNamesKey,
		"a permit ends":                           testPermitEnds,
		"a permit may keep some of the keys":      testPermitSomeKeys,
		"a permitted key may be another's":        testPermitKeyInUse,
		"a permit replaces the one before":        testPermitReplaced,
		"a permit needs an instance that is held": testPermitUnknown,
		"a re-key is told until it is confirmed":  testPermitReported,
		"a claim of the life before is void":      testPermitVoidsClaim,
	}
}

const operator = "arn:aws:iam::111122223333:user/operator"

// permit permits the key to an instance for an hour.
func (f *fixture) permit(want error, n int, key string) {
	f.t.Helper()
	err := f.Permit(f.t.Context(), instance(n), ledger.Permit{Fingerprint: key, ValidUntil: f.now.Add(time.Hour), By: operator})
	if !errors.Is(err, want) {
		f.t.Fatalf("permit for instance %d: error %v, want %v", n, err, want)
	}
}

func testPermitOnce(t *testing.T, f *fixture) {
	f.enroll(1, "web", "k1", "k2")
	before := f.lookup(1)
	f.permit(nil, 1, "k3")
	if g := f.claim(nil, 1, "web", "k1"); g.PermittedBy != "" || g.Generation != before.Generation {
		t.Errorf("a claim with the old keys uses the permit: %+v", g)
	}

	g := f.claim(nil, 1, "web", "k3", "k4")
	if g.PermittedBy != operator || g.Generation == before.Generation {
		t.Errorf("grant %+v, want a new generation that %s permitted", g, operator)
	}
	after := f.lookup(1)
	if want := []string{"k3", "k4"}; !slices.Equal(after.Fingerprints, want) {
		t.Errorf("keys %v, want %v", after.Fingerprints, want)
	}
	if after.ConfirmedHostname != "web" {
		t.Errorf("confirmed name %q, want web: a re-key makes the instance no newer", after.ConfirmedHostname)
	}
	f.claim(ledger.ErrKeyConflict, 1, "web", "k1", "k2")
	f.claim(ledger.ErrKeyConflict, 1, "web", "k5")
	f.claim(ledger.ErrKeyInUse, 2, "db", "k1") // the old keys still belong to it
	f.claim(ledger.ErrKeyInUse, 2, "db", "k3")
	f.claim(nil, 1, "web", "k4")
}

func testPermitNamesKey(t *testing.T, f *fixture) {
	f.enroll(1, "web", "k1")
	f.permit(nil, 1, "k2")
	f.claim(ledger.ErrKeyConflict, 1, "web", "k3")
	f.claim(nil, 1, "web", "k2")
}

func testPermitEnds(t *testing.T, f *fixture) {
	f.enroll(1, "web", "k1")
	f.permit(nil, 1, "k2")
	f.now = f.now.Add(time.Hour)
	f.claim(ledger.ErrKeyConflict, 1, "web", "k2")
	f.claim(nil, 1, "web", "k1")
	f.claim(ledger.ErrKeyConflict, 1, "web", "k2")

	f.permit(nil, 1, "k2")
	f.now = f.now.Add(time.Hour - time.Second)
	f.claim(nil, 1, "web", "k2")
}

// testPermitSomeKeys re-keys one of several keys, for example because it leaked. The permit
// says that only the keys in the next request count.
func testPermitSomeKeys(t *testing.T, f *fixture) {
	f.enroll(1, "web", "kept", "leaked")
	f.permit(nil, 1, "new")
	if g := f.claim(nil, 1, "web", "new", "kept"); g.PermittedBy != operator {
		t.Errorf("grant %+v, want one that used the permit", g)
	}
	f.claim(ledger.ErrKeyConflict, 1, "web", "leaked")
}

func testPermitKeyInUse(t *testing.T, f *fixture) {
	f.enroll(1, "web", "k1")
	f.enroll(2, "db", "k2")
	f.permit(nil, 1, "k2")
	f.claim(ledger.ErrKeyInUse, 1, "web", "k2")
	f.permit(nil, 1, "k3")
	f.claim(ledger.ErrKeyInUse, 1, "web", "k3", "k2")
	f.claim(nil, 1, "web", "k3") // the refusals did not use it up
}

func testPermitReplaced(t *testing.T, f *fixture) {
	f.enroll(1, "web", "k1")
	f.permit(nil, 1, "k2")
	f.permit(nil, 1, "k3")
	f.claim(ledger.ErrKeyConflict, 1, "web", "k2")
	f.claim(nil, 1, "web", "k3")
}

func testPermitUnknown(t *testing.T, f *fixture) {
	f.permit(ledger.ErrUnclaimed, 1, "k1")
	f.claim(nil, 1, "web", "k2")
	f.endFirst()
	f.permit(ledger.ErrRetired, 1, "k1")
	if err := f.Retire(t.Context(), instance(2)); err != nil {
		t.Fatal(err)
	}
	f.permit(ledger.ErrRetired, 2, "k1")
}

func testPermitReported(t *testing.T, f *fixture) {
	f.enroll(1, "web", "k1")
	f.permit(nil, 1, "k2")
	f.claim(nil, 1, "web", "k2") // and then the signer crashes
	g := f.claim(nil, 1, "web", "k2")
	if g.PermittedBy != operator {
		t.Errorf("permitted by %q, want %q", g.PermittedBy, operator)
	}
	if err := f.Confirm(t.Context(), f.claimOf(1, "web", "k2"), g, f.now); err != nil {
		t.Fatal(err)
	}
	if g := f.claim(nil, 1, "web", "k2"); g.PermittedBy != "" {
		t.Errorf("a renewal is permitted by %q", g.PermittedBy)
	}
}

func testPermitVoidsClaim(t *testing.T, f *fixture) {
	g := f.claim(nil, 1, "web", "k1")
	f.permit(nil, 1, "k2")
	f.claim(nil, 1, "web", "k2")
	if err := f.Confirm(t.Context(), f.claimOf(1, "web", "k1"), g, f.now); !errors.Is(err, ledger.ErrUnclaimed) {
		t.Errorf("confirmation with the old keys: error %v, want %v", err, ledger.ErrUnclaimed)
	}
}
