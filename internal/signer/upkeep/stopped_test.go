package upkeep

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
)

// These rules decide what happens to the node of a stopped instance.
const (
	removing = "{name: a, match: {image_owners: [listed], max_age: 24h}, when_stopped: remove}"
	keeping  = "{name: a, match: {image_owners: [listed], max_age: 24h}, when_stopped: keep}"
	// A stopped instance loses its public address.
	removingPublic = "{name: a, match: {image_owners: [listed], max_age: 24h}, address: public, when_stopped: remove}"
	keepingPublic  = "{name: a, match: {image_owners: [listed], max_age: 24h}, address: public}"
)

// stop stops an instance as EC2 does.
func stop(i *inventory.Instance) { i.State, i.PublicIP = inventory.StateStopped, "" }

func TestStopped(t *testing.T) {
	tests := map[string]struct {
		rule   string
		change func(*world, *inventory.Instance)
		node   bool
		fails  bool
	}{
		"kept":                        {keeping, func(_ *world, i *inventory.Instance) { stop(i) }, true, false},
		"removed":                     {removing, func(_ *world, i *inventory.Instance) { stop(i) }, false, false},
		"kept without an address":     {keepingPublic, func(_ *world, i *inventory.Instance) { stop(i) }, true, false},
		"removed without an address":  {removingPublic, func(_ *world, i *inventory.Instance) { stop(i) }, false, false},
		"stopping only":               {removing, func(_ *world, i *inventory.Instance) { i.State = "stopping" }, true, false},
		"runs again":                  {removing, func(*world, *inventory.Instance) {}, true, false},
		"starts again":                {removing, func(_ *world, i *inventory.Instance) { i.State = inventory.StatePending }, true, false},
		"a node of another signer":    {removing, func(w *world, i *inventory.Instance) { stop(i); w.relabel(1, "other") }, true, false},
		"enrolled long ago":           {removing, func(w *world, i *inventory.Instance) { stop(i); w.now = w.now.Add(48 * time.Hour) }, false, false},
		"EC2 does not answer":         {removing, func(w *world, i *inventory.Instance) { stop(i); w.ec2Err = errors.New("throttled") }, true, true},
		"Teleport cannot delete now":  {removing, func(w *world, i *inventory.Instance) { stop(i); w.deleteErr = errors.New("down") }, true, true},
		"ended, and not deleted then": {removing, func(w *world, i *inventory.Instance) { stop(i); _ = w.ledger.Retire(w.t.Context(), ref(1)) }, true, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			i := w.run(1)
			i.PublicIP = "192.0.2.1"
			w.setPolicy(tt.rule)
			w.enrollInstance(1, i)
			tt.change(w, i)
			before := w.retired(1)
			for range 2 { // an event may come twice
				if err := w.stateChanged(ref(1)); (err != nil) != tt.fails {
					t.Errorf("error %v, want one: %v", err, tt.fails)
				}
			}
			if _, ok := w.node(1); ok != tt.node {
				t.Errorf("node is there: %v, want %v", ok, tt.node)
			}
			if w.retired(1) != before {
				t.Error("the record of an instance that may be started again has ended")
			}
		})
	}
}

func TestStoppedWithoutAnEnrollment(t *testing.T) {
	w := newWorld(t)
	w.setPolicy(removing)
	stop(w.run(1))
	if err := w.stateChanged(ref(1)); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(w.calls, []string{"instances"}) {
		t.Errorf("calls %q", w.calls)
	}
}

// Tags may change while an instance is stopped and has no address: that alone must not remove
// its node.
func TestTagsOfAStoppedInstance(t *testing.T) {
	w := newWorld(t)
	i := w.run(1)
	i.PublicIP = "192.0.2.1"
	w.setPolicy(keepingPublic)
	w.enrollInstance(1, i)
	stop(i)
	i.Tags["new"] = "tag"
	w.tagsChanged(TagChange{ref(1), 1})
	if _, ok := w.node(1); !ok {
		t.Error("the node is gone")
	}
	i.State, i.PublicIP = inventory.StateRunning, "192.0.2.2"
	w.tagsChanged(TagChange{ref(1), 2})
	if node, _ := w.node(1); node.Address != "192.0.2.2:22" || node.Labels["aws/new"] != "tag" {
		t.Errorf("node %+v", node)
	}
}

