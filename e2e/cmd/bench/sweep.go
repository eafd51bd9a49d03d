//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	ststypes "github.com/aws/aws-sdk-go-v2/service/sts/types"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/stored"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/upkeep"
)

// The fleet of the sweep. For every ten nodes there is one instance that never enrolled.
const (
	sweepAccounts = 5
	sweepNodes    = 10000
	sweepImages   = 40
	sweepRegion   = "us-west-2"
	sweepAudience = "hallmark.example.com"
)

// printSweeps measures sweeps with the product's own code and an EC2 that answers over
// HTTP, in pages of real length. Ledger and cluster are in memory, so the time covers only
// the signer itself and EC2.
func printSweeps(ctx context.Context) error {
	for _, s := range []struct {
		name   string
		change func(*sweepWorld)
	}{
		{"nothing to do", func(*sweepWorld) {}},
		{"1 % gone, 5 % with other tags", func(w *sweepWorld) { w.change(100, 500) }},
		{"10 % gone, all others with other tags", func(w *sweepWorld) { w.change(1000, sweepNodes) }},
	} {
		figures, err := measureSweep(ctx, sweepNodes, s.change)
		if err != nil {
			return fmt.Errorf("sweep, %s: %w", s.name, err)
		}
		fmt.Printf("sweep of %d nodes, %d accounts, %s: %s\n", sweepNodes, sweepAccounts, s.name, figures)
	}
	return nil
}

// sweepFigures is a sweep's result and its cost.
type sweepFigures struct {
	report  upkeep.Report
	calls   map[string]int
	elapsed time.Duration
	peak    float64 // megabytes of heap in addition to what the fakes hold
}

func (f sweepFigures) String() string {
	var calls []string
	for _, name := range slices.Sorted(maps.Keys(f.calls)) {
		calls = append(calls, fmt.Sprintf("%d %s", f.calls[name], name))
	}
	return fmt.Sprintf("%.2f s, %.0f MB; %d deleted, %d repaired; calls: %s",
		f.elapsed.Seconds(), f.peak, f.report.Deleted, f.report.Repaired, strings.Join(calls, ", "))
}

func measureSweep(ctx context.Context, nodes int, change func(*sweepWorld)) (sweepFigures, error) {
	w, err := newSweepWorld(ctx, nodes)
	if err != nil {
		return sweepFigures{}, err
	}
	defer w.close()
	change(w)
	w.calls = make(map[string]int)
	runtime.GC()
	peak := watchHeap()
	start := time.Now()
	report, err := w.fleet.Sweep(ctx, "", 0)
	f := sweepFigures{report: report, calls: w.calls, elapsed: time.Since(start), peak: peak()}
	return f, err
}

// watchHeap samples the heap until the caller calls stop, which returns the largest
// growth, in megabytes.
func watchHeap() (stop func() float64) {
	read := func() float64 {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(sample)
		return float64(sample[0].Value.Uint64()) / megabyte
	}
	before, done, result := read(), make(chan struct{}), make(chan float64)
	go func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		most := before
		for {
			select {
			case <-done:
				result <- max(most, read()) - before
				return
			case <-tick.C:
				most = max(most, read())
			}
		}
	}()
	return func() float64 {
		close(done)
		return <-result
	}
}

// sweepWorld is a fleet and the services that it calls, with a count of each call.
type sweepWorld struct {
	fleet  *upkeep.Fleet
	ec2    *inventory.EC2
	server *http.Server
	served chan struct{}

	mu        sync.Mutex
	calls     map[string]int
	instances map[string][]*sweepInstance // by account
	nodes     map[string]node.Node
	ledger    ledger.Memory
}

type sweepInstance struct {
	number int
	ref    ec2ref.Instance
	image  string
	team   string
	gone   bool
}

