// Package ledgertest checks that every implementation of the ledger follows the same rules.
package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

// Ledger is the ledger under test.
type Ledger interface {
	Lookup(ctx context.Context, i ec2ref.Instance) (ledger.Record, error)
	Claim(ctx context.Context, c ledger.Claim, now time.Time) (ledger.Grant, error)
	LookupAll(ctx context.Context, instances []ec2ref.Instance) (map[ec2ref.Instance]ledger.Record, error)
	Complete(ctx context.Context, c ledger.Claim, g ledger.Grant, now time.Time) (ledger.Record, error)
	Confirm(ctx context.Context, c ledger.Claim, g ledger.Grant, now time.Time) error
	Retire(ctx context.Context, i ec2ref.Instance) error
	RetireBy(ctx context.Context, i ec2ref.Instance, by string) error
	Expired(ctx context.Context, from string, now time.Time) (ledger.Expired, error)
	RetireExpired(ctx context.Context, i ec2ref.Instance, now time.Time) (bool, error)
	Each(ctx context.Context, v ledger.Visitor) error
	NoteRefusal(ctx context.Context, i ec2ref.Instance, r ledger.Refusal) error
	Release(ctx context.Context, name, by string, now time.Time) (ec2ref.Instance, error)
	Permit(ctx context.Context, i ec2ref.Instance, p ledger.Permit) error
	Announce(ctx context.Context, i ec2ref.Instance) (ledger.Record, error)
	Leave(ctx context.Context, l ledger.Leave, now time.Time) (ledger.Record, error)
	SeeTags(ctx context.Context, i ec2ref.Instance, version uint64) error
	ReportHealth(ctx context.Context, i ec2ref.Instance, report ledger.HealthReport) (bool, error)
	NoteProbe(ctx context.Context, i ec2ref.Instance, unreachable bool) (bool, error)
}

// lifetime is how long the certificates of the tests last.
const lifetime = 7 * 24 * time.Hour

// Run runs the contract tests. Open returns an empty ledger each time.
func Run(t *testing.T, open func(*testing.T) Ledger) {
	for _, tests := range []map[string]func(*testing.T, *fixture){claimTests(), nameTests(), permitTests(), expiredTests(), eachTests(), leaveTests(), raceTests(), healthTests()} {
		for name, test := range tests {
			t.Run(name, func(t *testing.T) { test(t, newFixture(t, open(t))) })
		}
	}
}

func claimTests() map[string]func(*testing.T, *fixture) {
	return map[string]func(*testing.T, *fixture){
		"claiming again is idempotent":        testIdempotent,
		"a subset of the keys is fine":        testSubset,
		"other keys are refused":              testOtherKeys,
		"a known key may bring new ones":      testAddedKeys,
		"recorded keys are bounded":           testBoundedKeys,
		"a key never moves":                   testKeyInUse,
		"a key never moves after the end":     testKeyInUseAfterRetire,
		"the same id elsewhere is a stranger": testSameIDElsewhere,
		"a refused claim changes nothing":     testRefusedChangesNothing,
		"confirming remembers the name":       testConfirmedHostname,
		"confirming fails after the end":      testConfirmAfterRetire,
		"confirming needs a claim":            testConfirmWithoutClaim,
		"confirming needs a claim that holds": testConfirmLostClaim,
		"an ended instance stays ended":       testRetiredStaysRetired,
		"an end may come before any claim":    testRetireBeforeClaim,
		"an end at any moment is final":       testRetireAtAnyMoment,
		"a claim needs a key":                 testNoKeys,
		"what is known can be looked up":      testLookup,
		"the first image owner is kept":       testImageOwner,
		"changes of tags are counted":         testSeeTags,
		"tags of a stranger are noted":        testSeeTagsOfAnUnknownInstance,
		"a confirmation returns the record":   testComplete,
		"an instance stays with its signer":   testOtherSigner,
		"many can be looked up":               testLookupAll,
		"a canceled context is an error":      testCanceled,
	}
}

