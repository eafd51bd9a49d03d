//go:build e2e && linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/gravitational/teleport/api/types"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

var errNotYet = errors.New("not yet")

// node returns an enrolled machine's node, or nil if there is none.
func node(t *testing.T, s *state.State) types.Server {
	t.Helper()
	for _, n := range must[[]types.Server](t)(shared.lab.Cluster.Nodes(t.Context())) {
		if n.GetName() == s.Node.ID {
			return n
		}
	}
	return nil
}

func terminate(t *testing.T, i *lab.Instance) {
	t.Helper()
	if err := shared.lab.EC2.Terminate(t.Context(), i.ID); err != nil {
		t.Fatal(err)
	}
}

func tag(t *testing.T, i *lab.Instance, key, value string) {
	t.Helper()
	if err := shared.lab.EC2.Tag(t.Context(), i.ID, key, value); err != nil {
		t.Fatal(err)
	}
}

func send(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// This tests everything from the event to its effect: the queue, the real function, EC2, the
// ledger, the cluster.
func TestATerminatedInstanceLeavesTheCluster(t *testing.T) {
	i := launch(t, lab.Template{Name: "mortal"})
	s := must[*state.State](t)(i.WaitEnrolled(t.Context()))
	// Anyone can write an event. EC2 says that the machine is running.
	send(t, shared.lab.SendState(t.Context(), i.ID, "terminated"))
	poll(t, func() error { return logged(i.ID, "instance still exists; nothing to do") })
	if node(t, s) == nil {
		t.Fatal("an event alone deleted the node of a machine that runs")
	}

	terminate(t, i)
	for _, state := range []string{"shutting-down", "terminated", "terminated"} { // twice, as happens with SQS
		send(t, shared.lab.SendState(t.Context(), i.ID, state))
	}
	poll(t, func() error {
		if node(t, s) != nil {
			return errNotYet
		}
		return nil
	})
	// The ledger remembers it: even if EC2's answer were out of date, the machine would not
	// come back.
	run(t, i, "rm", "/var/lib/hallmark/state.json")
	checkExit(t, i, 4, string(protocol.CodeInstanceEnded))
	if node(t, s) != nil {
		t.Error("the node came back")
	}
}

// logged looks for a line about an instance in the signer's log.
func logged(instance, message string) error {
	for line := range strings.Lines(shared.lab.SignerLog()) {
		if strings.Contains(line, instance) && strings.Contains(line, message) {
			return nil
		}
	}
	return errNotYet
}

func TestLabelsFollowTags(t *testing.T) {
	i := launch(t, lab.Template{Name: "tagged", Tags: map[string]string{"Name": "tagged", "env": "prod"}})
	s := must[*state.State](t)(i.WaitEnrolled(t.Context()))
	before := node(t, s)

	tag(t, i, "team", "storefront")
	if err := shared.lab.EC2.Untag(t.Context(), i.ID, "env"); err != nil {
		t.Fatal(err)
	}
	send(t, shared.lab.SendRaw(t.Context(), "no event at all")) // it is dropped, and delays nothing
	send(t, shared.lab.SendTags(t.Context(), i.ID, 2))
	poll(t, func() error {
		n := node(t, s)
		if n == nil {
			t.Fatal("the node is gone")
		}
		labels := n.GetAllLabels()
		if _, left := labels["tag/env"]; left || labels["tag/team"] != "storefront" {
			return fmt.Errorf("labels %v", labels)
		}
		return nil
	})
	after := node(t, s)
	for _, key := range []string{"hallmark/signer", "hallmark/account", "teleport.dev/instance-id", "purpose"} {
		if before.GetAllLabels()[key] != after.GetAllLabels()[key] {
			t.Errorf("label %s is %q, was %q", key, after.GetAllLabels()[key], before.GetAllLabels()[key])
		}
	}
	if after.GetHostname() != before.GetHostname() || after.GetAddr() != before.GetAddr() {
		t.Errorf("%s at %s, was %s at %s", after.GetHostname(), after.GetAddr(), before.GetHostname(), before.GetAddr())
	}
	// An event's version decides nothing: for any version, the labels become the tags that EC2
	// has now. An event about a machine without a node creates none.
	tag(t, i, "late", "yes")
	send(t, shared.lab.SendTags(t.Context(), i.ID, 1))
	stranger := launch(t, lab.Template{Name: "stranger", Claim: "i-0123456789abcdef0"})
	send(t, shared.lab.SendTags(t.Context(), stranger.ID, 1))
	tag(t, web(t), "marker", "seen")
	send(t, shared.lab.SendTags(t.Context(), web(t).ID, 1)) // comes after them
	poll(t, func() error {
		if node(t, enrolledState(t, web(t))).GetAllLabels()["tag/marker"] != "seen" {
			return errNotYet
		}
		return nil
	})
	poll(t, func() error {
		if labels := node(t, s).GetAllLabels(); labels["tag/late"] != "yes" {
			return fmt.Errorf("labels %v after a late event", labels)
		}
		return nil
	})
}

// The sweep finds what events missed.
func TestSweepMendsWhatEventsMissed(t *testing.T) {
	dead := launch(t, lab.Template{Name: "dead"})
	gone := must[*state.State](t)(dead.WaitEnrolled(t.Context()))
	drifted := launch(t, lab.Template{Name: "odd"})
	kept := must[*state.State](t)(drifted.WaitEnrolled(t.Context()))
	terminate(t, dead)
	tag(t, drifted, "missed", "yes")
	if node(t, gone) == nil {
		t.Fatal("the node went without an event")
	}
	report := must[string](t)(shared.lab.Sweep(t.Context()))
	if node(t, gone) != nil {
		t.Errorf("the dead machine's node is left; report %s", report)
	}
	if labels := node(t, kept).GetAllLabels(); labels["tag/missed"] != "yes" {
		t.Errorf("labels %v; report %s", labels, report)
	}
	var again map[string]any
	if err := json.Unmarshal([]byte(must[string](t)(shared.lab.Sweep(t.Context()))), &again); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"Deleted", "Mended", "Failed", "OverLimit"} {
		if n, ok := again[key].(float64); ok && n != 0 {
			t.Errorf("a second sweep still has %s: %v", key, again)
		}
	}
}

// Each function does its own work and no other.
func TestFunctionsRefuseEachOthersEvents(t *testing.T) {
	url := `{"version":"2.0","rawPath":"/","requestContext":{"http":{"method":"POST","sourceIp":"192.0.2.1"}},"body":"{}"}`
	if answer, err := shared.lab.Fleet.Invoke(t.Context(), []byte(url)); err != nil || strings.Contains(string(answer), "statusCode") {
		t.Errorf("the fleet's function answers a function URL's event: %s, %v", answer, err)
	}
	sweep := `{"sweep":{"limit":1000000}}`
	answer, err := shared.lab.Signer.Invoke(t.Context(), []byte(sweep))
	if err != nil || !strings.Contains(string(answer), fmt.Sprint(http.StatusBadRequest)) || !strings.Contains(string(answer), string(protocol.CodeMalformed)) {
		t.Errorf("the signer answers a request to sweep: %s, %v", answer, err)
	}
}
