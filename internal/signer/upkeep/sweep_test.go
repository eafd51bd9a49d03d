package upkeep

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

func (w *world) sweep(limit int) Report {
	w.t.Helper()
	report, err := w.fleet.Sweep(w.t.Context(), "", limit)
	if err != nil {
		w.t.Fatal(err)
	}
	return report
}

func TestSweep(t *testing.T) {
	w := newWorld(t)
	w.enroll(1)
	w.enroll(2).State = inventory.StateTerminated
	w.enroll(3).State = inventory.StateShuttingDown
	w.enroll(4).Tags["new"] = "tag"
	w.enroll(5).PrivateIP = "10.9.9.9"
	w.enroll(6).State = "stopped"
	w.run(7)
	w.run(8).State = "stopped"

	want := Report{Nodes: 6, Deleted: 2, Repaired: 2, Unenrolled: 1}
	if got := w.sweep(0); got != want {
		t.Errorf("got %+v, want %+v; log: %s", got, want, w.log.String())
	}
	for n, there := range map[int]bool{1: true, 2: false, 3: false, 4: true, 5: true, 6: true} {
		if _, ok := w.node(n); ok != there || w.retired(n) == there {
			t.Errorf("instance %d: node is there %v, ended %v", n, ok, w.retired(n))
		}
	}
	if server, _ := w.node(4); server.Labels["aws/new"] != "tag" {
		t.Errorf("labels %v", server.Labels)
	}
	if server, _ := w.node(5); server.Address != "10.9.9.9:22" {
		t.Errorf("address %s", server.Address)
	}
	w.calls = nil
	if got, want := w.sweep(0), (Report{Nodes: 4, Unenrolled: 1}); got != want {
		t.Errorf("again: got %+v, want %+v", got, want)
	}
	if calls := strings.Join(w.calls, " "); calls != "nodes all" {
		t.Errorf("calls %q of a sweep with nothing to do", calls)
	}
}

