package ledger_test

import (
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/ledger"
	"github.com/hallmark-ssh/hallmark/internal/ledger/ledgertest"
)

func TestMemory(t *testing.T) {
	ledgertest.Run(t, func(*testing.T) ledgertest.Ledger { return new(ledger.Memory) })
}
