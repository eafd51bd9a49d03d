package upkeep

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/stored"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

const (
	testAudience = "hallmark.example.com"
	testAccount  = "111122223333"
	testRegion   = "us-west-2"
)

// world is a fleet and everything that it calls, as fakes, with a record of each call.
type world struct {
	t     *testing.T
	fleet *Fleet
	log   bytes.Buffer
	now   time.Time

	mu        sync.Mutex
	calls     []string
	instances map[ec2ref.InstanceID]*inventory.Instance // by id, in the one account and region
	ec2Err    error
	// accountErr says that the credentials are another account's.
	accountErr error
	before     func() // runs before EC2 answers
	ledger     ledger.Memory
	nodes      map[string]node.Node
	deleteErr  error
	onUpsert   func(node.Node)
	onWrite    func() // runs after a node was written or deleted
	onAll      func(region string)
}

func testTime() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		t: t, now: testTime(),
		instances: make(map[ec2ref.InstanceID]*inventory.Instance), nodes: make(map[string]node.Node),
	}
	w.fleet = &Fleet{
		Audience: testAudience, Accounts: []ec2ref.Account{testAccount}, Regions: []ec2ref.Region{testRegion},
		Inventory: fakeEC2{w}, Ledger: &w.ledger, Missing: new(stored.Memory),
		Records: &w.ledger, Walk: new(stored.Memory),
		Connect: func(context.Context) (Cluster, error) { return fakeCluster{w}, nil },
		Log:     slog.New(slog.NewTextHandler(&w.log, nil)),
		Now:     func() time.Time { return w.now },
	}
	w.setPolicy("{name: default, match: {image_owners: [listed], max_age: 24h}}")
	return w
}

// setPolicy replaces the policy with one rule.
func (w *world) setPolicy(rule string) {
	w.t.Helper()
	limits := policy.Limits{Accounts: []ec2ref.Account{testAccount}, Regions: []ec2ref.Region{testRegion}, MaxLifetime: policy.LongestLifetime}
	rules, err := policy.Parse([]byte("version: 1\nrules: ["+rule+"]"), limits)
	if err != nil {
		w.t.Fatal(err)
	}
	w.fleet.Policy = func(context.Context) (*policy.Policy, error) { return rules, nil }
}

func (w *world) note(call string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, call)
}

func ref(n int) ec2ref.Instance {
	return ec2ref.Instance{Account: testAccount, Region: testRegion, ID: ec2ref.InstanceID(fmt.Sprintf("i-%017x", n))}
}

// run adds a running instance.
func (w *world) run(n int) *inventory.Instance {
	i := &inventory.Instance{
		ID: ref(n).ID, OwnerID: testAccount, Region: testRegion, State: inventory.StateRunning, VPC: "vpc-1",
		ImageID: "ami-1", ImageOwner: testAccount, PrivateIP: fmt.Sprintf("10.0.%d.%d", n/250, n%250+1), LaunchTime: w.now,
		Tags: map[string]string{"Name": "web", "env": "prod"},
	}
	w.instances[i.ID] = i
	return i
}

// enroll adds a running instance that has enrolled.
func (w *world) enroll(n int) *inventory.Instance {
	w.t.Helper()
	i := w.run(n)
	w.enrollInstance(n, i)
	return i
}