func newSweepWorld(ctx context.Context, nodes int) (*sweepWorld, error) {
	w := &sweepWorld{
		calls: make(map[string]int), instances: make(map[string][]*sweepInstance), nodes: make(map[string]node.Node),
		served: make(chan struct{}),
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	w.server = &http.Server{Handler: http.HandlerFunc(w.serveEC2), ReadHeaderTimeout: time.Minute}
	go func() {
		_ = w.server.Serve(listener) // until close
		close(w.served)
	}()
	var accounts []ec2ref.Account
	var roles []inventory.Account
	for n := range sweepAccounts {
		id := fmt.Sprintf("%012d", 111122220000+n)
		accounts = append(accounts, ec2ref.Account(id))
		roles = append(roles, inventory.Account{ID: ec2ref.Account(id), Role: "arn:aws:iam::" + id + ":role/hallmark-member", ExternalID: "bench"})
	}
	limits := policy.Limits{Accounts: accounts, Regions: []ec2ref.Region{sweepRegion}, MaxLifetime: policy.LongestLifetime}
	rules, err := policy.Default(limits)
	if err != nil {
		return nil, err
	}
	w.ec2 = inventory.New(inventory.Config{
		AWS: aws.Config{HTTPClient: http.DefaultClient}, Accounts: roles, Roles: sweepRoles{w},
		Endpoint: func(ec2ref.Region) (string, error) { return "http://" + listener.Addr().String() + "/", nil }, Now: time.Now,
	})
	w.fleet = &upkeep.Fleet{
		Audience: sweepAudience, Accounts: accounts, Regions: limits.Regions, Ledger: sweepLedger{w},
		Inventory: w.ec2, Missing: new(stored.Memory),
		Policy:  func(context.Context) (*policy.Policy, error) { w.count("policy"); return rules, nil },
		Connect: func(context.Context) (upkeep.Cluster, error) { return sweepCluster{w}, nil },
		Log:     slog.New(slog.DiscardHandler), Now: time.Now,
	}
	for n := range nodes * 11 / 10 {
		account := accounts[n%sweepAccounts]
		i := &sweepInstance{
			number: n, ref: ec2ref.Instance{Account: account, Region: sweepRegion, ID: ec2ref.InstanceID(fmt.Sprintf("i-%017x", n))},
			image: fmt.Sprintf("ami-%017x", n%sweepImages), team: "a",
		}
		w.instances[string(account)] = append(w.instances[string(account)], i)
		if n >= nodes {
			continue
		}
		if err := w.enroll(ctx, i); err != nil {
			return nil, err
		}
	}
	// The first sweep corrects each node. Only later sweeps are measured.
	if _, err := w.fleet.Sweep(ctx, "", 0); err != nil {
		return nil, err
	}
	return w, nil
}

func (w *sweepWorld) close() {
	_ = w.server.Close() // nothing is left to answer
	<-w.served
}

// enroll puts an instance into the ledger, and into the cluster a node with only the
// labels that say which signer and instance it belongs to.
func (w *sweepWorld) enroll(ctx context.Context, i *sweepInstance) error {
	end, id, account := time.Now().Add(policy.DefaultLifetime), i.ref.ID.String(), i.ref.Account.String()
	claim := ledger.Claim{
		Instance: i.ref, Fingerprints: []string{"SHA256:" + id}, Hostname: "web-" + id, ImageOwner: i.ref.Account, ValidUntil: end,
	}
	granted, err := w.ledger.Claim(ctx, claim, time.Now())
	if err != nil {
		return err
	}
	if err := w.ledger.Confirm(ctx, claim, granted, time.Now()); err != nil {
		return err
	}
	n := i.ref.NodeID()
	w.nodes[n] = node.Node{ID: n, Hostname: claim.Hostname, Expires: end, Labels: map[string]string{
		node.SignerLabel: sweepAudience, "hallmark/image-owner": account,
		node.AccountLabel: account, node.RegionLabel: sweepRegion, node.InstanceLabel: id,
	}}
	return nil
}

// change removes the first instances that enrolled, as many as gone, and gives retagged
// of the others another tag.
func (w *sweepWorld) change(gone, retagged int) {
	for _, list := range w.instances {
		for _, i := range list {
			i.gone = i.number < gone
			if i.number >= gone && i.number < gone+retagged {
				i.team = "b"
			}
		}
	}
}

func (w *sweepWorld) count(call string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls[call]++
}

var credentialAccount = regexp.MustCompile(`Credential=ASIA([0-9]{12})/`)

// serveEC2 answers as EC2 does, with filters and pages. It lists an instance that is gone as
// terminated, because one that is only missing stays until a later sweep.
func (w *sweepWorld) serveEC2(rw http.ResponseWriter, r *http.Request) {
	data, _ := io.ReadAll(r.Body)
	form, _ := url.ParseQuery(string(data))
	w.count("EC2 " + form.Get("Action"))
	account := credentialAccount.FindStringSubmatch(r.Header.Get("Authorization"))[1]
	named := make(map[string]bool)
	for n := 1; form.Has(fmt.Sprintf("Filter.1.Value.%d", n)); n++ {
		named[form.Get(fmt.Sprintf("Filter.1.Value.%d", n))] = true
	}
	out := bufio.NewWriter(rw)
	defer out.Flush()
	if form.Get("Action") == "DescribeImages" {
		fmt.Fprint(out, "<DescribeImagesResponse><imagesSet>")
		for id := range named {
			fmt.Fprintf(out, "<item><imageId>%s</imageId><imageOwnerId>%s</imageOwnerId></item>", id, account)
		}
		fmt.Fprint(out, "</imagesSet></DescribeImagesResponse>")
		return
	}
	var list []*sweepInstance
	for _, i := range w.instances[account] {
		if len(named) == 0 || named[string(i.ref.ID)] {
			list = append(list, i)
		}
	}
	start, _ := strconv.Atoi(form.Get("NextToken"))
	size, _ := strconv.Atoi(form.Get("MaxResults"))
	end := min(start+size, len(list))
	fmt.Fprint(out, "<DescribeInstancesResponse><reservationSet>")
	for _, i := range list[start:end] {
		i.write(out)
	}
	fmt.Fprint(out, "</reservationSet>")
	if end < len(list) {
		fmt.Fprintf(out, "<nextToken>%d</nextToken>", end)
	}
	fmt.Fprint(out, "</DescribeInstancesResponse>")
}

// write writes the instance in about 5 KB, the size of EC2's answer for an instance with a
// volume, a network interface and a few tags.
func (i *sweepInstance) write(w io.Writer) {
	state := inventory.StateRunning
	if i.gone {
		state = inventory.StateTerminated
	}
	fmt.Fprintf(w, `<item><reservationId>r-%017x</reservationId><ownerId>%s</ownerId><groupSet/><instancesSet><item>
<instanceId>%s</instanceId><imageId>%s</imageId><instanceState><code>16</code><name>%[8]s</name></instanceState>
<privateDnsName>ip-10-%[5]d-%[6]d-%[7]d.us-west-2.compute.internal</privateDnsName><privateIpAddress>10.%[5]d.%[6]d.%[7]d</privateIpAddress>
<placement><availabilityZone>us-west-2a</availabilityZone></placement><vpcId>vpc-0123456789abcdef0</vpcId>
<subnetId>subnet-0123456789abcdef0</subnetId><launchTime>2026-01-02T03:04:05.000Z</launchTime>
<iamInstanceProfile><arn>arn:aws:iam::%[2]s:instance-profile/web</arn></iamInstanceProfile><tagSet>`,
		i.number, i.ref.Account, i.ref.ID, i.image, i.number>>16, i.number>>8&255, i.number&255, state)
	for key, value := range map[string]string{
		"Name": "web", "env": "prod", "team": i.team, "cost-center": "1234567890", "aws:autoscaling:groupName": "web-blue",
		"aws:ec2launchtemplate:id": "lt-0123456789abcdef0", "aws:ec2launchtemplate:version": "12", "owner": "somebody@example.com",
	} {
		fmt.Fprintf(w, "<item><key>%s</key><value>%s</value></item>\n", key, value)
	}
	fmt.Fprint(w, "</tagSet>", sweepFiller, "</item></instancesSet></item>")
}

// sweepFiller stands for the parts of an answer that Hallmark does not use.
var sweepFiller = "<networkInterfaceSet>" + strings.Repeat(`<item><networkInterfaceId>eni-0123456789abcdef0</networkInterfaceId>
<attachment><status>attached</status><deleteOnTermination>true</deleteOnTermination></attachment></item>`, 20) + "</networkInterfaceSet>"

// sweepRoles gives each account credentials that name it.
type sweepRoles struct{ *sweepWorld }

func (w sweepRoles) AssumeRole(_ context.Context, in *sts.AssumeRoleInput, _ ...func(*sts.Options)) (*sts.AssumeRoleOutput, error) {
	w.count("AssumeRole")
	account := strings.Split(aws.ToString(in.RoleArn), ":")[4]
	return &sts.AssumeRoleOutput{
		AssumedRoleUser: &ststypes.AssumedRoleUser{Arn: aws.String("arn:aws:sts::" + account + ":assumed-role/hallmark-member/bench")},
		Credentials: &ststypes.Credentials{
			AccessKeyId: aws.String("ASIA" + account), SecretAccessKey: aws.String("secret"), SessionToken: aws.String("token"),
			Expiration: aws.Time(time.Now().Add(time.Hour)),
		},
	}, nil
}

type sweepLedger struct{ *sweepWorld }

func (w sweepLedger) Lookup(ctx context.Context, i ec2ref.Instance) (ledger.Record, error) {
	w.count("ledger")
	return w.ledger.Lookup(ctx, i)
}

func (w sweepLedger) LookupAll(ctx context.Context, instances []ec2ref.Instance) (map[ec2ref.Instance]ledger.Record, error) {
	w.count("ledger")
	return w.ledger.LookupAll(ctx, instances)
}

func (w sweepLedger) Retire(ctx context.Context, i ec2ref.Instance) error {
	w.count("ledger")
	return w.ledger.Retire(ctx, i)
}

func (w sweepLedger) Announce(ctx context.Context, i ec2ref.Instance) (ledger.Record, error) {
	w.count("ledger")
	return w.ledger.Announce(ctx, i)
}

type sweepCluster struct{ *sweepWorld }

func (w sweepCluster) ClusterName() string { return "teleport.example.com" }
func (w sweepCluster) ProxyName() string   { return "proxy.example.com" }

func (w sweepCluster) Node(_ context.Context, id string) (*node.Node, error) {
	w.count("Teleport GetNode")
	w.mu.Lock()
	defer w.mu.Unlock()
	n, ok := w.nodes[id]
	if !ok {
		return nil, teleport.ErrNotFound
	}
	return &n, nil
}

// NodesWith returns copies, like a client that decoded them. Teleport's client reads
// pages of a thousand.
func (w sweepCluster) NodesWith(context.Context, map[string]string) ([]node.Node, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := make([]node.Node, 0, len(w.nodes))
	for _, n := range w.nodes {
		labels := make(map[string]string, len(n.Labels))
		for key, value := range n.Labels {
			labels[strings.Clone(key)] = strings.Clone(value)
		}
		n.Labels = labels
		list = append(list, n)
	}
	w.calls["Teleport ListResources"] += (len(list) + 999) / 1000
	return list, nil
}

func (w sweepCluster) UpsertNode(_ context.Context, n node.Node) error {
	w.count("Teleport UpsertNode")
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[n.ID] = n
	return nil
}

func (w sweepCluster) DeleteNode(_ context.Context, id string) error {
	w.count("Teleport DeleteNode")
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.nodes, id)
	return nil
}
