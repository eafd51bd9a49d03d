package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/lambda"

	"github.com/hallmark-ssh/hallmark/e2e/fake/sts"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity/identitytest"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry/entrytest"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
	"github.com/hallmark-ssh/hallmark/internal/signer/upkeep"
)

var _ lambda.Handler = fleetHandler{}

// fleetWorld is the function "fleet" as deployed, with a cluster that speaks Teleport's
// protocol, and an EC2.
type fleetWorld struct {
	*world
	ec2   *fakeEC2
	fleet fleetHandler
}

// fakeEC2 answers requests with a filter, and those for all instances.
type fakeEC2 struct {
	mu        sync.Mutex
	instances map[string]*ec2Instance
	broken    bool
	asked     func() // called for each request, if it is set
}

type ec2Instance struct {
	state string
	tags  map[string]string
}

func (f *fakeEC2) set(id, state string, tags map[string]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.instances[id] = &ec2Instance{state, tags}
}

func (f *fakeEC2) hide(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.instances, id)
}

func (f *fakeEC2) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	data, _ := io.ReadAll(r.Body)
	form, _ := url.ParseQuery(string(data))
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.asked != nil {
		f.asked()
	}
	switch {
	case f.broken:
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `<Response><Errors><Error><Code>UnauthorizedOperation</Code></Error></Errors></Response>`)
	case form.Get("Action") == "DescribeImages":
		_, _ = fmt.Fprintf(w, `<DescribeImagesResponse><imagesSet><item><imageId>%s</imageId><imageOwnerId>%s</imageOwnerId></item></imagesSet></DescribeImagesResponse>`, testImage, testAccount)
	default:
		_, _ = fmt.Fprintf(w, "<DescribeInstancesResponse><reservationSet><item><ownerId>%s</ownerId><instancesSet>", testAccount)
		for id, i := range f.instances {
			if form.Has("Filter.1.Name") && !asksFor(form, id) {
				continue
			}
			_, _ = fmt.Fprintf(w, `<item><instanceId>%s</instanceId><imageId>%s</imageId><instanceState><name>%s</name></instanceState>
				<privateIpAddress>10.0.0.7</privateIpAddress><vpcId>vpc-1</vpcId><launchTime>%s</launchTime><tagSet>`,
				id, testImage, i.state, time.Now().UTC().Format(time.RFC3339))
			for key, value := range i.tags {
				_, _ = fmt.Fprintf(w, "<item><key>%s</key><value>%s</value></item>", key, value)
			}
			_, _ = io.WriteString(w, "</tagSet></item>")
		}
		_, _ = io.WriteString(w, "</instancesSet></item></reservationSet></DescribeInstancesResponse>")
	}
}

func asksFor(form url.Values, id string) bool {
	for _, values := range form {
		if values[0] == id {
			return true
		}
	}
	return false
}

func newFleetWorld(t *testing.T) *fleetWorld {
	t.Helper()
	region, err := identitytest.NewRegion(testRegion)
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := teleporttest.Start(teleporttest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.Close() })
	w := &fleetWorld{
		world: &world{t: t, region: region, cluster: cluster, log: new(bytes.Buffer), sts: sts.New(sts.Options{Region: testRegion})},
		ec2:   &fakeEC2{instances: make(map[string]*ec2Instance)},
	}
	w.setEnvironment()
	server := httptest.NewServer(w.ec2)
	t.Cleanup(server.Close)
	t.Setenv("AWS_ENDPOINT_URL_EC2", server.URL)
	t.Setenv("HALLMARK_DEPLOYMENT", w.writeDeployment("method: identity-file, file: identity.pem}, fleet_login: {method: identity-file, file: identity.pem"))
	w.fleet = w.start("fleet").(fleetHandler)
	return w
}