func (w *world) enrollInstance(n int, i *inventory.Instance) {
	w.t.Helper()
	hostname := "web-" + i.ID
	c := ledger.Claim{
		Instance: ref(n), Fingerprints: []string{fmt.Sprintf("SHA256:%d", n)}, Hostname: string(hostname),
		Image: i.ImageID, ImageOwner: i.ImageOwner, ImageTags: i.ImageTags, ValidUntil: w.now.Add(policy.DefaultLifetime),
	}
	granted, err := w.ledger.Claim(w.t.Context(), c, w.now)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.ledger.Confirm(w.t.Context(), c, granted, w.now); err != nil {
		w.t.Fatal(err)
	}
	record, err := w.ledger.Lookup(w.t.Context(), ref(n))
	if err != nil {
		w.t.Fatal(err)
	}
	p, err := w.fleet.newPass(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	server, err := p.render(i, record)
	if err != nil {
		w.t.Fatal(err)
	}
	w.nodes[server.ID] = server
}

func (w *world) node(n int) (node.Node, bool) {
	server, ok := w.nodes[ref(n).NodeID()]
	return server, ok
}

type fakeEC2 struct{ *world }

func (f fakeEC2) Instances(_ context.Context, at ec2ref.Place, ids []ec2ref.InstanceID) (map[ec2ref.InstanceID]*inventory.Instance, error) {
	f.note("instances")
	if f.before != nil {
		f.before()
	}
	if at.Account != testAccount || at.Region != testRegion {
		return nil, errors.New("unexpected place")
	}
	found := make(map[ec2ref.InstanceID]*inventory.Instance)
	for _, id := range ids {
		if i, ok := f.instances[id]; ok {
			copied := *i
			found[id] = &copied
		}
	}
	return found, f.ec2Err
}

func (f fakeEC2) All(_ context.Context, at ec2ref.Place) (map[ec2ref.InstanceID]*inventory.Instance, error) {
	f.note("all")
	if f.onAll != nil {
		f.onAll(string(at.Region))
	}
	found := make(map[ec2ref.InstanceID]*inventory.Instance)
	for id, i := range f.instances {
		found[id] = i
	}
	return found, f.ec2Err
}

func (f fakeEC2) CheckAccount(context.Context, ec2ref.Account) error {
	f.note("account")
	return f.accountErr
}

type fakeCluster struct{ *world }

func (f fakeCluster) ClusterName() string { return "teleport.example.com" }
func (f fakeCluster) ProxyName() string   { return "proxy.example.com" }

func (f fakeCluster) Node(_ context.Context, id string) (*node.Node, error) {
	f.note("node")
	f.mu.Lock()
	defer f.mu.Unlock()
	n, ok := f.nodes[id]
	if !ok {
		return nil, teleport.ErrNotFound
	}
	return &n, nil
}

func (f fakeCluster) NodesWith(_ context.Context, labels map[string]string) ([]node.Node, error) {
	f.note("nodes")
	var list []node.Node
	for _, n := range f.nodes {
		if n.Labels[node.SignerLabel] == labels[node.SignerLabel] {
			list = append(list, n)
		}
	}
	return list, nil
}

func (f fakeCluster) UpsertNode(_ context.Context, n node.Node) error {
	f.note("upsert")
	if f.onUpsert != nil {
		f.onUpsert(n)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nodes[n.ID] = n
	if f.onWrite != nil {
		f.onWrite()
	}
	return nil
}

func (f fakeCluster) DeleteNode(_ context.Context, id string) error {
	f.note("delete")
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.deleteErr != nil {
		return f.deleteErr
	}
	if _, ok := f.nodes[id]; !ok {
		return teleport.ErrNotFound
	}
	delete(f.nodes, id)
	if f.onWrite != nil {
		f.onWrite()
	}
	return nil
}

func (w *world) stateChanged(i ec2ref.Instance) error {
	return w.fleet.StatesChanged(w.t.Context(), []ec2ref.Instance{i})[0]
}

func (w *world) retired(n int) bool {
	w.t.Helper()
	record, err := w.ledger.Lookup(w.t.Context(), ref(n))
	if err != nil {
		w.t.Fatal(err)
	}
	return record.Retired
}

func TestStateChanged(t *testing.T) {
	tests := map[string]struct {
		change  func(*world)
		retired bool
		node    bool
		fails   bool
	}{
		"terminated":                 {func(w *world) { w.instances[ref(1).ID].State = inventory.StateTerminated }, true, false, false},
		"shutting down":              {func(w *world) { w.instances[ref(1).ID].State = inventory.StateShuttingDown }, true, false, false},
		"not shown by EC2":           {func(w *world) { delete(w.instances, ref(1).ID) }, false, true, false},
		"not shown, and ended":       {func(w *world) { delete(w.instances, ref(1).ID); _ = w.ledger.Retire(w.t.Context(), ref(1)) }, true, false, false},
		"running after all":          {func(*world) {}, false, true, false},
		"stopped":                    {func(w *world) { w.instances[ref(1).ID].State = inventory.StateStopped }, false, true, false},
		"EC2 does not answer":        {func(w *world) { delete(w.instances, ref(1).ID); w.ec2Err = errors.New("throttled") }, false, true, true},
		"of an account not listed":   {func(w *world) { delete(w.instances, ref(1).ID); w.fleet.Accounts = nil }, false, true, false},
		"of a region not listed":     {func(w *world) { delete(w.instances, ref(1).ID); w.fleet.Regions = nil }, false, true, false},
		"node of another signer":     {func(w *world) { w.terminate(1); w.relabel(1, "other") }, true, true, false},
		"Teleport cannot delete now": {func(w *world) { w.terminate(1); w.deleteErr = errors.New("down") }, true, true, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.enroll(1)
			tt.change(w)
			for range 2 { // an event may come twice
				if err := w.stateChanged(ref(1)); (err != nil) != tt.fails {
					t.Errorf("error %v, want one: %v", err, tt.fails)
				}
			}
			if _, ok := w.node(1); ok != tt.node || w.retired(1) != tt.retired {
				t.Errorf("node is there: %v, ended %v; want %v, %v", ok, w.retired(1), tt.node, tt.retired)
			}
		})
	}
}

func (w *world) terminate(n int) { w.instances[ref(n).ID].State = inventory.StateTerminated }

func (w *world) relabel(n int, signer string) {
	server := w.nodes[ref(n).NodeID()]
	labels := make(map[string]string)
	for key, value := range server.Labels {
		labels[key] = value
	}
	labels[node.SignerLabel] = signer
	server.Labels = labels
	w.nodes[server.ID] = server
}

// The event may come before the enrollment that it must stop has claimed anything.
func TestStateChangedBeforeTheClaim(t *testing.T) {
	w := newWorld(t)
	w.run(1)
	w.terminate(1)
	if err := w.stateChanged(ref(1)); err != nil {
		t.Fatal(err)
	}
	_, err := w.ledger.Claim(t.Context(), ledger.Claim{Instance: ref(1), Fingerprints: []string{"k"}, Hostname: "web", ValidUntil: w.now}, w.now)
	if !errors.Is(err, ledger.ErrRetired) {
		t.Errorf("error %v, want %v", err, ledger.ErrRetired)
	}
}

// An event from an account that is not listed costs nothing.
func TestUnlistedEventsCallNobody(t *testing.T) {
	w := newWorld(t)
	stranger := ec2ref.Instance{Account: "999999999999", Region: testRegion, ID: ref(1).ID}
	if err := w.stateChanged(stranger); err != nil {
		t.Error(err)
	}
	if errs := w.fleet.TagsChanged(t.Context(), []TagChange{{Instance: stranger, Version: 1}}); errs[0] != nil {
		t.Error(errs[0])
	}
	if len(w.calls) != 0 {
		t.Errorf("calls %v", w.calls)
	}
}

func (w *world) tagsChanged(changes ...TagChange) {
	w.t.Helper()
	for n, err := range w.fleet.TagsChanged(w.t.Context(), changes) {
		if err != nil {
			w.t.Errorf("change %d: %v", n, err)
		}
	}
}

func TestTagsChanged(t *testing.T) {
	w := newWorld(t)
	i := w.enroll(1)
	before, _ := w.node(1)
	i.Tags = map[string]string{"Name": "db", "team": "a", "hallmark/account": "x", "teleport.dev/account-id": "y"}
	w.tagsChanged(TagChange{ref(1), 1})
	after, _ := w.node(1)
	if after.Labels["aws/team"] != "a" || after.Labels["aws/Name"] != "db" || after.Labels["aws/env"] != "" {
		t.Errorf("labels %v", after.Labels)
	}
	for _, key := range []string{node.SignerLabel, node.AccountLabel, node.RegionLabel, node.InstanceLabel, "hallmark/account"} {
		if after.Labels[key] != before.Labels[key] {
			t.Errorf("%s is %q, was %q", key, after.Labels[key], before.Labels[key])
		}
	}
	if after.Hostname != before.Hostname || !after.Expires.Equal(before.Expires) {
		t.Errorf("host name %s, lease %s; the certificates have %s, %s", after.Hostname, after.Expires, before.Hostname, before.Expires)
	}
}

func TestTagsChangedLeavesAlone(t *testing.T) {
	for name, change := range map[string]func(*world){
		"an instance that never enrolled": func(w *world) { w.run(2) },
		"an instance without a node":      func(w *world) { w.enroll(2); delete(w.nodes, ref(2).NodeID()) },
		"a node of another signer":        func(w *world) { w.enroll(2).Tags["x"] = "y"; w.relabel(2, "other") },
		"an instance that is gone":        func(w *world) { w.enroll(2); delete(w.instances, ref(2).ID) },
		"a node that is as it should be":  func(w *world) { w.enroll(2) },
		"a lease that has ended":          func(w *world) { w.enroll(2).Tags["x"] = "y"; w.now = w.now.Add(2 * policy.DefaultLifetime) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			change(w)
			before, had := w.node(2)
			w.tagsChanged(TagChange{ref(2), 7})
			after, has := w.node(2)
			if has != had || fmt.Sprint(before) != fmt.Sprint(after) || slices.Contains(w.calls, "upsert") {
				t.Errorf("before %v, after %v, calls %v", before, after, w.calls)
			}
		})
	}
}

