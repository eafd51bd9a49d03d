package enroll

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

// junk is a stolen document with a made-up proof.
func junk(t testing.TB, now time.Time, source string) *attempt {
	t.Helper()
	a := newAttempt(t, now)
	a.request = func(r *protocol.Request) { r.Caller.Authorization = "junk" }
	a.http = func(r *entry.Request) { r.Source = source }
	return a
}

func TestAStolenDocumentCostsOneCallAndNotForLong(t *testing.T) {
	w := newWorld(t)
	for n := range attemptBurst {
		if _, _, refused := w.enroll(junk(t, w.now, "198.51.100.66")); refused.Code != protocol.CodeCallerProofInvalid {
			t.Fatalf("attempt %d: code %q", n, refused.Code)
		}
		if len(w.calls) != n+1 || w.upstream() != untilSTS {
			t.Fatalf("attempt %d: calls %q, want one to STS each", n, w.calls)
		}
	}
	for range 100 {
		if _, _, refused := w.enroll(junk(t, w.now, "198.51.100.66")); refused.Code != protocol.CodeRateLimited {
			t.Fatalf("code %q, want %q", refused.Code, protocol.CodeRateLimited)
		}
	}
	if len(w.calls) != attemptBurst {
		t.Errorf("%d calls, want no more than %d", len(w.calls), attemptBurst)
	}
	// The thief has used up only the thief's own attempts.
	if status, _, refused := w.enroll(newAttempt(t, w.now)); status != http.StatusOK {
		t.Errorf("the machine itself: %+v", refused)
	}
}

func TestRetryAfterIsWhenTheNextAttemptCounts(t *testing.T) {
	w := newWorld(t)
	for range attemptBurst {
		w.enroll(junk(t, w.now, "198.51.100.66"))
	}
	const passed = 7500 * time.Millisecond
	w.now = w.now.Add(passed)
	answer := w.signer.Enroll(t.Context(), junk(t, w.now.Truncate(time.Second), "198.51.100.66").build(t))
	if got := answer.Header["Retry-After"]; answer.Status != http.StatusTooManyRequests || got != "23" {
		t.Fatalf("status %d, Retry-After %q, want 23: what is left of %s, rounded up", answer.Status, got, attemptEvery)
	}
	seconds, err := strconv.Atoi(answer.Header["Retry-After"])
	if err != nil {
		t.Fatal(err)
	}
	w.now = w.now.Add(time.Duration(seconds) * time.Second)
	if _, _, refused := w.enroll(junk(t, w.now.Truncate(time.Second), "198.51.100.66")); refused.Code != protocol.CodeCallerProofInvalid {
		t.Errorf("after that time: code %q", refused.Code)
	}
}

// Root on the machine can prove the instance as often as it wants, from many addresses.
func TestAProvedInstanceIsLimitedWhereverItCallsFrom(t *testing.T) {
	w := newWorld(t)
	w.signer.Ledger = forgetful{fakeLedger{w}} // so that no key is recorded
	a := newAttempt(t, w.now)
	from := func(n int) { a.http = func(r *entry.Request) { r.Source = "192.0.2." + strconv.Itoa(n) } }
	for n := range provedBurst {
		from(n)
		if status, _, refused := w.enroll(a); status != http.StatusOK {
			t.Fatalf("request %d: %+v", n, refused)
		}
	}
	w.calls = nil
	from(provedBurst)
	if _, _, refused := w.enroll(a); refused.Code != protocol.CodeRateLimited {
		t.Errorf("code %q, want %q", refused.Code, protocol.CodeRateLimited)
	}
	if w.upstream() != untilSTS {
		t.Errorf("calls %q, want none after STS", w.upstream())
	}
	w.now = w.now.Add(provedEvery)
	a = newAttempt(t, w.now)
	a.http = func(r *entry.Request) { r.Source = "192.0.2.200" }
	if _, _, refused := w.enroll(a); refused.Code == protocol.CodeRateLimited {
		t.Error("still limited after the time of one token")
	}
}

func TestNetwork(t *testing.T) {
	tests := map[string]string{
		"192.0.2.1":           "192.0.2.1/32",
		"::ffff:192.0.2.1":    "192.0.2.1/32",
		"2001:db8:1:2:3::4":   "2001:db8:1:2::/64",
		"2001:db8:1:2::5%eth": "2001:db8:1:2::/64",
		"":                    netip.Prefix{}.String(),
		"192.0.2.1:443":       netip.Prefix{}.String(),
	}
	for source, want := range tests {
		if got := network(source).String(); got != want {
			t.Errorf("network(%q) = %s, want %s", source, got, want)
		}
	}
}

func TestLimiterIsBoundedAndForgetsTheOldest(t *testing.T) {
	var l limiter
	now := time.Unix(1_700_000_000, 0)
	take := func(id string) time.Duration {
		return l.take(bucket{instance: ec2ref.Instance{ID: ec2ref.InstanceID(id)}}, 1, time.Minute, now)
	}
	take("old")
	take("kept")
	for n := range maxBuckets {
		take("other-" + strconv.Itoa(n))
		if wait := take("kept"); wait != time.Minute {
			t.Fatalf("a bucket in use was forgotten: wait %s", wait)
		}
	}
	if n := len(l.buckets.elements); n != maxBuckets || l.buckets.order.Len() != n {
		t.Errorf("%d buckets, %d in the list, want %d", n, l.buckets.order.Len(), maxBuckets)
	}
	if wait := take("old"); wait != 0 {
		t.Errorf("the oldest bucket is still there: wait %s", wait)
	}
}