// These are leftovers of an enrollment or an event that failed halfway.
func TestSweepMendsHostNameAndLease(t *testing.T) {
	w := newWorld(t)
	i := w.enroll(1)
	want, _ := w.node(1)
	for name, change := range map[string]func(*node.Node){
		"host name": func(n *node.Node) { n.Hostname = "another" },
		"lease":     func(n *node.Node) { n.Expires = n.Expires.Add(-time.Hour) },
	} {
		server := want
		change(&server)
		w.nodes[server.ID] = server
		if got, want := w.sweep(0), (Report{Nodes: 1, Repaired: 1}); got != want {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
		if server, _ = w.node(1); server.Hostname != want.Hostname || !server.Expires.Equal(want.Expires) {
			t.Errorf("%s: node %+v, want %+v", name, server, want)
		}
	}
	if w.calls = nil; w.sweep(0) != (Report{Nodes: 1}) || len(w.calls) != 2 {
		t.Errorf("calls %v of a sweep with nothing to do", w.calls)
	}
	// An enrollment has claimed and written its node, and has not confirmed.
	c := ledger.Claim{Instance: ref(1), Fingerprints: []string{"SHA256:1"}, Hostname: "db", ImageOwner: i.ImageOwner, ValidUntil: want.Expires}
	granted, err := w.ledger.Claim(t.Context(), c, w.now)
	if err != nil {
		t.Fatal(err)
	}
	renamed := want
	renamed.Hostname = "db"
	w.nodes[want.ID] = renamed
	w.sweep(0)
	record, err := w.ledger.Complete(t.Context(), c, granted, w.now)
	if err != nil || record.Version == granted.Version+1 {
		t.Errorf("version %d after %d, error %v: the enrollment must find that the sweep wrote", record.Version, granted.Version, err)
	}
}

// A failed request never looks like instances that are gone.
func TestSweepWithoutEC2TouchesNothing(t *testing.T) {
	w := newWorld(t)
	w.enroll(1)
	delete(w.instances, ref(1).ID)
	w.ec2Err = errors.New("not authorized")
	if got, want := w.sweep(0), (Report{Nodes: 1, Failed: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, ok := w.node(1); !ok || w.retired(1) {
		t.Error("a node was deleted")
	}
}

// An instance that the listing missed is asked about by its id.
func TestSweepAsksAgainAboutWhatTheListingMissed(t *testing.T) {
	w := newWorld(t)
	i := w.enroll(1)
	delete(w.instances, i.ID)
	w.before = func() { w.instances[i.ID] = i }
	if got, want := w.sweep(0), (Report{Nodes: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestSweepLeavesForeignNodesAlone(t *testing.T) {
	w := newWorld(t)
	for n, change := range map[int]func(*node.Node){
		1: func(n *node.Node) { n.Labels[node.SignerLabel] = "another signer" },
		2: func(n *node.Node) { n.Labels[node.AccountLabel] = "999999999999" },
		3: func(n *node.Node) { n.Labels[node.RegionLabel] = "eu-west-1" },
		4: func(n *node.Node) { n.Labels[node.InstanceLabel] = string(ref(5).ID) },
		6: func(n *node.Node) { delete(n.Labels, node.InstanceLabel) },
	} {
		w.enroll(n)
		delete(w.instances, ref(n).ID)
		server, _ := w.node(n)
		change(&server)
	}
	if got, want := w.sweep(0), (Report{Foreign: 4}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if len(w.nodes) != 5 {
		t.Errorf("%d nodes are left of 5", len(w.nodes))
	}
}

// Anyone who may write nodes can name an instance that cannot exist, and derive the node's id
// from it. EC2 takes * in a filter for any text, so it would answer about other instances, and
// the sweep of the account and region would fail.
func TestSweepLeavesImpossibleInstancesAlone(t *testing.T) {
	w := newWorld(t)
	w.enroll(1)
	for _, id := range []ec2ref.InstanceID{"i-*", "i-0000000000000000?", "", "web\n1", "=1+1"} {
		i := ec2ref.Instance{Account: testAccount, Region: testRegion, ID: id}
		w.nodes[i.NodeID()] = node.Node{ID: i.NodeID(), Hostname: "web", Expires: w.now.Add(24 * time.Hour), Labels: map[string]string{
			node.SignerLabel: testAudience, node.AccountLabel: testAccount, node.RegionLabel: testRegion, node.InstanceLabel: string(id),
		}}
	}
	before := w.ledger.String()
	for range 2 {
		w.calls = nil
		if got, want := w.sweep(0), (Report{Nodes: 1, Foreign: 5}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if slices.Contains(w.calls, "instances") {
			t.Errorf("calls %v: EC2 was asked about them", w.calls)
		}
		w.now = w.now.Add(absenceTime)
	}
	if after := w.ledger.String(); after != before || len(w.nodes) != 6 {
		t.Errorf("%d nodes, ledger\n%s", len(w.nodes), after)
	}
}

func TestSweepNeedsAPersonAboveItsLimit(t *testing.T) {
	w := newWorld(t)
	const dead = 25
	for n := range 30 {
		w.enroll(n)
		if n < dead {
			delete(w.instances, ref(n).ID)
		}
	}
	if got, want := w.sweep(0), (Report{Nodes: 30, Missing: dead}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	w.now = w.now.Add(absenceTime)
	if got, want := w.sweep(0), (Report{Nodes: 30, OverLimit: dead}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if len(w.nodes) != 30 || !strings.Contains(w.log.String(), "alarm=true") {
		t.Errorf("%d nodes are left of 30; log %s", len(w.nodes), w.log.String())
	}
	if got, want := w.sweep(dead), (Report{Nodes: 30, Deleted: dead}); got != want {
		t.Errorf("with a higher limit: got %+v, want %+v", got, want)
	}
}

func TestDefaultLimit(t *testing.T) {
	for nodes, want := range map[int]int{0: 20, 30: 20, 200: 20, 1000: 100, 10000: 1000} {
		if got := defaultLimit(nodes); got != want {
			t.Errorf("of %d nodes: %d, want %d", nodes, got, want)
		}
	}
}

func TestSweepGoesOnWhereItStopped(t *testing.T) {
	w := newWorld(t)
	w.fleet.Regions = []ec2ref.Region{"eu-west-1", testRegion, "us-west-3"}
	ctx, cancel := context.WithCancel(t.Context())
	var asked []string
	w.onAll = func(region string) {
		if asked = append(asked, region); region == testRegion {
			cancel()
		}
	}
	report, err := w.fleet.Sweep(ctx, "", 0)
	if err != nil || report.Next != testAccount+"/"+testRegion {
		t.Fatalf("report %+v, error %v", report, err)
	}
	w.onAll = func(region string) { asked = append(asked, region) }
	if report, err = w.fleet.Sweep(t.Context(), report.Next, 0); err != nil || report.Next != "" {
		t.Fatalf("report %+v, error %v", report, err)
	}
	if got := strings.Join(asked, " "); got != "eu-west-1 us-west-2 us-west-2 us-west-3 eu-west-1" {
		t.Errorf("asked about %s", got)
	}
}

// A region that takes all the time does not keep the others from their turn.
func TestSweepIsNotHeldUpByOneRegion(t *testing.T) {
	w := newWorld(t)
	w.fleet.Regions = []ec2ref.Region{"eu-west-1", testRegion, "us-west-3"}
	var asked []string
	from := ""
	for range 4 {
		ctx, cancel := context.WithCancel(t.Context())
		w.onAll = func(region string) {
			asked = append(asked, region)
			cancel()
		}
		report, err := w.fleet.Sweep(ctx, from, 0)
		if err != nil {
			t.Fatal(err)
		}
		from = report.Next
	}
	if got := strings.Join(asked, " "); got != "eu-west-1 us-west-2 us-west-3 eu-west-1" {
		t.Errorf("asked about %s", got)
	}
}
