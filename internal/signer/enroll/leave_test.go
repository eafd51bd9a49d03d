package enroll

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

const (
	untilLeave = "sts leave"
	left       = "sts leave connect lookup delete"
)

// leaveAttacks want to delete a node that is not theirs, or to bring one back.
func leaveAttacks() map[string]attack {
	nodeStays := func(t *testing.T, w *world, _ *attempt, _ protocol.Response) {
		t.Helper()
		if len(w.nodes) != 1 {
			t.Errorf("%d nodes, want the machine's", len(w.nodes))
		}
		if record := must(w.ledger.Lookup(t.Context(), theInstance())); record.Left {
			t.Errorf("the record says %+v", record)
		}
	}
	after := func(change func(*world, *attempt)) func(*world, *attempt) {
		return func(w *world, a *attempt) {
			w.earlier(a)
			a.payload.Purpose = protocol.PurposeLeave
			change(w, a)
		}
	}
	return map[string]attack{
		"leave: the instance never enrolled": {func(_ *world, a *attempt) {
			a.payload.Purpose = protocol.PurposeLeave
		}, protocol.CodeNotEnrolled, untilLeave, nil},
		"leave: the same id enrolled in another region": {func(w *world, a *attempt) {
			elsewhere := theInstance()
			elsewhere.Region = "hm-test-2"
			w.claimFor(elsewhere, testHostname, fingerprintOf(a.keys[0]), w.now.Add(time.Hour))
			a.payload.Purpose = protocol.PurposeLeave
		}, protocol.CodeNotEnrolled, untilLeave, nil},
		"leave: the instance was off-boarded": {after(func(w *world, _ *attempt) {
			w.end()
		}), protocol.CodeInstanceEnded, untilLeave, nil},
		"leave: keys that are not recorded": {after(func(w *world, a *attempt) {
			a.payload.HostKeys = nil
			a.keys = []ssh.Signer{sshkeytest.NewSigner(w.t), sshkeytest.NewSigner(w.t)}
		}), protocol.CodeKeyConflict, untilLeave, nodeStays},
		"leave: a permitted key that is not in use yet": {after(func(w *world, a *attempt) {
			a.payload.HostKeys = nil
			a.keys = []ssh.Signer{sshkeytest.NewSigner(w.t)}
			permit := ledger.Permit{Fingerprint: fingerprintOf(a.keys[0]), ValidUntil: w.now.Add(time.Hour), By: "operator"}
			if err := w.ledger.Permit(w.t.Context(), theInstance(), permit); err != nil {
				w.t.Fatal(err)
			}
		}), protocol.CodeKeyConflict, untilLeave, nodeStays},
		"leave: a recorded key that does not sign": {after(func(w *world, a *attempt) {
			a.keys = []ssh.Signer{sshkeytest.NewSigner(w.t), sshkeytest.NewSigner(w.t)} // the payload still names the recorded ones
		}), protocol.CodeHostKeyUnproved, untilNothing, nodeStays},
		"leave: no key at all": {after(func(_ *world, a *attempt) {
			a.payload.HostKeys = []string{}
			a.keys = nil
		}), protocol.CodeHostKeyInvalid, untilNothing, nodeStays},
		"leave: a stolen document with a junk proof": {after(func(_ *world, a *attempt) {
			a.http = inRequest(func(r *protocol.Request) { r.Caller.Authorization = "junk" })
		}), protocol.CodeCallerProofInvalid, untilSTS, nodeStays},
		"leave: addressed to another signer": {after(func(_ *world, a *attempt) {
			a.payload.Audience = "other.example.com"
		}), protocol.CodeAudienceMismatch, untilNothing, nodeStays},
		"leave: a request from an hour ago": {after(func(w *world, _ *attempt) {
			w.now = w.now.Add(time.Hour)
		}), protocol.CodeClockSkew, untilNothing, nodeStays},
		"leave: another signer's instance": {func(w *world, a *attempt) {
			c := ledger.Claim{
				Instance: theInstance(), Fingerprints: []string{fingerprintOf(a.keys[0])}, Hostname: testHostname,
				Signer: "other.example.com", ValidUntil: w.now.Add(time.Hour),
			}
			must(w.ledger.Claim(w.t.Context(), c, w.now))
			a.payload.Purpose = protocol.PurposeLeave
		}, protocol.CodeNameInUse, untilLeave, nil},
		"leave: another signer's instance, whose certificates have expired": {func(w *world, a *attempt) {
			c := ledger.Claim{
				Instance: theInstance(), Fingerprints: []string{fingerprintOf(a.keys[0])}, Hostname: testHostname,
				Signer: "other.example.com", ValidUntil: w.now.Add(time.Hour),
			}
			must(w.ledger.Claim(w.t.Context(), c, w.now))
			w.pass(a, 2*time.Hour)
			a.payload.Purpose = protocol.PurposeLeave
		}, protocol.CodeNotEnrolled, untilLeave, func(t *testing.T, w *world, _ *attempt, _ protocol.Response) {
			if record := must(w.ledger.Lookup(t.Context(), theInstance())); record.Left {
				t.Errorf("the record says %+v", record)
			}
		}},
		"leave: the ledger does not answer": {after(func(w *world, _ *attempt) {
			w.claimErr = errors.New("connection refused")
		}), protocol.CodeUpstream, untilLeave, nodeStays},

		// The purpose is among the bytes that every proof binds.
		"a captured enrollment, turned into a leave": {func(w *world, a *attempt) {
			captured := w.earlier(a)
			a.http = replay(captured, `{"version":2`, `{"purpose":"leave","version":2`)
		}, protocol.CodeHostKeyUnproved, untilNothing, nodeStays},
		"a captured leave, turned into an enrollment": {after(func(w *world, a *attempt) {
			captured := a.build(w.t)
			if answer := w.signer.Enroll(w.t.Context(), captured); answer.Status != http.StatusOK {
				w.t.Fatalf("answer %d %s", answer.Status, answer.Body)
			}
			w.calls = nil
			w.log.Reset()
			a.http = replay(captured, `,"purpose":"leave"`, "")
		}), protocol.CodeHostKeyUnproved, untilNothing, func(t *testing.T, w *world, _ *attempt, _ protocol.Response) {
			if len(w.nodes) != 0 {
				t.Errorf("nodes %v", w.nodes)
			}
		}},
		"a captured leave, after the machine enrolled again": {after(func(w *world, a *attempt) {
			captured := a.build(w.t)
			if answer := w.signer.Enroll(w.t.Context(), captured); answer.Status != http.StatusOK {
				w.t.Fatalf("answer %d %s", answer.Status, answer.Body)
			}
			w.log.Reset()
			a.payload.Purpose = protocol.PurposeEnroll
			w.pass(a, time.Minute)
			w.earlier(a)
			a.http = func(r *entry.Request) { *r = captured }
		}), protocol.CodeCallerProofInvalid, untilLeave, nodeStays},
		"a captured enrollment, after the machine left": {func(w *world, a *attempt) {
			captured := w.earlier(a)
			w.pass(a, time.Minute)
			if left := w.askToLeave("", a); left.status != http.StatusOK {
				w.t.Fatalf("answer %+v", left)
			}
			w.calls = nil
			w.log.Reset()
			a.http = func(r *entry.Request) { *r = captured }
		}, protocol.CodeNotEnrolled, untilClaim, func(t *testing.T, w *world, _ *attempt, _ protocol.Response) {
			if record := must(w.ledger.Lookup(t.Context(), theInstance())); !record.Left || len(w.nodes) != 0 {
				t.Errorf("record %+v, nodes %v", record, w.nodes)
			}
		}},
		"a leave that arrives after a later enrollment": {func(w *world, a *attempt) {
			w.earlier(a)
			a.payload.Purpose = protocol.PurposeLeave
			captured := a.build(w.t)
			a.payload.Purpose = protocol.PurposeEnroll
			w.pass(a, time.Minute)
			w.earlier(a)
			a.http = func(r *entry.Request) { *r = captured }
		}, protocol.CodeCallerProofInvalid, untilLeave, nodeStays},
		"a purpose that nobody knows": {inPayload(`"purpose":"end",`), protocol.CodeMalformed, untilNothing, nil},
		"an empty purpose":            {inPayload(`"purpose":"",`), protocol.CodeMalformed, untilNothing, nil},
		"no purpose, as null":         {inPayload(`"purpose":null,`), protocol.CodeMalformed, untilNothing, nil},
		"two purposes":                {inPayload(`"purpose":"leave","purpose":"leave",`), protocol.CodeMalformed, untilNothing, nil},
		"purpose in other case":       {inPayload(`"Purpose":"leave",`), protocol.CodeMalformed, untilNothing, nil},
		"a leave in version 1": {func(_ *world, a *attempt) {
			a.payload.Version, a.payload.Purpose = protocol.FirstVersion, protocol.PurposeLeave
		}, protocol.CodeMalformed, untilNothing, nil},
	}
}