// fixture is a ledger and a clock.
type fixture struct {
	Ledger
	t   *testing.T
	now time.Time
}

func newFixture(t *testing.T, l Ledger) *fixture {
	return &fixture{t: t, Ledger: l, now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
}

func instance(n int) ec2ref.Instance {
	return ec2ref.Instance{Account: "111122223333", Region: "us-west-2", ID: ec2ref.InstanceID(fmt.Sprintf("i-%017x", n))}
}

func (f *fixture) claimOf(n int, name string, keys ...string) ledger.Claim {
	return ledger.Claim{Instance: instance(n), Fingerprints: keys, Hostname: name, ValidUntil: f.now.Add(lifetime)}
}

// claim expects the claim to be accepted, or refused with the given error.
func (f *fixture) claim(want error, n int, name string, keys ...string) ledger.Grant {
	f.t.Helper()
	return f.make(want, f.claimOf(n, name, keys...))
}

func (f *fixture) make(want error, c ledger.Claim) ledger.Grant {
	f.t.Helper()
	g, err := f.Claim(f.t.Context(), c, f.now)
	if !errors.Is(err, want) {
		f.t.Fatalf("claim of %s, name %s %v, keys %v: error %v, want %v", c.Instance.ID, c.Hostname, c.Names, c.Fingerprints, err, want)
	}
	return g
}

// enroll claims and confirms.
func (f *fixture) enroll(n int, name string, keys ...string) {
	f.t.Helper()
	g := f.claim(nil, n, name, keys...)
	if err := f.Confirm(f.t.Context(), f.claimOf(n, name, keys...), g, f.now); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) lookup(n int) ledger.Record {
	f.t.Helper()
	r, err := f.Lookup(f.t.Context(), instance(n))
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

// endFirst retires instance 1.
func (f *fixture) endFirst() {
	f.t.Helper()
	if err := f.Retire(f.t.Context(), instance(1)); err != nil {
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

	var many []string
	for n := range ledger.MaxKeys + 1 {
		many = append(many, fmt.Sprintf("m%d", n))
	}
	f.claim(ledger.ErrKeyConflict, 2, "db", many...)
	f.claim(nil, 2, "db", many[1:]...)
}

func testKeyInUse(_ *testing.T, f *fixture) {
	f.claim(nil, 1, "web", "k1")
	f.claim(ledger.ErrKeyInUse, 2, "db", "k1")
	f.claim(ledger.ErrKeyInUse, 2, "db", "k2", "k1")
	f.claim(nil, 2, "db", "k2")
	f.claim(ledger.ErrKeyInUse, 2, "db", "k2", "k1")
}

func testKeyInUseAfterRetire(_ *testing.T, f *fixture) {
	f.claim(nil, 1, "web", "k1")
	f.endFirst()
	f.now = f.now.Add(10 * lifetime)
	f.claim(ledger.ErrKeyInUse, 2, "db", "k1")
}

func testSameIDElsewhere(t *testing.T, f *fixture) {
	f.claim(nil, 1, "web", "k1")
	for _, other := range []ec2ref.Instance{
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
	if err := f.Confirm(t.Context(), f.claimOf(1, "web", "k1"), first, f.now); err != nil {
		t.Fatal(err)
	}
	if g := f.claim(nil, 1, "www", "k1"); g.ConfirmedHostname != "web" {
		t.Errorf("confirmed name %q, want web", g.ConfirmedHostname)
	}
}

func testConfirmAfterRetire(t *testing.T, f *fixture) {
	g := f.claim(nil, 1, "web", "k1")
	f.endFirst()
	if err := f.Confirm(t.Context(), f.claimOf(1, "web", "k1"), g, f.now); !errors.Is(err, ledger.ErrRetired) {
		t.Errorf("error %v, want %v", err, ledger.ErrRetired)
	}
}

// A request that was frozen after its claim confirms nothing that it no longer holds.
func testConfirmLostClaim(t *testing.T, f *fixture) {
	const name, key = "web", "k1"
	c := f.claimOf(1, name, key)
	c.Signer = "a"
	g := f.make(nil, c)
	confirm := func(what string, c ledger.Claim, g ledger.Grant, want error) {
		t.Helper()
		before := f.lookup(1)
		if err := f.Confirm(t.Context(), c, g, f.now); !errors.Is(err, want) {
			t.Errorf("%s: error %v, want %v", what, err, want)
		}
		if after := f.lookup(1); want != nil && !reflect.DeepEqual(after, before) {
			t.Errorf("%s: record %+v became %+v", what, before, after)
		}
	}
	for what, change := range map[string]func(*ledger.Claim){
		"a key that it does not hold":          func(c *ledger.Claim) { c.Fingerprints = []string{key, "k2"} },
		"a name that it does not hold":         func(c *ledger.Claim) { c.Names = []string{"10.0.0.7"} },
		"a name that it does not hold as long": func(c *ledger.Claim) { c.ValidUntil = c.ValidUntil.Add(time.Hour) },
		"another signer":                       func(c *ledger.Claim) { c.Signer = "b" },
	} {
		other := c
		change(&other)
		confirm(what, other, g, ledger.ErrUnclaimed)
	}
	confirm("the claim", c, g, nil)

	f.now = c.ValidUntil
	confirm("at its end", c, f.make(nil, c), nil)
	g = f.make(nil, c)
	f.now = c.ValidUntil.Add(time.Second)
	confirm("after its end", c, g, ledger.ErrUnclaimed)
	taken := f.claimOf(1, name, key)
	taken.Signer = "b"
	held := f.make(nil, taken)
	confirm("taken over by another signer", c, g, ledger.ErrUnclaimed)
	confirm("the other signer's", taken, held, nil)
}

func testConfirmWithoutClaim(t *testing.T, f *fixture) {
	c := f.claimOf(1, "web", "k1")
	if err := f.Confirm(t.Context(), c, ledger.Grant{Generation: 1}, f.now); !errors.Is(err, ledger.ErrUnclaimed) {
		t.Errorf("error %v, want %v", err, ledger.ErrUnclaimed)
	}
	g := f.claim(nil, 1, "web", "k1")
	g.Generation++
	if err := f.Confirm(t.Context(), c, g, f.now); !errors.Is(err, ledger.ErrUnclaimed) {
		t.Errorf("another generation: error %v, want %v", err, ledger.ErrUnclaimed)
	}
}

func testRetiredStaysRetired(_ *testing.T, f *fixture) {
	f.claim(nil, 1, "web", "k1")
	f.endFirst()
	f.endFirst()
	f.claim(ledger.ErrRetired, 1, "web", "k1")
	f.claim(ledger.ErrRetired, 1, "www", "k2")
}

func testRetireBeforeClaim(_ *testing.T, f *fixture) {
	f.endFirst()
	f.claim(ledger.ErrRetired, 1, "web", "k1")
}

func testRetireAtAnyMoment(t *testing.T, f *fixture) {
	// Before the claim, between claim and confirmation, after it, and twice.
	f.enroll(3, "confirmed", "k3")
	g := f.claim(nil, 2, "claimed", "k2")
	for _, n := range []int{3, 1, 2, 2, 1, 3} {
		if err := f.Retire(t.Context(), instance(n)); err != nil {
			t.Fatal(err)
		}
	}
	for n, name := range map[int]string{1: "new", 2: "claimed", 3: "confirmed"} {
		key := fmt.Sprintf("k%d", n)
		f.claim(ledger.ErrRetired, n, name, key)
		if err := f.Confirm(t.Context(), f.claimOf(n, name, key), g, f.now); !errors.Is(err, ledger.ErrRetired) {
			t.Errorf("confirmation of instance %d: error %v, want %v", n, err, ledger.ErrRetired)
		}
		if !f.lookup(n).Retired {
			t.Errorf("instance %d has not ended", n)
		}
	}
}

func testNoKeys(t *testing.T, f *fixture) {
	if _, err := f.Claim(t.Context(), f.claimOf(1, "web"), f.now); err == nil {
		t.Error("a claim without keys is accepted")
	}
	f.claim(nil, 2, "web", "k2")
}

func testLookup(t *testing.T, f *fixture) {
	want := ledger.Record{}
	compare := func(after string) {
		t.Helper()
		got := f.lookup(1)
		got.Expires = time.Time{} // by the ledger's own clock
		if !reflect.DeepEqual(got, want) {
			t.Errorf("after %s: %+v, want %+v", after, got, want)
		}
	}
	compare("nothing")
	first := f.claim(nil, 1, "web", "k2", "k1", "k2")
	want = ledger.Record{Version: 1, Generation: first.Generation, Fingerprints: []string{"k1", "k2"}}
	compare("a claim")
	if err := f.Confirm(t.Context(), f.claimOf(1, "web", "k1"), first, f.now); err != nil {
		t.Fatal(err)
	}
	want.Version, want.ConfirmedHostname, want.ValidUntil, want.Lease = 2, "web", f.now.Add(lifetime), f.now.Add(lifetime)
	want.Renewed = f.now
	compare("its confirmation")
	f.claim(nil, 1, "www", "k1", "k0")
	want.Version, want.Fingerprints = 3, []string{"k0", "k1", "k2"}
	compare("a renaming")
	f.endFirst()
	want.Version, want.Retired = 4, true
	compare("the end")
	f.endFirst()
	compare("the end again")
}

func testSeeTags(t *testing.T, f *fixture) {
	see := func(version, want uint64) {
		t.Helper()
		if err := f.SeeTags(t.Context(), instance(1), version); err != nil {
			t.Errorf("version %d: error %v", version, err)
		}
		if got := f.lookup(1).TagsVersion; got != want {
			t.Errorf("version %d: %d changes counted, want %d", version, got, want)
		}
	}
	f.claim(nil, 1, "web", "k1")
	see(5, 1)
	see(math.MaxUint64, 2) // anyone who can write to the queue chooses the version
	see(6, 3)
	see(6, 4)
	f.claim(nil, 1, "web", "k1")
	if got := f.lookup(1).TagsVersion; got != 4 {
		t.Errorf("%d changes counted after a claim, want 4", got)
	}
	if r, err := f.Announce(t.Context(), instance(1)); err != nil || !reflect.DeepEqual(r, f.lookup(1)) || r.TagsVersion != 5 {
		t.Errorf("announced %+v, error %v", r, err)
	}
	f.endFirst()
	retired := f.lookup(1)
	if r, err := f.Announce(t.Context(), instance(1)); err != nil || !reflect.DeepEqual(r, retired) {
		t.Errorf("announced after the end: %+v, error %v", r, err)
	}
	if err := f.SeeTags(t.Context(), instance(1), 7); !errors.Is(err, ledger.ErrRetired) {
		t.Errorf("after the end: error %v, want %v", err, ledger.ErrRetired)
	}
	if got := f.lookup(1); !reflect.DeepEqual(got, retired) {
		t.Errorf("a note on a record that ended made it %+v, want %+v", got, retired)
	}
}

// An enrollment that has read the old tags, and has not claimed anything yet, must be
// able to find out.
func testSeeTagsOfAnUnknownInstance(t *testing.T, f *fixture) {
	if err := f.SeeTags(t.Context(), instance(1), 1); !errors.Is(err, ledger.ErrSeen) {
		t.Errorf("error %v, want %v", err, ledger.ErrSeen)
	}
	noted := f.lookup(1)
	noted.Expires = time.Time{} // by the ledger's own clock
	if want := (ledger.Record{Version: 1, TagsVersion: 1}); !reflect.DeepEqual(noted, want) {
		t.Errorf("record %+v, want %+v", noted, want)
	}
	p := ledger.Permit{Fingerprint: "k1", ValidUntil: f.now.Add(time.Hour), By: "somebody"}
	if err := f.Permit(t.Context(), instance(1), p); !errors.Is(err, ledger.ErrUnclaimed) {
		t.Errorf("permit: error %v, want %v", err, ledger.ErrUnclaimed)
	}
	c := f.claimOf(1, "web", "k1")
	r, err := f.Complete(t.Context(), c, f.make(nil, c), f.now)
	if err != nil {
		t.Fatal(err)
	}
	if r.Generation != 1 || r.TagsVersion != 1 {
		t.Errorf("record %+v, want generation 1 with the note", r)
	}
}

func testComplete(t *testing.T, f *fixture) {
	c := f.claimOf(1, "web", "k1")
	c.Lease = c.ValidUntil.Add(-time.Minute)
	g := f.make(nil, c)
	r, err := f.Complete(t.Context(), c, g, f.now)
	if err != nil {
		t.Fatal(err)
	}
	if r.Version != g.Version+1 || r.ConfirmedHostname != "web" || !r.Lease.Equal(c.Lease) || !r.ValidUntil.Equal(c.ValidUntil) {
		t.Errorf("record %+v after version %d of the claim, want lease %s, end %s", r, g.Version, c.Lease, c.ValidUntil)
	}
	g = f.make(nil, c)
	if again, err := f.Complete(t.Context(), c, g, f.now); err != nil || again.Version != g.Version+1 {
		t.Errorf("the same again: version %d after %d, error %v", again.Version, g.Version, err)
	}
	g = f.make(nil, c)
	if err := f.SeeTags(t.Context(), instance(1), 1); err != nil {
		t.Fatal(err)
	}
	if r, err = f.Complete(t.Context(), c, g, f.now); err != nil || r.Version != g.Version+2 || r.TagsVersion != 1 {
		t.Errorf("with a note in between: %+v after version %d, error %v", r, g.Version, err)
	}
}

// Two signers with one ledger would take turns writing one node.
func testOtherSigner(t *testing.T, f *fixture) {
	claimBy := func(signer string, want error) {
		t.Helper()
		c := f.claimOf(1, "web", "k1")
		c.Signer = signer
		f.make(want, c)
	}
	claimBy("", nil)
	claimBy("first", nil)
	claimBy("second", ledger.ErrOtherSigner)
	claimBy("first", nil)
	if got := f.lookup(1).Signer; got != "first" {
		t.Errorf("signer %q, want first", got)
	}
	f.now = f.now.Add(lifetime)
	claimBy("second", ledger.ErrOtherSigner)
	f.now = f.now.Add(time.Second) // the last certificate has expired
	claimBy("second", nil)
	claimBy("first", ledger.ErrOtherSigner)
}

func testLookupAll(t *testing.T, f *fixture) {
	var all []ec2ref.Instance
	for n := range 250 {
		all = append(all, instance(n))
	}
	f.claim(nil, 1, "web", "k1")
	f.claim(nil, 249, "db", "k249")
	records, err := f.LookupAll(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	for n, i := range all {
		if want := f.lookup(n); !reflect.DeepEqual(records[i], want) {
			t.Errorf("instance %d: %+v, want %+v", n, records[i], want)
		}
	}
}

func testImageOwner(t *testing.T, f *fixture) {
	for _, step := range []struct{ says, want ec2ref.Account }{
		{"", ""}, {"111111111111", "111111111111"}, {"222222222222", "111111111111"}, {"", "111111111111"},
	} {
		c := f.claimOf(1, "web", "k1")
		c.ImageOwner = step.says
		f.make(nil, c)
		if got := f.lookup(1).ImageOwner; got != step.want {
			t.Errorf("owner %q after a claim that says %q, want %q", got, step.says, step.want)
		}
	}
}

func testCanceled(t *testing.T, f *fixture) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Claim(ctx, f.claimOf(1, "web", "k1"), f.now); !errors.Is(err, context.Canceled) {
		t.Errorf("claim: error %v", err)
	}
	if err := f.Retire(ctx, instance(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("end: error %v", err)
	}
	f.claim(nil, 1, "web", "k1")
}