func TestLimiterIsSafeForConcurrentUse(t *testing.T) {
	var l limiter
	now := time.Unix(1_700_000_000, 0)
	var group sync.WaitGroup
	var mu sync.Mutex
	taken := 0
	for range 50 {
		group.Go(func() {
			if l.take(bucket{}, 7, time.Minute, now) == 0 {
				mu.Lock()
				defer mu.Unlock()
				taken++
			}
		})
	}
	group.Wait()
	if taken != 7 {
		t.Errorf("%d tokens of a bucket of 7", taken)
	}
}

// forgetful is a ledger that does not know the instance's keys when it is asked for
// them, as before the first enrollment.
type forgetful struct{ fakeLedger }

func (f forgetful) Lookup(context.Context, ec2ref.Instance) (ledger.Record, error) {
	return ledger.Record{}, nil
}

// local is any process on the machine: it has the document and the role's credentials, and its
// own keys.
func local(t testing.TB, now time.Time) *attempt { return newAttempt(t, now) }

// A process on the machine uses up the shared limit just before each of the machine's
// attempts, for half a day and from the machine's own address. Each attempt gets through.
func TestOthersOnTheMachineDoNotStarveItsRenewals(t *testing.T) {
	w := newWorld(t)
	w.lookups = new(int)
	honest := newAttempt(t, w.now)
	if status, _, refused := w.enroll(honest); status != http.StatusOK {
		t.Fatalf("%+v", refused)
	}
	w.pass(honest, 3*24*time.Hour)
	for range 12 {
		w.pass(honest, time.Hour)
		limited := false
		for range attemptBurst + 5 {
			_, _, refused := w.enroll(local(t, w.now))
			limited = limited || refused.Code == protocol.CodeRateLimited
		}
		if status, _, refused := w.enroll(honest); status != http.StatusOK {
			t.Fatalf("the renewal: %+v", refused)
		}
		if !limited {
			t.Fatal("the process is not limited at all")
		}
	}
}

// Root on the machine is limited too, and does not use up the shared limit.
func TestAMachineWithItsKeysIsLimited(t *testing.T) {
	w := newWorld(t)
	a := newAttempt(t, w.now)
	granted := 0
	for range 100 {
		if status, _, _ := w.enroll(a); status == http.StatusOK {
			granted++
		}
	}
	w.pass(a, recordedFor) // what was read before the first enrollment is forgotten
	for range 100 {
		if status, _, _ := w.enroll(a); status == http.StatusOK {
			granted++
		}
	}
	if want := 2*provedBurst + 1; granted > want+1 || granted < want-1 {
		t.Errorf("%d requests granted within a minute, want about %d", granted, want)
	}
}

// However often requests come with keys that are not recorded, the signer reads the ledger at
// most once a minute before STS, and not at all until the shared bucket is empty.
func TestTheLedgerIsReadOnceAMinuteBeforeSTS(t *testing.T) {
	w := newWorld(t)
	w.lookups = new(int)
	for range attemptBurst {
		w.enroll(junk(t, w.now, "198.51.100.66"))
	}
	if *w.lookups != 0 {
		t.Errorf("%d reads before the limit", *w.lookups)
	}
	for range 50 {
		w.enroll(junk(t, w.now, "198.51.100.66"))
	}
	if *w.lookups != 1 {
		t.Errorf("%d reads within a minute, want 1", *w.lookups)
	}
	w.now = w.now.Add(recordedFor)
	for range 50 {
		w.enroll(junk(t, w.now, "198.51.100.66"))
	}
	if *w.lookups != 2 {
		t.Errorf("%d reads in two minutes, want 2", *w.lookups)
	}
}

// While the ledger does not answer, its last answer counts.
func TestRecordedKeysOutlastTheLedger(t *testing.T) {
	var r recordedKeys
	i, now := inTestAccount(testInstance), time.Unix(1_700_000_000, 0)
	get := func(keys []string, err error) []string {
		return r.get(i, now, func() ([]string, error) { return keys, err })
	}
	if got := get(nil, errors.New("throttled")); got != nil {
		t.Fatalf("keys %v before any were read", got)
	}
	now = now.Add(recordedFor)
	get([]string{"k1"}, nil)
	now = now.Add(recordedFor)
	if got := get(nil, errors.New("throttled")); !slices.Equal(got, []string{"k1"}) {
		t.Errorf("keys %v, want the last that were read", got)
	}
	now = now.Add(-time.Hour) // the clock is set back
	if got := get([]string{"k2"}, nil); !slices.Equal(got, []string{"k2"}) {
		t.Errorf("keys %v, want them read again", got)
	}
}

// An operator's permit works even if others on the machine use up the shared limit.
func TestOthersOnTheMachineDoNotStarveAPermittedRekey(t *testing.T) {
	w := newWorld(t)
	w.hold(testInstance, testHostname, "SHA256:old")
	honest := newAttempt(t, w.now)
	err := w.ledger.Permit(t.Context(), inTestAccount(testInstance), ledger.Permit{
		Fingerprint: ssh.FingerprintSHA256(honest.keys[0].PublicKey()), ValidUntil: w.now.Add(time.Hour), By: "ann",
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 * provedBurst {
		w.enroll(local(t, w.now))
	}
	if status, _, refused := w.enroll(honest); status != http.StatusOK {
		t.Errorf("%+v", refused)
	}
}