// inRequest changes a request after it was signed.
func inRequest(change func(*protocol.Request)) func(*entry.Request) {
	return func(r *entry.Request) {
		request := must(protocol.ParseRequest(r.Body))
		change(request)
		r.Body = must(json.Marshal(request))
	}
}

// replay sends a captured request again, with other text in its payload.
func replay(captured entry.Request, old, replacement string) func(*entry.Request) {
	return func(r *entry.Request) {
		*r = captured
		inRequest(func(request *protocol.Request) {
			payload := bytes.Replace(request.Payload, []byte(old), []byte(replacement), 1)
			if bytes.Equal(payload, request.Payload) {
				panic("the payload has no " + old)
			}
			request.Payload = payload
		})(r)
	}
}

// leaving is the answer to a request to leave.
type leaving struct {
	status  int
	left    protocol.LeaveResponse
	refused protocol.Refusal
}

// askToLeave sends a request to leave, by an entry.
func (w *world) askToLeave(by entry.Kind, a *attempt) leaving {
	w.t.Helper()
	a.payload.Purpose = protocol.PurposeLeave
	w.entry = by
	answer := w.send(a.build(w.t))
	got, refused := leaving{status: answer.Status}, protocol.ErrorResponse{}
	into := any(&got.left)
	if answer.Status != http.StatusOK {
		into = &refused
	}
	if err := json.Unmarshal(answer.Body, into); err != nil {
		w.t.Fatal(err)
	}
	got.refused = refused.Error
	return got
}