// Anyone who can write to the queue chooses an event's version, so no version may hide later events.
func TestVersionsOfTagEventsDecideNothing(t *testing.T) {
	w := newWorld(t)
	i := w.enroll(1)
	for n, version := range []uint64{5, 4, 5, math.MaxUint64, 6, 7, 0} {
		i.Tags["n"] = strconv.Itoa(n)
		w.tagsChanged(TagChange{ref(1), version})
		if server, _ := w.node(1); server.Labels["aws/n"] != strconv.Itoa(n) {
			t.Errorf("version %d: labels %v", version, server.Labels)
		}
	}
}

// The enroll function renews and renames between the reading and the writing of an event.
func TestATagEventKeepsWhatARenewalWrote(t *testing.T) {
	w := newWorld(t)
	i := w.enroll(1)
	w.now = w.now.Add(6 * 24 * time.Hour)
	renewed := w.now.Add(policy.DefaultLifetime)
	i.Tags["env"] = "staging"
	w.onUpsert = func(n node.Node) {
		w.onUpsert = nil
		w.renew(1, "db-"+string(i.ID), renewed)
		n.Hostname, n.Expires = "db-"+string(i.ID), renewed
		w.nodes[n.ID] = n
	}
	w.tagsChanged(TagChange{ref(1), 5})
	if n, _ := w.node(1); n.Hostname != "db-"+string(i.ID) || !n.Expires.Equal(renewed) || n.Labels["aws/env"] != "staging" {
		t.Errorf("node %+v, want the name and the lease of the renewal, until %s", n, renewed)
	}
}

