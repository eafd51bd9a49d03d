package ledgertest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

func expiredTests() map[string]func(*testing.T, *fixture) {
	return map[string]func(*testing.T, *fixture){
		"a record expires with its last certificate": testExpired,
		"a record never confirmed expires too":       testExpiredClaim,
		"a walk finds every expired record":          testExpiredWalk,
		"an expired record ends, another does not":   testRetireExpired,
		"a dropped name may be claimed again":        testDroppedNameClaimedAgain,
	}
}

// expired walks all records, and returns the expired ones.
func (f *fixture) expired() map[ec2ref.Instance]ledger.Record {
	f.t.Helper()
	all := make(map[ec2ref.Instance]ledger.Record)
	for from := ""; ; {
		step, err := f.Expired(f.t.Context(), from, f.now)
		if err != nil {
			f.t.Fatal(err)
		}
		if len(step.Records) > ledger.MaxExpired {
			f.t.Errorf("%d records in one step", len(step.Records))
		}
		for i, r := range step.Records {
			if _, twice := all[i]; twice {
				f.t.Errorf("%s comes twice", i.ID)
			}
			all[i] = r
		}
		if step.Next == "" {
			return all
		}
		if step.Next == from {
			f.t.Fatalf("the walk stands still at %q", from)
		}
		from = step.Next
	}
}

func (f *fixture) wantExpired(what string, numbers ...int) {
	f.t.Helper()
	got := slices.SortedFunc(maps.Keys(f.expired()), compareIDs)
	want := make([]ec2ref.Instance, len(numbers))
	for n, number := range numbers {
		want[n] = instance(number)
	}
	if !slices.Equal(got, want) {
		f.t.Errorf("%s: expired %v, want %v", what, got, want)
	}
}

func compareIDs(a, b ec2ref.Instance) int {
	switch {
	case a.ID < b.ID:
		return -1
	case a.ID > b.ID:
		return 1
	}
	return 0
}

func testExpired(t *testing.T, f *fixture) {
	f.wantExpired("an empty ledger")
	f.enroll(1, "web", "k1")
	f.enroll(2, "db", "k2")
	if err := f.SeeTags(t.Context(), instance(3), 1); err == nil { // a note, and no claim
		t.Error("a note of a stranger's tags is no error")
	}
	f.now = f.now.Add(lifetime)
	f.wantExpired("the second in which the certificates end")
	f.claim(nil, 2, "db", "k2") // renewed, though not confirmed yet
	f.now = f.now.Add(time.Second)
	f.wantExpired("one renewed, one not", 1)
	if got, want := f.expired()[instance(1)], f.lookup(1); got.Version != want.Version || got.ConfirmedHostname != "web" {
		t.Errorf("record %+v, want %+v", got, want)
	}
	f.endFirst()
	f.wantExpired("after the end")
}

func testExpiredClaim(_ *testing.T, f *fixture) {
	f.claim(nil, 1, "web", "k1") // and then the signer crashes
	f.now = f.now.Add(lifetime + time.Second)
	f.wantExpired("a claim that nobody confirmed", 1)
}

// testExpiredWalk retires what the first step finds before it continues: records change
// between two steps. The emulators are slow, so the ledger has only a few records more than a
// step.
func testExpiredWalk(t *testing.T, f *fixture) {
	const more = 5
	for n := range ledger.MaxExpired + more {
		f.claim(nil, n, fmt.Sprintf("web-%d", n), fmt.Sprintf("k%d", n))
	}
	f.now = f.now.Add(lifetime + time.Second)
	first, err := f.Expired(t.Context(), "", f.now)
	if err != nil || len(first.Records) != ledger.MaxExpired || first.Next == "" {
		t.Fatalf("%d records, next %q, error %v", len(first.Records), first.Next, err)
	}
	for i := range first.Records {
		if retired, err := f.RetireExpired(t.Context(), i, f.now); err != nil || !retired {
			t.Fatalf("ended %v, error %v", retired, err)
		}
	}
	second, err := f.Expired(t.Context(), first.Next, f.now)
	if err != nil || len(second.Records) != more || second.Next != "" {
		t.Errorf("%d records and next %q, error %v; want the other %d", len(second.Records), second.Next, err, more)
	}
	if left := f.expired(); len(left) != more {
		t.Errorf("%d are expired from the beginning, want %d", len(left), more)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Expired(ctx, "", f.now); err == nil {
		t.Error("a walk without time is no error")
	}
}

func testRetireExpired(t *testing.T, f *fixture) {
	end := func(n int, want bool) {
		t.Helper()
		before := f.lookup(n)
		retired, err := f.RetireExpired(t.Context(), instance(n), f.now)
		if err != nil || retired != want {
			t.Errorf("instance %d: ended %v, error %v, want %v", n, retired, err, want)
		}
		if after := f.lookup(n); after.Retired != (before.Retired || want) || !want && after.Version != before.Version {
			t.Errorf("instance %d: %+v after %+v", n, after, before)
		}
	}
	end(1, false) // nobody
	f.enroll(1, "web", "k1")
	f.enroll(2, "db", "k2")
	end(1, false)
	f.now = f.now.Add(lifetime + time.Second)
	f.claim(nil, 2, "db", "k2") // it renews while EC2 is asked
	end(2, false)
	end(1, true)
	end(1, false) // done already
	f.claim(ledger.ErrRetired, 1, "web", "k1")
	f.claim(nil, 3, "web", "k3")
	f.claim(ledger.ErrKeyInUse, 3, "web", "k3", "k1")
}

// testDroppedNameClaimedAgain lets the item of a dropped name expire, and the same instance
// claim the name again: the item must be valid again, and the name has one holder.
func testDroppedNameClaimedAgain(_ *testing.T, f *fixture) {
	f.enroll(1, "web", "k1")
	f.enroll(1, "www", "k1")
	f.now = f.now.Add(lifetime + time.Second)
	f.enroll(1, "www", "k1") // drops web
	f.enroll(1, "web", "k1")
	f.now = f.now.Add(2 * lifetime) // longer than the item of a dropped name is kept
	f.claim(ledger.ErrNameInUse, 2, "web", "k2")
	f.claim(nil, 1, "web", "k1")
}
