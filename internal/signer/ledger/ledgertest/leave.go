package ledgertest

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

func leaveTests() map[string]func(*testing.T, *fixture) {
	return map[string]func(*testing.T, *fixture){
		"leaving keeps keys and names":                testLeave,
		"leaving needs a recorded key":                testLeaveRefused,
		"leaving stops an enrollment in progress":     testLeaveStopsEnrollment,
		"an instance that left can enroll again":      testEnrollAfterLeave,
		"an old request to leave is refused":          testOldLeave,
		"a late request to enroll is refused":         testLateEnrollment,
		"a late request to leave is refused":          testLateLeave,
		"an instance that left can be retired":        testRetireAfterLeave,
		"leaving another signer is refused":           testLeaveOtherSigner,
		"a claim after leaving is always written":     testClaimAfterLeaveIsWritten,
		"a permit outlives leaving":                   testPermitAfterLeave,
		"an instance that left is found once it ends": testExpiredAfterLeave,
	}
}

func (f *fixture) leave(want error, n int, keys ...string) ledger.Record {
	f.t.Helper()
	l := ledger.Leave{Instance: instance(n), Fingerprints: keys, IssuedAt: f.now}
	r, err := f.Leave(f.t.Context(), l, f.now)
	if !errors.Is(err, want) {
		f.t.Fatalf("leave of %d with %v: error %v, want %v", n, keys, err, want)
	}
	return r
}

// testLeave has an instance leave twice, as after a lost answer.
func testLeave(t *testing.T, f *fixture) {
	f.enroll(1, "web", "k1", "k2")
	before := f.lookup(1)
	for range 2 {
		left := f.leave(nil, 1, "k2", "k of nobody")
		if !left.Left || left.Retired || !left.IsOut() || left.Version <= before.Version || left.Generation <= before.Generation {
			t.Errorf("record %+v", left)
		}
		if got := f.lookup(1); !got.Left || got.Version != left.Version || got.Generation != left.Generation {
			t.Errorf("looked up %+v, want %+v", got, left)
		}
		before = left
	}
	r := f.lookup(1)
	if !slices.Equal(r.Fingerprints, []string{"k1", "k2"}) || r.ConfirmedHostname != "web" || r.ValidUntil.IsZero() {
		t.Errorf("record %+v", r)
	}
	f.now = f.now.Add(10 * lifetime)
	f.claim(ledger.ErrNameInUse, 2, "web", "k3")
	f.claim(ledger.ErrKeyInUse, 2, "db", "k1")
}

func testLeaveRefused(t *testing.T, f *fixture) {
	f.leave(ledger.ErrUnclaimed, 1, "k1")
	if err := f.SeeTags(t.Context(), instance(1), 1); !errors.Is(err, ledger.ErrSeen) {
		t.Fatal(err)
	}
	f.leave(ledger.ErrUnclaimed, 1, "k1")
	f.enroll(1, "web", "k1")
	f.enroll(2, "db", "k2")
	f.leave(ledger.ErrKeyConflict, 1, "k2")
	f.leave(ledger.ErrKeyConflict, 1)
	if r := f.lookup(1); r.Left {
		t.Errorf("record %+v", r)
	}
	f.endFirst()
	f.leave(ledger.ErrRetired, 1, "k1")
}

func testLeaveStopsEnrollment(t *testing.T, f *fixture) {
	f.enroll(1, "web", "k1")
	g := f.claim(nil, 1, "web", "k1")
	f.leave(nil, 1, "k1")
	if err := f.Confirm(t.Context(), f.claimOf(1, "web", "k1"), g, f.now); !errors.Is(err, ledger.ErrUnclaimed) {
		t.Errorf("confirmation: error %v, want %v", err, ledger.ErrUnclaimed)
	}
	// Nor does another claim of the same enrollment bring it back.
	f.claim(nil, 1, "web", "k1")
	if err := f.Confirm(t.Context(), f.claimOf(1, "web", "k1"), g, f.now); !errors.Is(err, ledger.ErrUnclaimed) {
		t.Errorf("confirmation: error %v, want %v", err, ledger.ErrUnclaimed)
	}
	if r := f.lookup(1); !r.Left {
		t.Errorf("record %+v", r)
	}
}

func testEnrollAfterLeave(t *testing.T, f *fixture) {
	f.enroll(1, "web", "k1", "k2")
	f.leave(nil, 1, "k1")
	f.claim(ledger.ErrKeyConflict, 1, "web", "k3")
	f.enroll(1, "web", "k2")
	if r := f.lookup(1); r.Left || r.ConfirmedHostname != "web" {
		t.Errorf("record %+v", r)
	}
}

func testOldLeave(_ *testing.T, f *fixture) {
	f.enroll(1, "web", "k1")
	f.leave(nil, 1, "k1")
	f.enroll(1, "web", "k1")
	f.leave(ledger.ErrOldLeave, 1, "k1")
	f.now = f.now.Add(time.Second)
	f.leave(nil, 1, "k1")
}