// renew has the ledger confirm an enrollment, without writing the node.
func (w *world) renew(n int, hostname string, end time.Time) {
	w.t.Helper()
	c := ledger.Claim{Instance: ref(n), Fingerprints: []string{fmt.Sprintf("SHA256:%d", n)}, Hostname: hostname, ImageOwner: testAccount, ValidUntil: end}
	granted, err := w.ledger.Claim(w.t.Context(), c, w.now)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.ledger.Confirm(w.t.Context(), c, granted, w.now); err != nil {
		w.t.Fatal(err)
	}
}

// An event fails after it has written the node of an instance that was off-boarded in the
// meantime. It comes again, and the sweep comes in any case.
func TestATagEventThatDiesDoesNotBringANodeBack(t *testing.T) {
	tests := map[string]func(w *world){
		"the event comes again": func(w *world) { w.tagsChanged(TagChange{ref(1), 5}) },
		"the sweep comes":       func(w *world) { w.sweep(0) },
	}
	for name, then := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.enroll(1).Tags["env"] = "staging"
			w.onUpsert = func(node.Node) { // off-boarded in the meantime
				w.onUpsert = nil
				if err := w.ledger.Retire(t.Context(), ref(1)); err != nil {
					t.Fatal(err)
				}
				delete(w.nodes, ref(1).NodeID())
			}
			w.fleet.Ledger = lookupFails{&w.ledger}
			if errs := w.fleet.TagsChanged(t.Context(), []TagChange{{ref(1), 5}}); errs[0] == nil {
				t.Error("an event that died counts as done")
			}
			if _, ok := w.node(1); !ok {
				t.Fatal("the test shows nothing: the node is gone already")
			}
			w.fleet.Ledger = &w.ledger
			then(w)
			if _, ok := w.node(1); ok {
				t.Error("the node of an instance that ended is still there")
			}
		})
	}
}

type lookupFails struct{ Ledger }

func (lookupFails) Lookup(context.Context, ec2ref.Instance) (ledger.Record, error) {
	return ledger.Record{}, errors.New("throttled")
}