func (w *fleetWorld) start(name string) lambda.Handler {
	w.t.Helper()
	h, err := newFunction(w.t.Context(), name, slog.New(slog.NewJSONHandler(w.log, nil)))
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

func instanceID(n int) string { return fmt.Sprintf("i-%017x", n) }

func ref(n int) ec2ref.Instance {
	return ec2ref.Instance{Account: testAccount, Region: testRegion, ID: ec2ref.InstanceID(instanceID(n))}
}

// enroll adds an instance that has enrolled.
func (w *fleetWorld) enroll(n int) {
	w.t.Helper()
	w.ec2.set(instanceID(n), "running", map[string]string{"Name": "web"})
	enrolled(w.t, w.fleet.fleet.Ledger.(*ledger.Memory), w.node(n), ref(n))
}

// node writes the node of an instance.
func (w *fleetWorld) node(n int) node.Node {
	w.t.Helper()
	cluster, err := w.fleet.fleet.Connect(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	server := node.Node{
		ID: ec2ref.Instance{Account: testAccount, Region: testRegion, ID: ec2ref.InstanceID(instanceID(n))}.NodeID(), Hostname: "web-" + instanceID(n), Address: "10.0.0.7:22",
		Expires: time.Now().Add(time.Hour),
		Labels: map[string]string{
			node.SignerLabel: testAudience, node.AccountLabel: testAccount, node.RegionLabel: testRegion,
			node.InstanceLabel: instanceID(n),
		},
	}
	if err := cluster.UpsertNode(w.t.Context(), server); err != nil {
		w.t.Fatal(err)
	}
	return server
}

type claimer interface {
	Claim(ctx context.Context, c ledger.Claim, now time.Time) (ledger.Grant, error)
	Confirm(ctx context.Context, c ledger.Claim, g ledger.Grant, now time.Time) error
}

// enrolled records in the ledger that the instance of a node has enrolled.
func enrolled(t *testing.T, l claimer, n node.Node, i ec2ref.Instance) {
	t.Helper()
	claim := ledger.Claim{Instance: i, Fingerprints: []string{"SHA256:" + string(i.ID)}, Hostname: n.Hostname, ImageOwner: testAccount, ValidUntil: n.Expires}
	at := time.Now()
	if !n.Expires.IsZero() && !n.Expires.After(at) {
		at = n.Expires.Add(-time.Hour) // an enrollment that is over was granted before
	}
	granted, err := l.Claim(t.Context(), claim, at)
	if err == nil {
		err = l.Confirm(t.Context(), claim, granted, at)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// labels returns the labels of an instance's node, nil if there is none.
func labels(cluster *teleporttest.Cluster, account string, n string) map[string]string {
	for _, server := range cluster.Nodes() {
		if id := (ec2ref.Instance{Account: ec2ref.Account(account), Region: testRegion, ID: ec2ref.InstanceID(n)}).NodeID(); server.GetName() == id {
			return server.GetStaticLabels()
		}
	}
	return nil
}

func (w *fleetWorld) labels(n int) map[string]string {
	return labels(w.cluster, testAccount, instanceID(n))
}

// These are events in AWS's own form (Amazon EC2 User Guide; AWS Tagging documentation; Lambda
// Developer Guide, "Using Lambda with Amazon SQS").

func stateEvent(account, id, state string) string {
	return fmt.Sprintf(`{"version":"0","id":"7bf73129-1428-4cd3-a780-95db273d1602","detail-type":"EC2 Instance State-change Notification",
		"source":"aws.ec2","account":%q,"time":"2026-01-02T03:04:05Z","region":%q,
		"resources":["arn:aws:ec2:%s:%s:instance/%s"],"detail":{"instance-id":%q,"state":%q}}`,
		account, testRegion, testRegion, account, id, id, state)
}

func tagEvent(account, id string, version int) string {
	return fmt.Sprintf(`{"version":"0","id":"bddcf1d6-0251-35a1-aab0-adc1fb47c11c","detail-type":"Tag Change on Resource",
		"source":"aws.tag","account":%q,"time":"2026-01-02T03:04:05Z","region":%q,
		"resources":["arn:aws:ec2:%s:%s:instance/%s"],
		"detail":{"changed-tag-keys":["env"],"service":"ec2","resource-type":"instance","version":%d,"version-timestamp":"2026-01-02T03:04:05Z","tags":{"env":"forged"}}}`,
		account, testRegion, testRegion, account, id, version)
}

const scheduleEvent = `{"version":"0","id":"53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa","detail-type":"Scheduled Event","source":"aws.events",
	"account":"111122223333","time":"2026-01-02T03:04:05Z","region":"hm-test-1","resources":["arn:aws:events:hm-test-1:111122223333:rule/sweep"],"detail":{}}`

// batchOf is what the queue's event source passes on; messages are numbered.
func batchOf(t *testing.T, bodies ...string) []byte {
	t.Helper()
	type record map[string]any
	var records []record
	for n, body := range bodies {
		records = append(records, record{
			"messageId": fmt.Sprint(n), "receiptHandle": "AQEB", "body": body, "md5OfBody": "-", "messageAttributes": record{},
			"attributes":  record{"ApproximateReceiveCount": "1", "SentTimestamp": "1523232000000"},
			"eventSource": "aws:sqs", "eventSourceARN": "arn:aws:sqs:hm-test-1:111122223333:events", "awsRegion": testRegion,
		})
	}
	return encode(t, map[string]any{"Records": records})
}

func (w *fleetWorld) invoke(event []byte) string {
	w.t.Helper()
	answer, err := w.fleet.Invoke(w.t.Context(), event)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(answer)
}

const allDone = `{"batchItemFailures":[]}`

func (w *fleetWorld) send(want string, bodies ...string) {
	w.t.Helper()
	if got := w.invoke(batchOf(w.t, bodies...)); got != want {
		w.t.Errorf("answer %s, want %s; log: %s", got, want, w.log)
	}
}

func TestStateEvents(t *testing.T) {
	w := newFleetWorld(t)
	for n := range 4 {
		w.enroll(n)
	}
	w.ec2.set(instanceID(1), "terminated", nil)
	w.ec2.set(instanceID(2), "stopped", map[string]string{"Name": "web"})
	// They come twice, in the wrong order, and one is not true.
	w.send(allDone, stateEvent(testAccount, instanceID(1), "terminated"), stateEvent(testAccount, instanceID(1), "shutting-down"),
		stateEvent(testAccount, instanceID(1), "terminated"), stateEvent(testAccount, instanceID(2), "stopped"),
		stateEvent(testAccount, instanceID(3), "terminated"), stateEvent("999999999999", instanceID(0), "terminated"))
	w.send(allDone, stateEvent(testAccount, instanceID(1), "terminated"))
	for n, there := range map[int]bool{0: true, 1: false, 2: true, 3: true} {
		if got := w.labels(n) != nil; got != there {
			t.Errorf("instance %d: node is there: %v", n, got)
		}
	}
	for n, want := range map[int]bool{1: true, 2: false, 3: false} {
		if r, err := w.fleet.fleet.Ledger.Lookup(t.Context(), ref(n)); err != nil || r.Retired != want {
			t.Errorf("instance %d: record %+v, error %v", n, r, err)
		}
	}
}

func TestTagEvents(t *testing.T) {
	w := newFleetWorld(t)
	w.enroll(1)
	w.ec2.set(instanceID(1), "running", map[string]string{"env": "prod", "hallmark/rule": "forged"})
	w.ec2.set(instanceID(2), "running", map[string]string{"env": "prod"})
	w.send(allDone, tagEvent(testAccount, instanceID(1), 5), tagEvent(testAccount, instanceID(2), 5))
	got := w.labels(1)
	if got["aws/env"] != "prod" || got["hallmark/rule"] != "default" || got["hallmark/signer"] != testAudience {
		t.Errorf("labels %v", got)
	}
	if w.labels(2) != nil {
		t.Error("an event made a node")
	}
	// A removed tag stays removed, whatever the event's version is.
	w.ec2.set(instanceID(1), "running", nil)
	w.send(allDone, tagEvent(testAccount, instanceID(1), 4))
	if got, ok := w.labels(1)["aws/env"]; ok {
		t.Errorf("label env is %q", got)
	}
}

func TestOnlyWhatFailedComesAgain(t *testing.T) {
	w := newFleetWorld(t)
	w.enroll(1)
	w.ec2.broken = true
	w.send(`{"batchItemFailures":[{"itemIdentifier":"1"},{"itemIdentifier":"3"}]}`,
		"no event", stateEvent(testAccount, instanceID(1), "terminated"), `{"sweep":{"limit":1000}}`, tagEvent(testAccount, instanceID(1), 1))
	if w.labels(1) == nil {
		t.Error("a question that failed was taken for an end")
	}
	if n := strings.Count(w.log.String(), "message dropped"); n != 2 {
		t.Errorf("%d messages were dropped, want 2; log %s", n, w.log)
	}
}

func TestSweeps(t *testing.T) {
	w := newFleetWorld(t)
	w.enroll(1)
	w.enroll(2)
	w.ec2.set(instanceID(1), "terminated", nil)
	w.ec2.set(instanceID(2), "running", map[string]string{"env": "prod"})
	var report upkeep.Report
	if err := json.Unmarshal([]byte(w.invoke([]byte(scheduleEvent))), &report); err != nil {
		t.Fatal(err)
	}
	if report.Nodes != 2 || report.Deleted != 1 || report.Repaired != 1 {
		t.Errorf("report %+v; log %s", report, w.log)
	}
	if w.labels(1) != nil || w.labels(2)["aws/env"] != "prod" {
		t.Errorf("labels %v and %v", w.labels(1), w.labels(2))
	}
}

// expire records an enrollment whose certificates have expired, and whose node is gone.
func expire(t *testing.T, l claimer, i ec2ref.Instance) {
	t.Helper()
	enrolled(t, l, node.Node{Hostname: string("web-" + i.ID), Expires: time.Now().Add(-time.Hour)}, i)
}

func TestASweepEndsExpiredRecords(t *testing.T) {
	w := newFleetWorld(t)
	l := w.fleet.fleet.Ledger.(*ledger.Memory)
	w.ec2.set(instanceID(1), "terminated", nil)
	w.ec2.set(instanceID(2), "stopped", nil)
	expire(t, l, ref(1))
	expire(t, l, ref(2))
	w.invoke([]byte(scheduleEvent))
	for n, want := range map[int]bool{1: true, 2: false} {
		if record := check(l.Lookup(t.Context(), ref(n)))(t); record.Retired != want {
			t.Errorf("instance %d: record %+v; log %s", n, record, w.log)
		}
	}
}

// noRecords is a walk that fails.
type noRecords struct{ upkeep.Records }

func (noRecords) Expired(context.Context, string, time.Time) (ledger.Expired, error) {
	return ledger.Expired{}, errors.New("AccessDeniedException")
}

func TestASweepGoesOnWithoutTheWalk(t *testing.T) {
	w := newFleetWorld(t)
	w.enroll(1)
	w.ec2.set(instanceID(1), "terminated", nil)
	w.fleet.fleet.Records = noRecords{}
	if answer := w.invoke([]byte(scheduleEvent)); !strings.Contains(answer, `"Deleted":1`) || !strings.Contains(w.log.String(), "AccessDeniedException") {
		t.Errorf("answer %s; log %s", answer, w.log)
	}
}

// ownEC2 is called with the credentials of each account, whatever STS would say about the
// test's.
type ownEC2 struct{ *inventory.EC2 }

func (ownEC2) CheckAccount(context.Context, ec2ref.Account) error { return nil }

func TestAPersonsLimit(t *testing.T) {
	w := newFleetWorld(t)
	for n := range 3 {
		w.enroll(n)
		w.ec2.hide(instanceID(n))
	}
	ec2 := w.fleet.fleet.Inventory.(*inventory.EC2)
	ec2.Wait = func(context.Context, time.Duration) error { return nil }
	w.fleet.fleet.Inventory = ownEC2{ec2}
	w.invoke([]byte(scheduleEvent)) // the first look
	w.fleet.fleet.Now = func() time.Time { return time.Now().Add(time.Hour) }
	w.invoke([]byte(`{"sweep":{"limit":2}}`))
	if n := len(w.cluster.Nodes()); n != 3 || !strings.Contains(w.log.String(), `"alarm":true`) {
		t.Errorf("%d nodes are left, want 3; log %s", n, w.log)
	}
	w.invoke([]byte(`{"sweep":{"limit":3}}`))
	if n := len(w.cluster.Nodes()); n != 0 {
		t.Errorf("%d nodes are left", n)
	}
}

// Lambda runs a function again after an error, and a retry would not help a senseless event.
func TestTheFleetRefuses(t *testing.T) {
	w := newFleetWorld(t)
	w.enroll(1)
	w.ec2.set(instanceID(1), "terminated", nil)
	for name, text := range map[string]string{
		"nothing":              "",
		"no JSON":              "{",
		"null":                 "null",
		"an object":            "{}",
		"a list":               "[]",
		"a function URL's":     string(encode(t, entrytest.URLEvent(newRequest("{}")))),
		"past the queue":       stateEvent(testAccount, instanceID(1), "terminated"),
		"records of S3":        `{"Records":[{"messageId":"m","eventSource":"aws:s3","body":"{}"}]}`,
		"a limit below 0":      `{"sweep":{"limit":-1}}`,
		"a schedule of others": strings.Replace(scheduleEvent, "aws.events", "my.events", 1),
	} {
		w.log.Reset()
		if answer := w.invoke([]byte(text)); !strings.HasPrefix(answer, `{"error":"`) {
			t.Errorf("%s: answer %s", name, answer)
		}
		if log := w.log.String(); !strings.Contains(log, "event refused") || !strings.Contains(log, `"level":"ERROR"`) {
			t.Errorf("%s: log %s", name, log)
		}
	}
	if w.labels(1) == nil {
		t.Error("the node is gone")
	}
}

// Neither function does the other's work, no matter who invokes it.
func TestTheEnrollFunctionDoesNotOffboard(t *testing.T) {
	w := newFleetWorld(t)
	w.enroll(1)
	w.ec2.set(instanceID(1), "terminated", nil)
	enroll := w.start("enroll").(handler)
	for _, event := range [][]byte{
		batchOf(t, stateEvent(testAccount, instanceID(1), "terminated")), []byte(stateEvent(testAccount, instanceID(1), "terminated")),
		[]byte(scheduleEvent), []byte(`{"sweep":{"limit":1000}}`),
	} {
		if answer := invoke(t.Context(), t, enroll, event); answer.Status != http.StatusBadRequest {
			t.Errorf("answer %+v to %s", answer, event)
		}
	}
	if w.labels(1) == nil {
		t.Error("the node is gone")
	}
}

// fakeCursor is a cursor.
type fakeCursor struct {
	next  string
	err   error
	saves int
}

func (m *fakeCursor) Load(context.Context) ([]byte, error) { return []byte(m.next), m.err }

func (m *fakeCursor) Save(_ context.Context, next []byte) error {
	m.saves++
	if m.err == nil {
		m.next = string(next)
	}
	return m.err
}

func TestASweepThatRunsOutOfTimeGoesOn(t *testing.T) {
	w := newFleetWorld(t)
	w.enroll(1)
	m := new(fakeCursor)
	w.fleet.cursor = m
	ctx, cancel := context.WithCancel(t.Context())
	w.ec2.asked = cancel // time is up just then
	_, err := w.fleet.Invoke(ctx, []byte(scheduleEvent))
	w.ec2.asked = nil
	if err != nil || m.next != testAccount+"/"+testRegion || m.saves != 1 {
		t.Errorf("cursor %+v, error %v; log %s", m, err, w.log)
	}
	w.invoke([]byte(scheduleEvent))
	if m.next != "" || m.saves != 2 {
		t.Errorf("cursor %+v after a whole sweep", m)
	}
	w.invoke([]byte(scheduleEvent))
	if m.saves != 2 {
		t.Error("a cursor was written that had not changed")
	}
	// Without it, a sweep starts from the beginning.
	m.err = errors.New("throttled")
	if answer := w.invoke([]byte(scheduleEvent)); !strings.Contains(answer, `"Nodes":1`) || !strings.Contains(w.log.String(), "throttled") {
		t.Errorf("answer %s, log %s", answer, w.log)
	}
}

func TestASweepLeavesTimeToNoteWhereItStopped(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	sweeping, done := withSpare(ctx)
	defer done()
	invocation, _ := ctx.Deadline()
	if deadline, ok := sweeping.Deadline(); !ok || invocation.Sub(deadline) != spare {
		t.Errorf("a sweep ends %s before the invocation", invocation.Sub(deadline))
	}
	sweeping, done = withSpare(t.Context())
	defer done()
	if _, ok := sweeping.Deadline(); ok || sweeping.Err() != nil {
		t.Error("a deadline where there was none")
	}
}

func TestASweepThatCannotBeginIsTriedAgain(t *testing.T) {
	w := newFleetWorld(t)
	w.fleet.fleet.Connect = func(context.Context) (upkeep.Cluster, error) { return nil, errors.New("refused") }
	if _, err := w.fleet.Invoke(t.Context(), []byte(scheduleEvent)); err == nil {
		t.Error("no error")
	}
}

func TestFunctionsAreToldApartByTheirHandler(t *testing.T) {
	newFleetWorld(t)
	for _, name := range []string{"", "main", "Enroll", "bootstrap", "fleet.handler"} {
		_, err := newFunction(t.Context(), name, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), "enroll or fleet") {
			t.Errorf("%q: error %v", name, err)
		}
	}
	t.Setenv("HALLMARK_AUDIENCE", "another")
	for _, name := range []string{"enroll", "fleet"} {
		_, err := newFunction(t.Context(), name, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), "HALLMARK_AUDIENCE") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}
