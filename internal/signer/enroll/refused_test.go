package enroll

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

// notes keeps the refusals that are noted, or fails.
type notes struct {
	noted map[ec2ref.Instance]ledger.Refusal
	err   error
}

func (n *notes) NoteRefusal(_ context.Context, i ec2ref.Instance, r ledger.Refusal) error {
	if n.noted == nil {
		n.noted = make(map[ec2ref.Instance]ledger.Refusal)
	}
	n.noted[i] = r
	return n.err
}

func TestRefusalsAreNoted(t *testing.T) {
	tests := map[string]struct {
		change func(*world, *attempt)
		code   protocol.Code
		noted  bool
	}{
		"granted": {func(*world, *attempt) {}, "", false},
		"policy":  {func(w *world, _ *attempt) { w.instance.ImageOwner = "999999999999" }, protocol.CodePolicyRefused, true},
		"off-boarded": {func(w *world, _ *attempt) {
			if err := w.ledger.Retire(t.Context(), inTestAccount(testInstance)); err != nil {
				t.Fatal(err)
			}
		}, protocol.CodeInstanceEnded, true},
		"EC2 does not answer": {func(w *world, _ *attempt) { w.ec2Err = errors.New("no route") }, protocol.CodeUpstream, false},
		"nothing proved":      {func(w *world, _ *attempt) { w.stsErr = identity.ErrCallerProof }, protocol.CodeCallerProofInvalid, false},
		"asked too often": {func(w *world, _ *attempt) {
			for range provedBurst {
				w.signer.proved.take(bucket{instance: inTestAccount(testInstance)}, provedBurst, provedEvery, w.now)
			}
		}, protocol.CodeRateLimited, false},
		"a leave by a machine that never enrolled": {func(_ *world, a *attempt) { a.payload.Purpose = protocol.PurposeLeave }, protocol.CodeNotEnrolled, false},
		"the time is an hour off":                  {func(w *world, _ *attempt) { w.now = w.now.Add(time.Hour) }, protocol.CodeClockSkew, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w, n := newWorld(t), new(notes)
			a := newAttempt(t, w.now)
			tt.change(w, a)
			w.signer.Refusals = n
			_, _, refused := w.enroll(a)
			if refused.Code != tt.code {
				t.Fatalf("code %q, want %q: %s", refused.Code, tt.code, w.log.String())
			}
			got, noted := n.noted[inTestAccount(testInstance)]
			if noted != tt.noted || len(n.noted) > 1 {
				t.Fatalf("noted %+v, want %v", n.noted, tt.noted)
			}
			if noted && (got.Code != string(tt.code) || !got.At.Equal(w.now) || got.Reason == "") {
				t.Errorf("noted %+v", got)
			}
		})
	}
}

// A note that fails is logged, and the machine gets the same answer.
func TestRefusalWithoutNote(t *testing.T) {
	w := newWorld(t)
	a := newAttempt(t, w.now)
	w.signer.Refusals = &notes{err: errors.New("the table is gone")}
	w.instance.ImageOwner = "999999999999"
	status, _, refused := w.enroll(a)
	if status != http.StatusForbidden || refused.Code != protocol.CodePolicyRefused {
		t.Errorf("status %d, code %q", status, refused.Code)
	}
	if log := w.log.String(); !strings.Contains(log, "refusal not noted") || !strings.Contains(log, "the table is gone") {
		t.Errorf("log %s", log)
	}
}

// What a report shows of an enrollment is in the record.
func TestEnrollmentIsNotedForReports(t *testing.T) {
	w := newWorld(t)
	if status, _, refused := w.enroll(newAttempt(t, w.now)); status != http.StatusOK {
		t.Fatalf("%+v", refused)
	}
	r, err := w.ledger.Lookup(t.Context(), inTestAccount(testInstance))
	if err != nil || r.Rule == "" || !r.Renewed.Equal(w.now) {
		t.Errorf("rule %q, renewed %s, error %v; want a rule and %s", r.Rule, r.Renewed, err, w.now)
	}
}