// The tags change back while the node is being deleted because of them, and that change's
// event still finds the node.
func TestAMachineThatIsAdmittedAgainKeepsItsNode(t *testing.T) {
	w := newWorld(t)
	w.setPolicy("{name: default, match: {image_owners: [listed], max_age: 24h, tags: {env: [prod]}}}")
	i := w.enroll(1)
	i.Tags = map[string]string{"Name": "web", "env": "out of reach"}
	w.onWrite = func() {
		w.onWrite = nil
		i.Tags = map[string]string{"Name": "web", "env": "prod"}
		if err := w.ledger.SeeTags(t.Context(), ref(1), 2); err != nil {
			t.Error(err)
		}
	}
	w.tagsChanged(TagChange{ref(1), 1})
	if n, ok := w.node(1); !ok || n.Labels["aws/env"] != "prod" {
		t.Errorf("node %+v, is there: %v", n, ok)
	}
}

func TestATagEventThatIsNeverDoneComesAgain(t *testing.T) {
	w := newWorld(t)
	i := w.enroll(1)
	n := 0
	w.onUpsert = func(node.Node) {
		n++
		i.Tags = map[string]string{"n": strconv.Itoa(n)}
		if err := w.ledger.SeeTags(t.Context(), ref(1), 2); err != nil {
			t.Error(err)
		}
	}
	i.Tags = map[string]string{"n": "0"}
	if errs := w.fleet.TagsChanged(t.Context(), []TagChange{{ref(1), 1}}); !errors.Is(errs[0], errMoving) || n != maxRelabels {
		t.Errorf("error %v after %d writes, want %v", errs[0], n, errMoving)
	}
}

// The handler of an older event reads first and writes last.
func TestRacingTagEventsEndWithTheLatestTags(t *testing.T) {
	w := newWorld(t)
	i := w.enroll(1)
	i.Tags["v"] = "1"
	w.onUpsert = func(node.Node) {
		w.onUpsert = nil
		i.Tags = map[string]string{"v": "2"}
		w.tagsChanged(TagChange{ref(1), 2})
	}
	w.tagsChanged(TagChange{ref(1), 1})
	if n, _ := w.node(1); n.Labels["aws/v"] != "2" {
		t.Errorf("labels %v", n.Labels)
	}
}

func TestATagEventDoesNotBringANodeBack(t *testing.T) {
	w := newWorld(t)
	w.enroll(1).Tags["x"] = "y"
	w.onUpsert = func(node.Node) {
		w.onUpsert = nil
		w.terminate(1)
		if err := w.stateChanged(ref(1)); err != nil {
			t.Error(err)
		}
	}
	w.tagsChanged(TagChange{ref(1), 1})
	if n, ok := w.node(1); ok {
		t.Errorf("node %v", n)
	}
}

func TestAMachineThatThePolicyNoLongerAdmitsLosesItsNode(t *testing.T) {
	w := newWorld(t)
	w.enroll(1)
	w.setPolicy("{name: a, match: {image_owners: [listed], max_age: 24h, tags: {env: [staging]}}}")
	w.tagsChanged(TagChange{ref(1), 1})
	if _, ok := w.node(1); ok || w.retired(1) {
		t.Errorf("node is there: %v, ended %v", ok, w.retired(1))
	}
}

func TestStateReadsAreBatched(t *testing.T) {
	w := newWorld(t)
	var instances []ec2ref.Instance
	for n := range 10 {
		w.enroll(n)
		if n%2 == 0 {
			w.terminate(n)
		}
		instances = append(instances, ref(n))
	}
	w.calls = nil
	for _, err := range w.fleet.StatesChanged(t.Context(), instances) {
		if err != nil {
			t.Error(err)
		}
	}
	if n := strings.Count(strings.Join(w.calls, " "), "instances"); n != 1 || len(w.nodes) != 5 {
		t.Errorf("EC2 was asked %d times, %d nodes are left", n, len(w.nodes))
	}
}

func TestTagReadsAreBatched(t *testing.T) {
	w := newWorld(t)
	var changes []TagChange
	for n := range 10 {
		w.enroll(n)
		changes = append(changes, TagChange{ref(n), 1})
	}
	w.calls = nil
	w.tagsChanged(changes...)
	if n := strings.Count(strings.Join(w.calls, " "), "instances"); n != 1 {
		t.Errorf("EC2 was asked %d times", n)
	}
	w.ec2Err = errors.New("throttled")
	for _, err := range w.fleet.TagsChanged(t.Context(), changes) {
		if err == nil {
			t.Error("a change that EC2 was not asked about counts as done")
		}
	}
}
