package signer

import (
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ledger"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// junk is a stolen document with a proof that its thief made up.
func junk(t testing.TB, now time.Time, source string) *attempt {
	t.Helper()
	a := newAttempt(t, now)
	a.request = func(r *protocol.Request) { r.Caller.Authorization = "junk" }
	a.http = func(r *Request) { r.Source = source }
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
	// What the thief used up is his own.
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

// Its root can prove the instance as often as it wants, from many addresses.
func TestAProvedInstanceIsLimitedWhereverItCallsFrom(t *testing.T) {
	w := newWorld(t)
	a := newAttempt(t, w.now)
	from := func(n int) { a.http = func(r *Request) { r.Source = "192.0.2." + strconv.Itoa(n) } }
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
	a.http = func(r *Request) { r.Source = "192.0.2.200" }
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
		return l.take(bucket{instance: ledger.Instance{ID: id}}, 1, time.Minute, now)
	}
	take("old")
	take("kept")
	for n := range maxBuckets {
		take("other-" + strconv.Itoa(n))
		if wait := take("kept"); wait != time.Minute {
			t.Fatalf("a bucket in use was forgotten: wait %s", wait)
		}
	}
	if n := len(l.buckets); n != maxBuckets || l.recent.Len() != n {
		t.Errorf("%d buckets, %d in the list, want %d", n, l.recent.Len(), maxBuckets)
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