// A machine leaves: its node is gone, its keys and its name stay its own, and it can enroll
// again with the same keys. It may leave twice.
func TestLeaving(t *testing.T) {
	for _, kind := range entry.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			w := newWorld(t)
			a := newAttempt(t, w.now)
			w.earlier(a)
			for range 2 {
				w.calls = nil
				w.log.Reset()
				got := w.askToLeave(kind, a)
				i := theInstance()
				if got.status != http.StatusOK || got.left.Version != protocol.Version || got.left.NodeID != i.NodeID() || got.left.RequestID == "" {
					t.Fatalf("answer %+v", got)
				}
				if calls := w.upstream(); calls != left {
					t.Errorf("calls %q, want %q", calls, left)
				}
				if len(w.nodes) != 0 {
					t.Errorf("nodes %v are left", w.nodes)
				}
				record := must(w.ledger.Lookup(t.Context(), i))
				if !record.Left || record.Retired || len(record.Fingerprints) != 2 || record.ConfirmedHostname != testHostname || record.ValidUntil.IsZero() {
					t.Errorf("record %+v", record)
				}
				checkLeftLine(t, w)
			}
			if _, err := w.ledger.Claim(t.Context(), ledger.Claim{
				Instance: inTestAccount(otherInstance), Fingerprints: []string{"SHA256:other"}, Hostname: testHostname, ValidUntil: w.now.Add(time.Hour),
			}, w.now); !errors.Is(err, ledger.ErrNameInUse) {
				t.Errorf("another instance claims the name: %v", err)
			}
			a.payload.Purpose = protocol.PurposeEnroll
			if status, _, refused := w.enroll(a); status != http.StatusOK {
				t.Fatalf("enrolling again: %+v", refused)
			}
			if record := must(w.ledger.Lookup(t.Context(), theInstance())); record.Left || len(w.nodes) != 1 {
				t.Errorf("record %+v, nodes %v", record, w.nodes)
			}
		})
	}
}

