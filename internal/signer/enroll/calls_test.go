package enroll

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger/ledgertest"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

// counter counts calls by name.
type counter struct {
	mu    sync.Mutex
	calls map[string]int
}

func (c *counter) count(call string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls == nil {
		c.calls = make(map[string]int)
	}
	c.calls[call]++
}

// take returns the counts so far as text, in order of the names, and starts over.
func (c *counter) take() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []string
	for _, call := range slices.Sorted(maps.Keys(c.calls)) {
		list = append(list, fmt.Sprintf("%d %s", c.calls[call], call))
	}
	clear(c.calls)
	if list == nil {
		return "none"
	}
	return strings.Join(list, ", ")
}

// countedTable is a DynamoDB table that counts.
type countedTable struct {
	ledgertest.Table
	counter
}

func (c *countedTable) BatchGetItem(ctx context.Context, in *dynamodb.BatchGetItemInput, o ...func(*dynamodb.Options)) (*dynamodb.BatchGetItemOutput, error) {
	c.count("BatchGetItem")
	return c.Table.BatchGetItem(ctx, in, o...)
}

func (c *countedTable) PutItem(ctx context.Context, in *dynamodb.PutItemInput, o ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	c.count("PutItem")
	return c.Table.PutItem(ctx, in, o...)
}

func (c *countedTable) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, o ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	c.count("TransactWriteItems")
	return c.Table.TransactWriteItems(ctx, in, o...)
}

// countedCluster is a cluster that counts.
type countedCluster struct {
	fakeCluster
	*counter
}

func (c countedCluster) Node(ctx context.Context, id string) (*node.Node, error) {
	c.count("Node")
	return c.fakeCluster.Node(ctx, id)
}

func (c countedCluster) NodesNamed(ctx context.Context, hostnames ...string) ([]node.Node, error) {
	c.count("NodesNamed")
	return c.fakeCluster.NodesNamed(ctx, hostnames...)
}

func (c countedCluster) UpsertNode(ctx context.Context, n node.Node) error {
	c.count("UpsertNode")
	return c.fakeCluster.UpsertNode(ctx, n)
}

func (c countedCluster) SignHostKey(ctx context.Context, key ssh.PublicKey, principals []string, ttl time.Duration) (*ssh.Certificate, error) {
	c.count("SignHostKey")
	return c.fakeCluster.SignHostKey(ctx, key, principals, ttl)
}

func (c countedCluster) CAs(ctx context.Context) (teleport.CAs, error) {
	c.count("CAs")
	return c.fakeCluster.CAs(ctx)
}

// kinds returns how often the world recorded each of the calls.
func (w *world) kinds(calls ...string) string {
	var c counter
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, call := range w.calls {
		if slices.Contains(calls, call) {
			c.count(strings.Replace(call, "sts", "GetCallerIdentity", 1))
		}
	}
	return c.take()
}

// TestCallsOfAnEnrollment counts the calls of an enrollment when nothing else happens, for a
// machine with two host keys and a warm process. docs/architecture.md has the same table.
func TestCallsOfAnEnrollment(t *testing.T) {
	w := newWorld(t)
	table, cluster := new(countedTable), new(counter)
	w.signer.Ledger = ledger.NewDynamoDB(table, "ledger", func() time.Time { return w.now })
	w.signer.Connect = func(context.Context) (Cluster, error) { return countedCluster{fakeCluster{w}, cluster}, nil }
	w.useAWS()
	a := newAttempt(t, w.now)
	services := map[string]func() string{
		"EC2": func() string { return w.kinds("DescribeInstances", "DescribeImages", "DescribeInstanceImageMetadata") },
		"SSM": func() string { return w.kinds("GetParameter") }, "STS": func() string { return w.kinds("sts") },
		"DynamoDB": table.take, "Teleport": cluster.take,
	}
	got := make(map[string][]string)
	for range 2 {
		if status, _, refused := w.enroll(a); status != http.StatusOK {
			t.Fatalf("status %d, %+v", status, refused)
		}
		for service, take := range services {
			got[service] = append(got[service], take())
		}
		w.calls = nil
		w.pass(a, 48*time.Hour)
	}

	text, err := os.ReadFile("../../../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	for service := range services {
		row := regexp.MustCompile(`(?m)^\| ` + service + ` \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$`).FindStringSubmatch(string(text))
		if row == nil {
			t.Errorf("docs/architecture.md has no row of %s; it is: %q", service, got[service])
			continue
		}
		if want := got[service]; row[1] != want[0] || row[2] != want[1] {
			t.Errorf("%s: documented are %q and %q, made are %q", service, row[1], row[2], want)
		}
	}
}
