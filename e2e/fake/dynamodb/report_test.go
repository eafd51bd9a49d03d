//go:build e2e && linux

package dynamodb_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ssh/hallmark/e2e/fake/dynamodb"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/report"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
)

const (
	fleetSize    = 10_000
	fleetSigner  = "signer.example.com"
	fleetAccount = ec2ref.Account("111122223333")
)

func member(n int) ec2ref.Instance {
	return ec2ref.Instance{Account: fleetAccount, Region: region, ID: ec2ref.InstanceID(fmt.Sprintf("i-%017x", n))}
}

// BenchmarkReport reports on 10,000 instances: their records are in DynamoDB Local, their
// nodes in an embedded cluster, and EC2 is a stand-in that answers by pages of 1,000.
func BenchmarkReport(b *testing.B) {
	held := fleetLedger(b)
	client := fleetCluster(b)
	fillCluster(b, client)
	reader := report.Reader{
		Ledger: held, EC2: fleetEC2(b), Places: []ec2ref.Place{{Account: fleetAccount, Region: region}}, Audience: fleetSigner,
		Nodes: func(ctx context.Context) ([]node.Node, error) {
			return client.NodesWith(ctx, map[string]string{node.SignerLabel: fleetSigner})
		},
	}
	for b.Loop() {
		fleet, err := reader.Read(b.Context(), report.Filter{})
		if err != nil {
			b.Fatal(err)
		}
		r := report.New(report.Join(fleet, time.Now()), fleet.Gaps, time.Now())
		if r.Summary.States[report.Enrolled] != fleetSize || !r.Complete {
			b.Fatalf("%s, gaps %v", r.Summary, fleet.Gaps)
		}
		if err := r.WriteJSON(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}

// fleetLedger returns a ledger that holds the fleet. One instance enrolls; the items of the
// others are copies of its, with their own names.
func fleetLedger(b *testing.B) *ledger.DynamoDB {
	b.Helper()
	local, err := dynamodb.Start(b.Context(), b.Output())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(local.Close)
	client := dynamodb.Client(local.URL, region)
	if err := dynamodb.CreateTable(b.Context(), client, "ledger"); err != nil {
		b.Fatal(err)
	}
	held := ledger.NewDynamoDB(client, "ledger", time.Now)
	now, first := time.Now(), member(0)
	c := ledger.Claim{
		Instance: first, Fingerprints: []string{"SHA256:a" + string(first.ID), "SHA256:b" + string(first.ID)}, Hostname: "web-" + string(first.ID),
		Image: "ami-0a1b2c3d4e5f60718", ImageOwner: fleetAccount, Signer: fleetSigner, Rule: "web", ValidUntil: now.Add(7 * 24 * time.Hour),
	}
	grant, err := held.Claim(b.Context(), c, now)
	if err != nil {
		b.Fatal(err)
	}
	if err := held.Confirm(b.Context(), c, grant, now); err != nil {
		b.Fatal(err)
	}
	scanned, err := client.Scan(b.Context(), &sdk.ScanInput{TableName: aws.String("ledger")})
	if err != nil {
		b.Fatal(err)
	}
	copyItems(b, client, scanned.Items)
	return held
}

// copyItems writes the first member's items for all others, 25 in a request.
func copyItems(b *testing.B, client *sdk.Client, items []map[string]types.AttributeValue) {
	b.Helper()
	const batch = 25
	group, ctx := errgroup.WithContext(b.Context())
	group.SetLimit(8)
	var writes []types.WriteRequest
	flush := func() {
		in := &sdk.BatchWriteItemInput{RequestItems: map[string][]types.WriteRequest{"ledger": writes}}
		writes = nil
		group.Go(func() error {
			out, err := client.BatchWriteItem(ctx, in)
			if err == nil && len(out.UnprocessedItems) > 0 {
				err = errors.New("items were not written")
			}
			return err
		})
	}
	for n := 1; n < fleetSize; n++ {
		for _, item := range items {
			renamed := make(map[string]types.AttributeValue, len(item))
			for name, value := range item {
				renamed[name] = rename(value, string(member(0).ID), string(member(n).ID))
			}
			if writes = append(writes, types.WriteRequest{PutRequest: &types.PutRequest{Item: renamed}}); len(writes) == batch {
				flush()
			}
		}
	}
	if len(writes) > 0 {
		flush()
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
}

// rename replaces an instance's id wherever a value has it.
func rename(value types.AttributeValue, from, to string) types.AttributeValue {
	switch v := value.(type) {
	case *types.AttributeValueMemberS:
		return &types.AttributeValueMemberS{Value: strings.ReplaceAll(v.Value, from, to)}
	case *types.AttributeValueMemberSS:
		texts := make([]string, len(v.Value))
		for n, text := range v.Value {
			texts[n] = strings.ReplaceAll(text, from, to)
		}
		return &types.AttributeValueMemberSS{Value: texts}
	case *types.AttributeValueMemberM:
		m := make(map[string]types.AttributeValue, len(v.Value))
		for key, inner := range v.Value {
			m[strings.ReplaceAll(key, from, to)] = rename(inner, from, to)
		}
		return &types.AttributeValueMemberM{Value: m}
	}
	return value
}

func fleetCluster(b *testing.B) *teleport.Client {
	b.Helper()
	cluster, err := teleporttest.Start(teleporttest.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = cluster.Close() })
	identity := filepath.Join(b.TempDir(), "identity")
	if err := os.WriteFile(identity, cluster.IdentityFile(), 0o600); err != nil {
		b.Fatal(err)
	}
	client, err := teleport.Dial(b.Context(), teleport.Config{
		Address: cluster.Address(), RootsPEM: cluster.RootsPEM(), Login: teleport.IdentityFile(identity),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = client.Close() })
	return client
}

// fillCluster writes the fleet's nodes.
func fillCluster(b *testing.B, client *teleport.Client) {
	b.Helper()
	group, ctx := errgroup.WithContext(b.Context())
	group.SetLimit(16)
	for n := range fleetSize {
		group.Go(func() error {
			i := member(n)
			return client.UpsertNode(ctx, node.Node{
				ID: i.NodeID(), Hostname: "web-" + string(i.ID), Address: "10.0.0.7:22", Expires: time.Now().Add(7 * 24 * time.Hour), Labels: map[string]string{
					node.SignerLabel: fleetSigner, node.RuleLabel: "web",
					node.AccountLabel: string(i.Account), node.RegionLabel: string(i.Region), node.InstanceLabel: string(i.ID),
				},
			})
		})
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
}

// identity is the account of the credentials.
type identity struct{}

func (identity) GetCallerIdentity(context.Context, *sts.GetCallerIdentityInput, ...func(*sts.Options)) (*sts.GetCallerIdentityOutput, error) {
	return &sts.GetCallerIdentityOutput{Account: aws.String(string(fleetAccount))}, nil
}

func fleetEC2(b *testing.B) *inventory.EC2 {
	b.Helper()
	server := httptest.NewServer(http.HandlerFunc(serveFleet))
	b.Cleanup(server.Close)
	return inventory.New(inventory.Config{
		AWS:      aws.Config{HTTPClient: http.DefaultClient, Credentials: credentials.NewStaticCredentialsProvider("test", "test", "")},
		Accounts: []inventory.Account{{ID: fleetAccount}}, Identity: identity{},
		Endpoint: func(ec2ref.Region) (string, error) { return server.URL + "/", nil }, Now: time.Now,
	})
}

// pageLatency is how long EC2 takes for a page of 1,000 instances.
const pageLatency = 500 * time.Millisecond

// serveFleet answers with a page, of instances with ten tags each.
func serveFleet(w http.ResponseWriter, r *http.Request) {
	const page = 1000
	select {
	case <-time.After(pageLatency):
	case <-r.Context().Done():
		return
	}
	start, _ := strconv.Atoi(r.FormValue("NextToken"))
	tags := strings.Repeat("<item><key>cost-center-and-more</key><value>a value of some length</value></item>", 10)
	_, _ = io.WriteString(w, "<DescribeInstancesResponse><reservationSet>")
	for n := start; n < start+page; n++ {
		_, _ = fmt.Fprintf(w, "<item><ownerId>%s</ownerId><instancesSet><item><instanceId>%s</instanceId><instanceState><name>running</name></instanceState>"+
			"<tagSet>%s</tagSet></item></instancesSet></item>", fleetAccount, member(n).ID, tags)
	}
	_, _ = io.WriteString(w, "</reservationSet>")
	if start+page < fleetSize {
		_, _ = fmt.Fprintf(w, "<nextToken>%d</nextToken>", start+page)
	}
	_, _ = io.WriteString(w, "</DescribeInstancesResponse>")
}
