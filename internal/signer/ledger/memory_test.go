package ledger_test

import (
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger/ledgertest"
)

func TestMemory(t *testing.T) {
	ledgertest.Run(t, func(*testing.T) ledgertest.Ledger { return new(ledger.Memory) })
}

func TestMemoryCloneIsSeparate(t *testing.T) {
	ctx, i := t.Context(), ec2ref.Instance{Account: "111122223333", Region: "us-west-2", ID: "i-0123456789abcdef0"}
	first := new(ledger.Memory)
	if err := first.Retire(ctx, i); err != nil {
		t.Fatal(err)
	}
	second := first.Clone()
	if first.String() != second.String() {
		t.Errorf("the clone has %s, want %s", second, first)
	}
	other := ec2ref.Instance{Account: i.Account, Region: i.Region, ID: "i-0123456789abcdef1"}
	if err := second.Retire(ctx, other); err != nil {
		t.Fatal(err)
	}
	record, err := first.Lookup(ctx, other)
	if err != nil || record.Retired || first.String() == second.String() {
		t.Errorf("the ledger changed with its clone: %+v, %v", record, err)
	}
}

func TestMemoryTombstonesExpire(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	m := &ledger.Memory{Now: func() time.Time { return now }}
	i := ec2ref.Instance{Account: "111122223333", Region: "us-west-2", ID: "i-0123456789abcdef0"}
	if err := m.Retire(t.Context(), i); err != nil {
		t.Fatal(err)
	}
	if record, err := m.Lookup(t.Context(), i); err != nil || !record.Expires.Equal(now.Add(7*24*time.Hour)) {
		t.Errorf("expires at %s (%v), want a week from now", record.Expires, err)
	}
}
