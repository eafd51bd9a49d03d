//go:build e2e

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"

	"github.com/hallmark-ssh/hallmark/e2e/fake/dynamodb"
	"github.com/hallmark-ssh/hallmark/e2e/fake/lambdahost"
	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity/identitytest"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment/deploymenttest"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/stored"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
)

// lockedBuffer is a log that a process writes while the test reads.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// motoWorld is an account in moto, a cluster, and the two functions over the Runtime API.
type motoWorld struct {
	t             *testing.T
	ec2           moto.EC2
	image, subnet string
	ledger        *ledger.DynamoDB
	cursor        stored.Text
	cluster       *teleporttest.Cluster
	nodes         *teleport.Client
	enroll, fleet *lambdahost.Host
	log           lockedBuffer
}

func newMotoWorld(t *testing.T) *motoWorld {
	t.Helper()
	server, err := moto.Start(t.Context(), testRegion, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	cluster, err := teleporttest.Start(teleporttest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.Close() })
	w := &motoWorld{t: t, cluster: cluster}
	w.connectAWS(server.URL)

	path := deploymenttest.Write(t, map[string]string{
		"deployment.yaml": fmt.Sprintf("audience: %s\naccounts: [%q]\nregions: [%s]\nregion_certificates: {%s: %s}\n"+
			"teleport: {address: %q, roots_file: ca.pem, login: {method: identity-file, file: identity.pem}, fleet_login: {method: identity-file, file: identity.pem}}\n",
			testAudience, moto.Account, testRegion, testRegion, regionCertificate(t), cluster.Address()),
		"identity.pem": string(cluster.IdentityFile()),
		"ca.pem":       string(cluster.RootsPEM()),
	})
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	function := lambdahost.Function{
		Name: "hallmark", Program: program, TaskRoot: strings.TrimSuffix(path, "deployment.yaml"), Region: testRegion, Log: &w.log,
		Timeout: time.Minute, Environment: []string{
			"AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test", "AWS_ENDPOINT_URL=" + server.URL,
			"AWS_ENDPOINT_URL_EC2=" + server.URL, "HALLMARK_LEDGER_TABLE=hallmark", "HALLMARK_AUDIENCE=" + testAudience,
		},
	}
	function.Handler = "enroll"
	w.enroll = lambdahost.New(function)
	function.Handler = "fleet"
	w.fleet = lambdahost.New(function)
	t.Cleanup(w.enroll.Close)
	t.Cleanup(w.fleet.Close)
	return w
}

func regionCertificate(t *testing.T) string {
	t.Helper()
	region, err := identitytest.NewRegion(testRegion)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%q", region.CertificatePEM())
}

func (w *motoWorld) connectAWS(url string) {
	w.t.Helper()
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL": url, "AWS_REGION": testRegion, "AWS_CONFIG_FILE": "/nonexistent",
		"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_CA_BUNDLE": "",
	} {
		w.t.Setenv(name, value)
	}
	cfg, err := config.LoadDefaultConfig(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	w.ec2 = moto.EC2{URL: url, Region: testRegion, Credentials: cfg.Credentials}
	w.subnet = check(w.ec2.CreateSubnet(w.t.Context(), "10.0.0.0/24", testRegion+"a"))(w.t)
	client := dynamodb.Client(url, testRegion)
	if err := dynamodb.CreateTable(w.t.Context(), client, "hallmark"); err != nil {
		w.t.Fatal(err)
	}
	w.ledger = ledger.NewDynamoDB(client, "hallmark", time.Now)
	w.cursor = stored.Text{Client: client, Table: "hallmark", Name: "sweep"}
	if w.nodes, err = teleport.Dial(w.t.Context(), w.login()); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = w.nodes.Close() })
}

func (w *motoWorld) login() teleport.Config {
	path := deploymenttest.Write(w.t, map[string]string{"deployment.yaml": string(w.cluster.IdentityFile())})
	return teleport.Config{Address: w.cluster.Address(), RootsPEM: w.cluster.RootsPEM(), Login: teleport.IdentityFile(path)}
}

// run runs an instance; moto chooses its id.
func (w *motoWorld) run() string {
	w.t.Helper()
	if w.image == "" {
		w.image = check(w.ec2.RegisterImage(w.t.Context(), "golden"))(w.t)
	}
	return check(w.ec2.Run(w.t.Context(), moto.Launch{Image: w.image, Subnet: w.subnet}))(w.t)
}

// launch runs an instance with a tag and enrolls it.
func (w *motoWorld) launch() string {
	w.t.Helper()
	id := w.run()
	w.tag(id, "env", "test")
	n := node.Node{
		ID: ec2ref.Instance{Account: moto.Account, Region: testRegion, ID: ec2ref.InstanceID(id)}.NodeID(), Hostname: "web-" + id, Address: "10.0.0.7:22", Expires: time.Now().Add(time.Hour),
		Labels: map[string]string{
			node.SignerLabel: testAudience, node.AccountLabel: moto.Account, node.RegionLabel: testRegion,
			node.InstanceLabel: id,
		},
	}
	if err := w.nodes.UpsertNode(w.t.Context(), n); err != nil {
		w.t.Fatal(err)
	}
	i := ec2ref.Instance{Account: moto.Account, Region: testRegion, ID: ec2ref.InstanceID(id)}
	claim := ledger.Claim{Instance: i, Fingerprints: []string{"SHA256:" + id}, Hostname: n.Hostname, ImageOwner: moto.Account, ValidUntil: n.Expires}
	granted := check(w.ledger.Claim(w.t.Context(), claim, time.Now()))(w.t)
	if err := w.ledger.Confirm(w.t.Context(), claim, granted, time.Now()); err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *motoWorld) tag(id, key, value string) {
	w.t.Helper()
	if err := w.ec2.Tag(w.t.Context(), id, key, value); err != nil {
		w.t.Fatal(err)
	}
}

