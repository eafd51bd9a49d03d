package enroll

import (
	"encoding/json"
	"log/slog"
	"syscall"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
)

// These measure what one request costs the signer's own process, by how far it gets. STS, EC2,
// the ledger and Teleport are fakes in the process and answer at once; the fakes' two
// certificates are part of a granted request's figure. Time is processor time, so the requests
// per second are those of one core, even on a busy machine.
func BenchmarkEnroll(b *testing.B) {
	benchmarks := []struct {
		name   string
		code   protocol.Code // empty: granted
		change func(*attempt)
	}{
		{"not-JSON", protocol.CodeMalformed, func(a *attempt) {
			a.http = func(r *entry.Request) { r.Body = []byte("x") }
		}},
		{"unknown-field", protocol.CodeMalformed, func(a *attempt) {
			a.http = func(r *entry.Request) { r.Body = append([]byte(`{"debug":true,`), r.Body[1:]...) }
		}},
		{"document-signature", protocol.CodeIdentityInvalid, func(a *attempt) {
			a.region = regions()["hm-test-2"] // it says that it is from the other region
		}},
		{"unlisted-account", protocol.CodeNotAllowed, func(a *attempt) {
			a.document["accountId"] = "999999999999"
		}},
		{"host-key-signature", protocol.CodeHostKeyUnproved, func(a *attempt) {
			a.request = func(r *protocol.Request) { r.Signatures[0] = r.Signatures[1] }
		}},
		{"caller-proof", protocol.CodeCallerProofInvalid, func(a *attempt) {
			a.request = func(r *protocol.Request) { r.Caller.SecurityToken = "another" }
		}},
		{"granted", "", func(*attempt) {}},
	}
	for _, bm := range benchmarks {
		b.Run(bm.name, func(b *testing.B) {
			w := newWorld(b)
			a := newAttempt(b, w.now)
			bm.change(a)
			measureEnroll(b, w, a.build(b), bm.code)
		})
	}
}

func measureEnroll(b *testing.B, w *world, r entry.Request, want protocol.Code) {
	w.signer.Log = slog.New(slog.NewJSONHandler(discard{}, nil))
	var answer entry.Answer
	b.ReportAllocs()
	start := processorTime(b)
	for b.Loop() {
		// The limits see each request as the first one, and it leaves nothing behind.
		w.signer.attempts, w.signer.proved = limiter{}, limiter{}
		w.calls, w.claimed = w.calls[:0], w.claimed[:0]
		answer = w.signer.Enroll(b.Context(), r)
	}
	used := processorTime(b) - start
	b.ReportMetric(float64(used.Microseconds())/float64(b.N), "cpu-us/op")
	b.ReportMetric(float64(b.N)/used.Seconds(), "requests/s")
	var refused protocol.ErrorResponse
	if err := json.Unmarshal(answer.Body, &refused); err != nil {
		b.Fatal(err)
	}
	if refused.Error.Code != want {
		b.Fatalf("code %q, want %q: %s", refused.Error.Code, want, answer.Body)
	}
}

// processorTime is what the process has used so far, including its garbage collector.
func processorTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// discard receives the audit lines, which are still formatted: a handler that recognizes
// io.Discard would skip that.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
