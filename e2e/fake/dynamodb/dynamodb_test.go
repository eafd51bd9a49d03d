//go:build e2e && linux

package dynamodb_test

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/fake/dynamodb"
	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger/ledgertest"
)

const region = "hm-test-1"

func TestMain(m *testing.M) { os.Exit(dynamodb.Isolated(m)) }

// emulator makes tables.
type emulator struct {
	url    string
	tables atomic.Int64
}

// open makes a table.
func (e *emulator) open(t *testing.T) (ledger.DynamoDBClient, string) {
	t.Helper()
	client, name := dynamodb.Client(e.url, region), fmt.Sprintf("ledger-%d", e.tables.Add(1))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := dynamodb.CreateTable(ctx, client, name); err != nil {
		t.Fatal(err)
	}
	return client, name
}

// test holds the ledger to its rules, in the emulator.
func (e *emulator) test(t *testing.T) {
	t.Run("contract", func(t *testing.T) {
		ledgertest.Run(t, func(t *testing.T) ledgertest.Ledger {
			client, table := e.open(t)
			return ledger.NewDynamoDB(client, table, time.Now)
		})
	})
	t.Run("crash", func(t *testing.T) { ledgertest.Crash(t, e.open) })
}

func skipUnlessStrict(t *testing.T, err error) {
	t.Helper()
	if err != nil && os.Getenv("HALLMARK_TEST_STRICT") == "" {
		t.Skip(err)
	}
}

func TestDynamoDBLocal(t *testing.T) {
	_, err := dynamodb.Find()
	skipUnlessStrict(t, err)
	local, err := dynamodb.Start(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(local.Close)
	e := &emulator{url: local.URL}
	e.test(t)
	t.Run("interleaved", func(t *testing.T) { ledgertest.Interleave(t, e.open) })
}

func TestMoto(t *testing.T) {
	if testing.Short() {
		t.Skip("make soak runs it: TestDynamoDBLocal runs the same suite")
	}
	skipUnlessStrict(t, moto.Installed(t.Context()))
	server, err := moto.Start(t.Context(), region, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	(&emulator{url: server.URL}).test(t)
}