func checkLeftLine(t *testing.T, w *world) {
	t.Helper()
	var line map[string]any
	if err := json.Unmarshal(w.log.Bytes(), &line); err != nil {
		t.Fatalf("want one line: %v in %q", err, w.log.String())
	}
	for key, want := range map[string]any{"code": "left", "purpose": "leave", "proved": true, "leaves": 1.0, "renewals": nil, "enrollments": nil} {
		if got := line[key]; fmt.Sprint(got) != fmt.Sprint(want) && (want != nil || got != 0.0) {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}
	checkNoSecrets(t, w)
}

// A machine without a node leaves again. Meanwhile, another program has written a node under the
// same id, or somebody has made it another signer's.
func TestLeavingTouchesNobodyElsesNode(t *testing.T) {
	for name, labels := range map[string]map[string]string{
		"no signer's":      nil,
		"another signer's": {node.SignerLabel: "other.example.com"},
	} {
		w := newWorld(t)
		a := newAttempt(t, w.now)
		w.earlier(a)
		w.askToLeave("", a)
		i := theInstance()
		w.nodes[i.NodeID()] = node.Node{ID: i.NodeID(), Hostname: "theirs", Labels: labels}
		if got := w.askToLeave("", a); got.status != http.StatusOK {
			t.Errorf("%s: answer %+v", name, got)
		}
		if n := w.nodes[i.NodeID()]; n.Hostname != "theirs" {
			t.Errorf("%s: nodes %v", name, w.nodes)
		}
	}
}

// The policy has nothing to say about leaving, nor has EC2.
func TestLeaveOfARefusedInstance(t *testing.T) {
	w := newWorld(t)
	a := newAttempt(t, w.now)
	w.earlier(a)
	w.setPolicy(`{name: others, match: {accounts: ["222222222222"], image_owners: [listed], max_age: any}}`)
	w.ec2Err = errors.New("no answer")
	if got := w.askToLeave("", a); got.status != http.StatusOK || len(w.nodes) != 0 {
		t.Errorf("answer %+v, nodes %v", got, w.nodes)
	}
}

// A leave that Teleport does not carry out is answered so that the machine asks again, and
// the record already says so for the sweep.
func TestLeaveWhileTeleportIsDown(t *testing.T) {
	for name, fail := range map[string]func(*world, error){
		"login":    func(w *world, err error) { w.dialErr = err },
		"look-up":  func(w *world, err error) { w.nodeErr = err },
		"deletion": func(w *world, err error) { w.deleteErr = err },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a := newAttempt(t, w.now)
			w.earlier(a)
			fail(w, teleport.ErrUnavailable)
			if got := w.askToLeave("", a); got.refused.Code != protocol.CodeUpstream {
				t.Errorf("answer %+v", got)
			}
			if record := must(w.ledger.Lookup(t.Context(), theInstance())); !record.Left {
				t.Errorf("record %+v", record)
			}
			fail(w, nil)
			if got := w.askToLeave("", a); got.status != http.StatusOK || len(w.nodes) != 0 {
				t.Errorf("answer %+v, nodes %v", got, w.nodes)
			}
		})
	}
}

// An enrollment in progress that the leave overtakes gets nothing, and leaves no node.
func TestEnrollmentOvertakenByALeave(t *testing.T) {
	w := newWorld(t)
	a := newAttempt(t, w.now)
	w.earlier(a)
	w.beforeOK = func() {
		l := ledger.Leave{Instance: theInstance(), Fingerprints: []string{fingerprintOf(a.keys[0])}, Signer: testAudience, IssuedAt: w.now}
		must(w.ledger.Leave(t.Context(), l, w.now))
		clear(w.nodes)
	}
	_, _, refused := w.enroll(a)
	if refused.Code != protocol.CodeNotEnrolled || len(w.nodes) != 0 {
		t.Errorf("refused %+v, nodes %v", refused, w.nodes)
	}
}

// Between the record and the deletion, the machine enrolls again: the node is written again.
func TestLeaveOvertakenByAnEnrollment(t *testing.T) {
	w := newWorld(t)
	a := newAttempt(t, w.now)
	w.earlier(a)
	again := newAttempt(t, w.now)
	again.keys = a.keys
	w.beforeDelete = func() {
		w.beforeDelete = nil
		if status, _, refused := w.enroll(again); status != http.StatusOK {
			t.Errorf("refused %+v", refused)
		}
	}
	if got := w.askToLeave("", a); got.status != http.StatusOK {
		t.Errorf("answer %+v", got)
	}
	if record := must(w.ledger.Lookup(t.Context(), theInstance())); record.Left || len(w.nodes) != 1 {
		t.Errorf("record %+v, nodes %v", record, w.nodes)
	}
}

// While a machine has no node, another program may take its name. The machine then enrolls
// under its id.
func TestEnrollingAgainUnderATakenName(t *testing.T) {
	w := newWorld(t)
	a := newAttempt(t, w.now)
	w.earlier(a)
	w.askToLeave("", a)
	w.nodes["foreign"] = node.Node{ID: "foreign", Hostname: testHostname}
	a.payload.Purpose = protocol.PurposeEnroll
	status, granted, refused := w.enroll(a)
	if refused.Code != protocol.CodeNameInUse && (status != http.StatusOK || granted.Node.Hostname == testHostname || !strings.Contains(w.log.String(), "held_by_others")) {
		t.Errorf("status %d, host name %s, refused %+v", status, granted.Node.Hostname, refused)
	}
}
