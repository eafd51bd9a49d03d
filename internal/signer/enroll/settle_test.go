package enroll

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

// snapshotEC2 answers with the tags of that moment, as EC2 does.
type snapshotEC2 struct{ fakeEC2 }

func (e snapshotEC2) Instance(ctx context.Context, of ec2ref.Instance) (*inventory.Instance, error) {
	i, err := e.fakeEC2.Instance(ctx, of)
	if i != nil {
		i.Tags = maps.Clone(i.Tags)
	}
	return i, err
}

func (w *world) node() (node.Node, bool) {
	n, ok := w.nodes[theInstance().NodeID()]
	return n, ok
}

// retag changes the tags and handles the event, for a node that the handler does not see yet.
func (w *world) retag(tags map[string]string) {
	w.t.Helper()
	w.instance.Tags = tags
	if _, err := w.ledger.Announce(w.t.Context(), inTestAccount(testInstance)); err != nil {
		w.t.Error(err)
	}
}

// A tag disappears during the enrollment, after the signer has asked EC2, and its event is
// handled before the node is written.
func TestATagEventDuringAnEnrollment(t *testing.T) {
	for name, enrolled := range map[string]bool{"the first": false, "a renewal": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.signer.Inventory = snapshotEC2{fakeEC2{w}}
			w.instance.Tags = map[string]string{"Name": "web", "env": "prod"}
			a := newAttempt(t, w.now)
			if enrolled {
				w.earlier(a)
			}
			w.onClaim = func(ledger.Claim) error {
				w.onClaim = nil
				w.retag(map[string]string{"Name": "web"})
				return nil
			}
			status, _, refused := w.enroll(a)
			if n, _ := w.node(); status != http.StatusOK || n.Labels["aws/env"] != "" {
				t.Errorf("status %d, code %q, labels %v", status, refused.Code, n.Labels)
			}
		})
	}
}

// The tags change, and the policy no longer admits the machine.
func TestATagEventThatShutsAnEnrollmentOut(t *testing.T) {
	w := newWorld(t)
	w.signer.Inventory = snapshotEC2{fakeEC2{w}}
	w.setPolicy(`{name: default, match: {` + open + `, tags: {env: [prod]}}}`)
	w.instance.Tags = map[string]string{"Name": "web", "env": "prod"}
	w.onClaim = func(ledger.Claim) error {
		w.retag(map[string]string{"Name": "web"})
		return nil
	}
	_, _, refused := w.enroll(newAttempt(t, w.now))
	if _, there := w.node(); refused.Code != protocol.CodePolicyRefused || there {
		t.Errorf("code %q, node is there: %v", refused.Code, there)
	}
}

// EC2 does not answer the second time. The certificates are good, and the node is left to the
// sweep.
func TestANodeThatCannotBeSettledCostsNoCertificate(t *testing.T) {
	w := newWorld(t)
	w.onClaim = func(ledger.Claim) error {
		w.ec2Err = errors.New("throttled")
		w.retag(w.instance.Tags)
		return nil
	}
	status, _, refused := w.enroll(newAttempt(t, w.now))
	if status != http.StatusOK || !strings.Contains(w.log.String(), "until the next sweep") {
		t.Errorf("status %d, code %q, log %s", status, refused.Code, w.log.String())
	}
}

// The instance is retired during the enrollment, and then a step before the confirmation
// fails.
func TestAnEnrollmentThatFailsAfterTheEndLeavesNoNode(t *testing.T) {
	for name, fail := range map[string]func(*world){
		"signing fails":                   func(w *world) { w.signErr = teleport.ErrUnavailable },
		"the certificate is not as asked": func(w *world) { w.sign = func(c *ssh.Certificate) { c.ValidPrincipals = nil } },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a := newAttempt(t, w.now)
			ending("claimed")(w, a)
			fail(w)
			_, _, refused := w.enroll(a)
			if n, there := w.node(); there || refused.Code != protocol.CodeInstanceEnded {
				t.Errorf("code %q, node %+v, is there: %v", refused.Code, n, there)
			}
		})
	}
}