func (w *motoWorld) terminate(id string) {
	w.t.Helper()
	if err := w.ec2.Terminate(w.t.Context(), id); err != nil {
		w.t.Fatal(err)
	}
}

func (w *motoWorld) labels(id string) map[string]string { return labels(w.cluster, moto.Account, id) }

func (w *motoWorld) invoke(ctx context.Context, h *lambdahost.Host, event []byte) string {
	w.t.Helper()
	answer, err := h.Invoke(ctx, event)
	if err != nil {
		w.t.Fatalf("%v; log: %s", err, w.log.String())
	}
	return string(answer)
}

// This sends each kind of event, as AWS does, to the real program: a terminated instance
// leaves, labels follow tags, the sweep finds changes that no event reported, and a senseless
// event changes nothing.
func TestFleetOnMoto(t *testing.T) {
	w := newMotoWorld(t)
	ctx := t.Context()
	gone, tagged, missed := w.launch(), w.launch(), w.launch()
	w.terminate(gone)
	w.tag(tagged, "env", "prod")

	// Neither a malformed event nor the other function's event has an effect.
	for _, event := range []string{stateEvent(moto.Account, gone, "terminated"), `{"sweep":{"limit":-1}}`, "{}"} {
		if answer := w.invoke(ctx, w.fleet, []byte(event)); !strings.HasPrefix(answer, `{"error":`) {
			t.Errorf("answer %s to %s", answer, event)
		}
	}
	if answer := w.invoke(ctx, w.enroll, batchOf(t, stateEvent(moto.Account, gone, "terminated"))); !strings.Contains(answer, `"statusCode":400`) {
		t.Errorf("answer %s of the enroll function", answer)
	}
	if n := len(w.cluster.Nodes()); n != 3 {
		t.Fatalf("%d nodes, want 3", n)
	}

	// Events come twice and out of order, with one message among them that is not an event.
	batch := batchOf(t, "hello", stateEvent(moto.Account, gone, "terminated"), tagEvent(moto.Account, tagged, 2),
		stateEvent(moto.Account, gone, "shutting-down"), tagEvent(moto.Account, tagged, 1), stateEvent(moto.Account, tagged, "stopped"))
	for range 2 {
		if answer := w.invoke(ctx, w.fleet, batch); answer != allDone {
			t.Errorf("answer %s; log: %s", answer, w.log.String())
		}
	}
	if w.labels(gone) != nil || w.labels(tagged)["aws/env"] != "prod" || w.labels(missed) == nil {
		t.Errorf("labels %v, %v, %v; log: %s", w.labels(gone), w.labels(tagged), w.labels(missed), w.log.String())
	}
	record := check(w.ledger.Lookup(ctx, ec2ref.Instance{Account: moto.Account, Region: testRegion, ID: ec2ref.InstanceID(gone)}))(t)
	if !record.Retired {
		t.Errorf("record %+v", record)
	}

	// No events come from these changes, and the third instance no longer has a node.
	expired := ec2ref.Instance{Account: moto.Account, Region: testRegion, ID: ec2ref.InstanceID(w.run())}
	expire(t, w.ledger, expired)
	w.terminate(string(expired.ID))
	w.terminate(missed)
	w.tag(tagged, "env", "stage")
	if answer := w.invoke(ctx, w.fleet, []byte(scheduleEvent)); !strings.Contains(answer, `"Deleted":1`) || !strings.Contains(answer, `"Mended":1`) {
		t.Errorf("answer %s; log: %s", answer, w.log.String())
	}
	if w.labels(missed) != nil || w.labels(tagged)["aws/env"] != "stage" {
		t.Errorf("labels %v, %v", w.labels(missed), w.labels(tagged))
	}
	if record := check(w.ledger.Lookup(ctx, expired))(t); !record.Retired {
		t.Errorf("record %+v; log %s", record, w.log.String())
	}
	w.fleet.Close() // then the log has everything that it wrote
	if log := w.log.String(); !strings.Contains(log, `"offboarded":1`) || !strings.Contains(log, `"sweep_deleted":1`) || !strings.Contains(log, `"login_left_s"`) {
		t.Errorf("log %s", log)
	}
}

// A program with another handler does not start, and says why.
func TestUnknownHandlerOnMoto(t *testing.T) {
	w := newMotoWorld(t)
	if err := w.cursor.Save(t.Context(), []byte("somewhere")); err != nil {
		t.Fatal(err)
	}
	if next := check(w.cursor.Load(t.Context()))(t); string(next) != "somewhere" {
		t.Errorf("cursor %q", next)
	}
	host := lambdahost.New(lambdahost.Function{
		Name: "hallmark", Program: check(os.Executable())(t), Handler: "main", TaskRoot: t.TempDir(), Region: testRegion, Log: &w.log,
	})
	t.Cleanup(host.Close)
	if _, err := host.Invoke(t.Context(), []byte("{}")); err == nil || !strings.Contains(w.log.String(), "enroll or fleet") {
		t.Errorf("error %v, log %s", err, w.log.String())
	}
}