// testLateEnrollment has a request to enroll arrive after the machine left.
func testLateEnrollment(t *testing.T, f *fixture) {
	f.enroll(1, "web", "k1")
	late := f.claimOf(1, "web", "k1")
	late.IssuedAt = f.now.Add(-time.Second)
	f.leave(nil, 1, "k1")
	f.make(ledger.ErrLeft, late)
	if r := f.lookup(1); !r.Left {
		t.Errorf("record %+v", r)
	}
	late.IssuedAt = f.now // made in the same second as the leave
	g := f.make(nil, late)
	if err := f.Confirm(t.Context(), late, g, f.now); err != nil || f.lookup(1).Left {
		t.Errorf("error %v, record %+v", err, f.lookup(1))
	}
	old := ledger.Leave{Instance: instance(1), Fingerprints: []string{"k1"}, IssuedAt: f.now.Add(-time.Second)}
	late.IssuedAt = f.now.Add(-time.Minute) // an older one does not make room for an old leave
	f.make(nil, late)
	if _, err := f.Leave(t.Context(), old, f.now); !errors.Is(err, ledger.ErrOldLeave) {
		t.Errorf("error %v, want %v", err, ledger.ErrOldLeave)
	}
}

// testLateLeave has a request to leave arrive after the machine asked to enroll again.
func testLateLeave(t *testing.T, f *fixture) {
	c := f.claimOf(1, "web", "k1")
	c.IssuedAt = f.now
	g := f.make(nil, c)
	late := ledger.Leave{Instance: instance(1), Fingerprints: []string{"k1"}, IssuedAt: f.now.Add(-time.Second)}
	for _, when := range []string{"claimed", "confirmed"} {
		if _, err := f.Leave(t.Context(), late, f.now); !errors.Is(err, ledger.ErrOldLeave) {
			t.Errorf("%s: error %v, want %v", when, err, ledger.ErrOldLeave)
		}
		if when == "confirmed" {
			continue
		}
		if err := f.Confirm(t.Context(), c, g, f.now); err != nil {
			t.Fatal(err)
		}
	}
	if r := f.lookup(1); r.Left {
		t.Errorf("record %+v", r)
	}
	f.leave(nil, 1, "k1")
}

func testRetireAfterLeave(t *testing.T, f *fixture) {
	f.enroll(1, "web", "k1")
	f.leave(nil, 1, "k1")
	f.endFirst()
	if r := f.lookup(1); !r.Retired || !r.IsOut() {
		t.Errorf("record %+v", r)
	}
	f.claim(ledger.ErrRetired, 1, "web", "k1")
}

func testLeaveOtherSigner(t *testing.T, f *fixture) {
	c := f.claimOf(1, "web", "k1")
	c.Signer = "one.example.com"
	f.make(nil, c)
	l := ledger.Leave{Instance: instance(1), Fingerprints: []string{"k1"}, Signer: "two.example.com", IssuedAt: f.now}
	if _, err := f.Leave(t.Context(), l, f.now); !errors.Is(err, ledger.ErrOtherSigner) {
		t.Errorf("error %v, want %v", err, ledger.ErrOtherSigner)
	}
	f.now = f.now.Add(lifetime + time.Hour) // no certificate is left that the other could care about
	l.IssuedAt = f.now
	if _, err := f.Leave(t.Context(), l, f.now); !errors.Is(err, ledger.ErrUnclaimed) || f.lookup(1).Left {
		t.Errorf("later: error %v, want %v; record %+v", err, ledger.ErrUnclaimed, f.lookup(1))
	}
	l.Signer = "one.example.com"
	if _, err := f.Leave(t.Context(), l, f.now); err != nil {
		t.Error(err)
	}
}

// testClaimAfterLeaveIsWritten checks that a claim after a leave changes the version. The
// process that deletes the node compares versions afterwards.
func testClaimAfterLeaveIsWritten(t *testing.T, f *fixture) {
	f.enroll(1, "web", "k1")
	left := f.leave(nil, 1, "k1")
	g := f.claim(nil, 1, "web", "k1")
	if r := f.lookup(1); r.Version != left.Version+1 || g.Version != r.Version || !r.Left {
		t.Errorf("version %d, granted %d, after %d", r.Version, g.Version, left.Version)
	}
}

func testPermitAfterLeave(_ *testing.T, f *fixture) {
	f.enroll(1, "web", "k1")
	f.permit(nil, 1, "new")
	f.leave(nil, 1, "k1")
	f.enroll(1, "web", "new")
}

func testExpiredAfterLeave(t *testing.T, f *fixture) {
	f.enroll(1, "web", "k1")
	f.leave(nil, 1, "k1")
	f.now = f.now.Add(lifetime + time.Hour)
	step, err := f.Expired(t.Context(), "", f.now)
	if err != nil || len(step.Records) != 1 {
		t.Errorf("%d records, error %v", len(step.Records), err)
	}
}