// A renewal that renames the machine fails after it wrote the node. The machine's certificates
// still have the old name.
func TestARenewalThatFailsLeavesTheNodeAsItWas(t *testing.T) {
	w := newWorld(t)
	w.signer.Inventory = snapshotEC2{fakeEC2{w}}
	a := newAttempt(t, w.now)
	w.earlier(a)
	before, _ := w.node()
	w.pass(a, 3*24*time.Hour)
	w.instance.Tags = map[string]string{"Name": "db"}
	w.signErr = teleport.ErrUnavailable
	if _, _, refused := w.enroll(a); refused.Code != protocol.CodeUpstream {
		t.Fatalf("code %q", refused.Code)
	}
	if n, _ := w.node(); n.Hostname != before.Hostname || n.Expires.Sub(before.Expires).Abs() >= time.Second {
		t.Errorf("node %s until %s, want %s until %s", n.Hostname, n.Expires, before.Hostname, before.Expires)
	}
	w.signErr = nil
	if status, _, refused := w.enroll(a); status != http.StatusOK {
		t.Errorf("the next renewal: %d %q", status, refused.Code)
	}
}

// Two signers share a ledger and a cluster. The node belongs to the one that enrolled the
// machine until its certificates have expired.
func TestASecondSignerLeavesTheNodesOfTheFirst(t *testing.T) {
	w := newWorld(t)
	a := newAttempt(t, w.now)
	w.earlier(a)
	before, _ := w.node()
	record := must(w.ledger.Lookup(t.Context(), inTestAccount(testInstance)))
	w.signer.Audience, a.payload.Audience = "second.example.com", "second.example.com"
	w.calls = nil
	_, _, refused := w.enroll(a)
	if refused.Code != protocol.CodeNameInUse || !strings.Contains(refused.Message, "another signer") || w.upstream() != untilSTS {
		t.Errorf("code %q, message %q after calls %q", refused.Code, refused.Message, w.upstream())
	}
	if n, _ := w.node(); n.Labels[node.SignerLabel] != before.Labels[node.SignerLabel] {
		t.Errorf("the node is of signer %q now", n.Labels[node.SignerLabel])
	}
	if after := must(w.ledger.Lookup(t.Context(), inTestAccount(testInstance))); after.Version != record.Version {
		t.Errorf("the record was written: %+v", after)
	}
	w.pass(a, 30*24*time.Hour)
	clear(w.nodes) // the lease has expired
	if status, _, refused := w.enroll(a); status != http.StatusOK {
		t.Errorf("after the certificates ended: %d %q", status, refused.Code)
	}
}

// Another request of the same instance is confirmed in the middle of this one, which wrote its
// node first and is confirmed last.
func TestTheLastConfirmedRequestWritesTheNode(t *testing.T) {
	w := newWorld(t)
	w.signer.Inventory = snapshotEC2{fakeEC2{w}}
	a := newAttempt(t, w.now)
	w.earlier(a)
	w.beforeOK = func() {
		w.beforeOK = nil
		c := w.claimed[len(w.claimed)-1]
		c.Hostname, c.Lease = "other", c.Lease.Add(time.Hour)
		g := must(w.ledger.Claim(t.Context(), c, w.now))
		if err := w.ledger.Confirm(t.Context(), c, g, w.now); err != nil {
			t.Error(err)
		}
		n, _ := w.node()
		n.Hostname, n.Expires = c.Hostname, c.Lease
		w.nodes[n.ID] = n
	}
	status, granted, refused := w.enroll(a)
	record := must(w.ledger.Lookup(t.Context(), inTestAccount(testInstance)))
	if n, _ := w.node(); status != http.StatusOK || n.Hostname != granted.Node.Hostname || n.Hostname != record.ConfirmedHostname {
		t.Errorf("status %d, code %q, node %s, ledger %s", status, refused.Code, n.Hostname, record.ConfirmedHostname)
	}
}
