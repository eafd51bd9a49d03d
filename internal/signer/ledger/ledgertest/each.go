package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

func eachTests() map[string]func(*testing.T, *fixture) {
	return map[string]func(*testing.T, *fixture){
		"each record is visited once":         testEach,
		"a visit's error ends the walk":       testEachError,
		"a confirmation notes time and rule":  testRenewed,
		"a renewal without a rule forgets it": testRenewedWithoutRule,
		"the latest refusal is kept":          testRefusal,
		"a refusal is bounded":                testRefusalBounded,
		"a walk of all records needs time":    testEachCanceled,
	}
}

func testEach(t *testing.T, f *fixture) {
	const many = 40
	want := make(map[ec2ref.Instance]ledger.Record)
	for n := range many {
		f.enroll(n, fmt.Sprintf("web-%d", n), fmt.Sprintf("k%d", n))
	}
	f.endFirst()
	for n := range many {
		want[instance(n)] = f.lookup(n)
	}
	if err := f.SeeTags(t.Context(), instance(many), 1); err == nil { // a note, and no claim
		t.Error("a note of a stranger's tags is no error")
	}
	got := make(map[ec2ref.Instance]ledger.Record)
	err := f.Each(t.Context(), ledger.Visitor{Record: func(i ec2ref.Instance, r ledger.Record) error {
		if _, twice := got[i]; twice {
			t.Errorf("%s comes twice", i.ID)
		}
		got[i] = r
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", slices.SortedFunc(maps.Keys(got), compareIDs), slices.SortedFunc(maps.Keys(want), compareIDs))
	}
}

func testEachError(t *testing.T, f *fixture) {
	f.enroll(1, "web", "k1")
	enough := errors.New("enough")
	err := f.Each(t.Context(), ledger.Visitor{Record: func(ec2ref.Instance, ledger.Record) error { return enough }})
	if !errors.Is(err, enough) {
		t.Errorf("error %v, want %v", err, enough)
	}
}

func testEachCanceled(t *testing.T, f *fixture) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Each(ctx, ledger.Visitor{}); err == nil {
		t.Error("a walk without time is no error")
	}
	if err := f.NoteRefusal(ctx, instance(1), ledger.Refusal{At: f.now}); err == nil {
		t.Error("a note without time is no error")
	}
}

// refusals returns all refusals, and fails if there is a record.
func (f *fixture) refusals() map[ec2ref.Instance]ledger.Refusal {
	f.t.Helper()
	all := make(map[ec2ref.Instance]ledger.Refusal)
	err := f.Each(f.t.Context(), ledger.Visitor{
		Record:  func(i ec2ref.Instance, _ ledger.Record) error { return fmt.Errorf("%s has a record", i.ID) },
		Refusal: func(i ec2ref.Instance, r ledger.Refusal) error { all[i] = r; return nil },
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return all
}

// testRefusal has refusals arrive out of order: a slow request may note its own last.
func testRefusal(t *testing.T, f *fixture) {
	for _, r := range []ledger.Refusal{
		{At: f.now, Code: "policy_refused", Reason: "no rule matches"},
		{At: f.now.Add(time.Minute), Code: "host_key_conflict", Reason: "other keys"},
		{At: f.now.Add(time.Second), Code: "policy_refused", Reason: "late"},
	} {
		if err := f.NoteRefusal(t.Context(), instance(1), r); err != nil {
			t.Fatal(err)
		}
	}
	want := map[ec2ref.Instance]ledger.Refusal{instance(1): {At: f.now.Add(time.Minute), Code: "host_key_conflict", Reason: "other keys"}}
	if got := f.refusals(); !reflect.DeepEqual(got, want) {
		t.Errorf("refusals %+v, want %+v", got, want)
	}
	if r := f.lookup(1); r.Version != 0 {
		t.Errorf("a refusal made the record %+v", r)
	}
}

func testRefusalBounded(t *testing.T, f *fixture) {
	reason := "tag \x1b[2J\n" + strings.Repeat("ä", ledger.MaxReason)
	if err := f.NoteRefusal(t.Context(), instance(1), ledger.Refusal{At: f.now.Add(time.Millisecond), Code: "c", Reason: reason}); err != nil {
		t.Fatal(err)
	}
	got := f.refusals()[instance(1)]
	if len(got.Reason) > ledger.MaxReason || !strings.HasPrefix(got.Reason, "tag  [2J ä") || !strings.HasSuffix(got.Reason, "ä…") || !got.At.Equal(f.now) {
		t.Errorf("refusal %+v", got)
	}
}

func testRenewed(t *testing.T, f *fixture) {
	for _, rule := range []string{"web", "db"} {
		f.now = f.now.Add(lifetime / 3)
		f.confirmRule(1, rule)
		if r := f.lookup(1); !r.Renewed.Equal(f.now) || r.Rule != rule || r.Program != "v1-"+rule {
			t.Errorf("renewed %s by rule %q, program %q, want %s and %q", r.Renewed, r.Rule, r.Program, f.now, rule)
		}
	}
}

func testRenewedWithoutRule(t *testing.T, f *fixture) {
	f.confirmRule(1, "web")
	f.confirmRule(1, "")
	if r := f.lookup(1); r.Rule != "" {
		t.Errorf("rule %q of an earlier claim", r.Rule)
	}
}

// confirmRule enrolls an instance, or renews it, by a rule.
func (f *fixture) confirmRule(n int, rule string) {
	f.t.Helper()
	c := ledger.Claim{Instance: instance(n), Fingerprints: []string{"k"}, Hostname: "web", ValidUntil: f.now.Add(lifetime), Rule: rule, Program: "v1-" + rule}
	grant, err := f.Claim(f.t.Context(), c, f.now)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := f.Confirm(f.t.Context(), c, grant, f.now); err != nil {
		f.t.Fatal(err)
	}
}
