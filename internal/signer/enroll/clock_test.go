package enroll

import (
	"net/http"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/clocktest"
	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

func TestAFrozenProcessReadsTheCAsAgain(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	w.signer.Now = func() time.Time { return now }
	current := sshkeytest.NewSigner(t).PublicKey()
	w.cas = func(int) teleport.CAs {
		return teleport.CAs{Host: []ssh.PublicKey{current}, OpenSSH: []ssh.PublicKey{current}}
	}
	before := w.signer.Answer(t.Context(), entry.Request{Method: http.MethodGet})
	current = sshkeytest.NewSigner(t).PublicKey() // a rotation
	now = clocktest.Freeze(now, clocktest.FreezeTime)
	after := w.signer.Answer(t.Context(), entry.Request{Method: http.MethodGet})
	if before.Status != http.StatusOK || after.Status != http.StatusOK || before.Header["ETag"] == after.Header["ETag"] {
		t.Errorf("after the freeze: status %d, list %q, want another than %q", after.Status, after.Header["ETag"], before.Header["ETag"])
	}
	w.dialErr = teleport.ErrUnavailable
	now = clocktest.Freeze(now, clocktest.FreezeTime)
	if late := w.signer.Answer(t.Context(), entry.Request{Method: http.MethodGet}); late.Status != http.StatusServiceUnavailable {
		t.Errorf("status %d with a list that is older than %s", late.Status, casRule().Kept)
	}
}

func TestAFrozenProcessRefillsItsLimits(t *testing.T) {
	for name, p := range map[string]pace{"attempts": {attemptBurst, attemptEvery}, "proved": {provedBurst, provedEvery}} {
		t.Run(name, func(t *testing.T) {
			var l limiter
			now := time.Now()
			for range p.burst {
				l.take(bucket{}, p.burst, p.every, now)
			}
			if l.take(bucket{}, p.burst, p.every, now) == 0 {
				t.Fatal("no limit")
			}
			now = clocktest.Freeze(now, clocktest.FreezeTime)
			for n := range p.burst {
				if wait := l.take(bucket{}, p.burst, p.every, now); wait != 0 {
					t.Fatalf("request %d after the freeze: wait %s", n, wait)
				}
			}
		})
	}
}

func TestAFrozenProcessReadsRecordedKeysAgain(t *testing.T) {
	var r recordedKeys
	now, reads := time.Now(), 0
	read := func() ([]string, error) { reads++; return nil, nil }
	r.get(inTestAccount(testInstance), now, read)
	r.get(inTestAccount(testInstance), clocktest.Freeze(now, clocktest.FreezeTime), read)
	if reads != 2 {
		t.Errorf("%d reads, want 2", reads)
	}
}

// If the clock is set back, what depends on it must not last longer.
func TestAClockThatIsPutBackKeepsNothing(t *testing.T) {
	w := newWorld(t)
	w.cas = func(int) teleport.CAs {
		key := sshkeytest.NewSigner(t).PublicKey()
		return teleport.CAs{Host: []ssh.PublicKey{key}, OpenSSH: []ssh.PublicKey{key}}
	}
	before := w.signer.Answer(t.Context(), entry.Request{Method: http.MethodGet})
	w.now = w.now.Add(-time.Hour)
	if after := w.signer.Answer(t.Context(), entry.Request{Method: http.MethodGet}); after.Header["ETag"] == before.Header["ETag"] {
		t.Error("the list from the future still serves")
	}
}

// Nothing that outlives a request has a monotonic reading, even if the clock has one.
func TestNothingStoredHasAMonotonicReading(t *testing.T) {
	w := newWorld(t)
	w.signer.Now = time.Now
	w.cas = func(int) teleport.CAs {
		return teleport.CAs{Host: []ssh.PublicKey{w.hostCA.PublicKey()}, OpenSSH: []ssh.PublicKey{w.hostCA.PublicKey()}}
	}
	if status, _, refused := w.enroll(newAttempt(t, w.now)); status != http.StatusOK {
		t.Fatalf("%+v", refused)
	}
	for range attemptBurst + 1 {
		w.enroll(junk(t, w.now, "198.51.100.66"))
	}
	if answer := w.signer.Answer(t.Context(), entry.Request{Method: http.MethodGet}); answer.Status != http.StatusOK {
		t.Fatalf("status %d", answer.Status)
	}
	s := w.signer
	kept := map[string]any{
		"attempts": &s.attempts, "proved": &s.proved, "recorded": &s.recorded, "authorities": &s.cas,
		"ledger": &w.ledger, "claimed": w.claimed, "nodes": w.nodes,
	}
	times := 0
	for name, value := range kept {
		times += clocktest.CheckStored(t, name, value)
	}
	if times < 10 {
		t.Errorf("only %d times found: the test does not see what is stored", times)
	}
}

// Teleport's clock is as far ahead as the signer accepts, and signing takes a while: the names
// stay held until the certificates have expired.
func TestACertificateNeverOutlastsItsClaim(t *testing.T) {
	w := newWorld(t)
	w.sign = func(c *ssh.Certificate) {
		w.now = w.now.Add(9 * time.Second)
		c.ValidBefore = uint64(w.now.Add(7*24*time.Hour + hostcert.MaxClockSkew).Unix())
	}
	// One key, since the clock moves without a lock.
	a := newAttempt(t, w.now)
	a.keys = a.keys[:1]
	status, got, refused := w.enroll(a)
	if status != http.StatusOK {
		t.Fatalf("%+v", refused)
	}
	c := must(hostcert.Parse(got.Certificates[0]))
	record := must(w.ledger.Lookup(t.Context(), inTestAccount(testInstance)))
	if end := time.Unix(int64(c.ValidBefore), 0); end.After(record.ValidUntil) {
		t.Errorf("the certificate ends %s after the claim", end.Sub(record.ValidUntil))
	}
	if len(w.claimed) != 2 {
		t.Errorf("%d claims, want a second one that is longer", len(w.claimed))
	}
	w.sign = nil
	w.pass(a, time.Hour)
	w.claimed = nil
	if status, _, refused := w.enroll(a); status != http.StatusOK || len(w.claimed) != 1 {
		t.Errorf("with true clocks: %+v, %d claims, want 1", refused, len(w.claimed))
	}
}