func TestSweepOfStoppedInstances(t *testing.T) {
	for rule, want := range map[string]Report{
		keeping:        {Nodes: 4, Repaired: 1},
		removing:       {Nodes: 4, Deleted: 3},
		keepingPublic:  {Nodes: 4},
		removingPublic: {Nodes: 4, Deleted: 3},
	} {
		w := newWorld(t)
		w.setPolicy(rule)
		for n := range 4 {
			i := w.run(n)
			i.PublicIP = "192.0.2.1"
			w.enrollInstance(n, i)
			if n > 0 {
				stop(i)
			}
			if n > 1 {
				i.Tags["n"] = "2"
			}
			if n > 2 {
				delete(i.Tags, "n")
			}
		}
		if got := w.sweep(0); got != want {
			t.Errorf("%s: got %+v, want %+v; log: %s", rule, got, want, w.log.String())
		}
		for n := range 4 {
			if _, ok := w.node(n); ok != (n == 0 || want.Deleted == 0) || w.retired(n) {
				t.Errorf("%s: instance %d: node is there: %v, ended %v", rule, n, ok, w.retired(n))
			}
		}
	}
}

// An instance that the listing saw stopped may run again, and have renewed, when its turn
// comes.
func TestSweepAsksAgainBeforeItRemovesAStoppedInstance(t *testing.T) {
	w := newWorld(t)
	w.setPolicy(removing)
	i := w.enroll(1)
	i.State = inventory.StateStopped
	w.before = func() { i.State = inventory.StateRunning }
	if got, want := w.sweep(0), (Report{Nodes: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, ok := w.node(1); !ok {
		t.Error("the node is gone")
	}
}

// A hundred machines stop at night: EC2 is asked about all of them twice, not about each.
func TestManyStoppedInstancesShareTheirQuestions(t *testing.T) {
	w := newWorld(t)
	w.setPolicy(removing)
	const nodes = 100
	stopped := make([]ec2ref.Instance, nodes)
	for n := range nodes {
		stop(w.enroll(n))
		stopped[n] = ref(n)
	}
	w.calls = nil
	for _, err := range w.fleet.StatesChanged(t.Context(), append(stopped, ref(0))) { // one event comes twice
		if err != nil {
			t.Error(err)
		}
	}
	asked := 0
	for _, call := range w.calls {
		if call == "instances" {
			asked++
		}
	}
	if len(w.nodes) != 0 || asked != 2 {
		t.Errorf("%d nodes are left; EC2 was asked %d times, want 2", len(w.nodes), asked)
	}
}

// startingCluster has the instance start and enroll again right before its node is deleted.
type startingCluster struct {
	Cluster
	start func()
}

func (c startingCluster) DeleteNode(ctx context.Context, id string) error {
	c.start()
	return c.Cluster.DeleteNode(ctx, id)
}

// EC2 says that the instance is stopped, but it starts and enrolls before its node is deleted.
func TestAStoppedInstanceStartsAgain(t *testing.T) {
	for name, remove := range map[string]func(*world) error{
		"event": func(w *world) error { return w.stateChanged(ref(1)) },
		"sweep": func(w *world) error { _, err := w.fleet.Sweep(t.Context(), "", 0); return err },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.setPolicy(removing)
			i := w.enroll(1)
			stop(i)
			started := false
			start := func() {
				if started {
					return
				}
				started, i.State = true, inventory.StateRunning
				w.now = w.now.Add(time.Minute)
				w.enrollInstance(1, i)
			}
			connect := w.fleet.Connect
			w.fleet.Connect = func(ctx context.Context) (Cluster, error) {
				cluster, err := connect(ctx)
				return startingCluster{cluster, start}, err
			}
			if err := remove(w); err != nil {
				t.Fatal(err)
			}
			record, err := w.ledger.Lookup(t.Context(), ref(1))
			if err != nil || !started {
				t.Fatalf("started %v, error %v", started, err)
			}
			if n, there := w.node(1); !there || !n.Expires.Equal(record.ValidUntil) {
				t.Errorf("node %+v, there: %v; want it until %s", n, there, record.ValidUntil)
			}
		})
	}
}

func TestSweepOfManyStoppedInstancesNeedsAPerson(t *testing.T) {
	w := newWorld(t)
	w.setPolicy(removing)
	for n := range 30 {
		if i := w.enroll(n); n < 25 {
			stop(i)
		}
	}
	if got, want := w.sweep(0), (Report{Nodes: 30, OverLimit: 25}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got, want := w.sweep(25), (Report{Nodes: 30, Deleted: 25}); got != want {
		t.Errorf("with a higher limit: got %+v, want %+v", got, want)
	}
}

// If the author of a policy makes a mistake that refuses the whole fleet, it empties nothing.
func TestSweepReportsWhatThePolicyRefuses(t *testing.T) {
	w := newWorld(t)
	for n := range 5 {
		w.enroll(n).Tags["new"] = "tag"
	}
	w.instances[ref(4).ID].State = inventory.StateTerminated
	w.setPolicy("{name: a, match: {image_owners: [listed], max_age: 24h, tags: {none: [x]}}}")
	w.calls = nil
	if got, want := w.sweep(0), (Report{Nodes: 5, Refused: 4, Deleted: 1}); got != want {
		t.Errorf("got %+v, want %+v; log: %s", got, want, w.log.String())
	}
	if len(w.nodes) != 4 || slices.Contains(w.calls, "upsert") {
		t.Errorf("%d nodes are left, want 4; calls %q", len(w.nodes), w.calls)
	}
}

// The policy is read once, and one request to EC2 serves all nodes to repair.
func TestSweepSharesItsQuestions(t *testing.T) {
	w := newWorld(t)
	const nodes = 450
	for n := range nodes {
		w.enroll(n).Tags["new"] = "tag"
	}
	rules, asked := w.fleet.Policy, 0
	w.fleet.Policy = func(ctx context.Context) (*policy.Policy, error) { asked++; return rules(ctx) }
	w.calls = nil
	if got, want := w.sweep(0), (Report{Nodes: nodes, Repaired: nodes}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	counts := make(map[string]int)
	for _, call := range w.calls {
		counts[call]++
	}
	if counts["instances"] != 3 || counts["upsert"] != nodes || asked != 1 {
		t.Errorf("calls %v; the policy was read %d times", counts, asked)
	}
}

// Running out of time is not a failure, and nothing is done after it.
func TestSweepStopsInTheMiddle(t *testing.T) {
	w := newWorld(t)
	for n := range 20 {
		i := w.enroll(n)
		switch {
		case n < 10:
			i.State = inventory.StateTerminated
		default:
			i.Tags["new"] = "tag"
		}
	}
	for _, stopAt := range []int{3, 13} {
		ctx, cancel := context.WithCancel(t.Context())
		done := 0
		w.onWrite = func() {
			if done++; done == stopAt {
				cancel()
			}
		}
		report, err := w.fleet.Sweep(ctx, "", 0)
		if err != nil || report.Failed != 0 || report.Next == "" || done != stopAt {
			t.Errorf("report %+v, error %v, %d written, want %d", report, err, done, stopAt)
		}
	}
	w.onWrite = nil
	if report := w.sweep(0); report.Next != "" || report.Failed != 0 || report.Deleted+report.Repaired != 4 {
		t.Errorf("report %+v", report)
	}
}
