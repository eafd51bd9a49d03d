package enroll

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// hasNode checks whether the machine has a node.
func (m *machine) hasNode(want bool) {
	m.t.Helper()
	if _, there := m.nodes[m.node()]; there != want {
		m.t.Errorf("%s has a node: %t, want %t", m.id, there, want)
	}
}

func (m *machine) label(key, want string) {
	m.t.Helper()
	if got := m.nodes[m.node()].Labels[key]; got != want {
		m.t.Errorf("label %s of %s is %q, want %q", key, m.id, got, want)
	}
}

// eventSequences bring forged, late, repeated and reordered events.
func eventSequences() map[string]sequence {
	return map[string]sequence{
		"a forged event says that a running instance has ended": {play: func(s *stage) {
			s.honest.mustEnroll()
			for range 5 {
				s.stateChanged(s.honest.id)
			}
			s.honest.hasNode(true)
		}},
		"an event of another account names the machine's id": {play: func(s *stage) {
			s.honest.mustEnroll()
			s.honest.terminate()
			foreign := ec2ref.Instance{Account: "999999999999", Region: testRegion, ID: ec2ref.InstanceID(s.honest.id)}
			if errs := s.fleet.StatesChanged(s.t.Context(), []ec2ref.Instance{foreign}); errs[0] != nil {
				s.t.Error(errs[0])
			}
			s.honest.hasNode(true)
			s.honest.ec2().State = inventory.StateRunning
		}},
		"terminated, and the machine's disk goes on asking": {gone: true, play: func(s *stage) {
			s.honest.mustEnroll()
			s.honest.terminate()
			s.stateChanged(s.honest.id)
			s.honest.hasNode(false)
			for range 3 {
				s.honest.mustFail(protocol.CodeInstanceEnded)
				s.wait(time.Hour)
			}
		}},
		"the event comes before the first enrollment": {gone: true, play: func(s *stage) {
			s.honest.terminate()
			s.stateChanged(s.honest.id)
			s.honest.ec2().State = inventory.StateRunning // EC2's answers can be stale
			s.honest.mustFail(protocol.CodeInstanceEnded)
		}},
		"the event comes while the machine enrolls": {gone: true, play: func(s *stage) {
			s.beforeOK = func() {
				s.beforeOK = nil
				s.honest.terminate()
				s.stateChanged(s.honest.id)
			}
			s.honest.mustFail(protocol.CodeInstanceEnded)
			s.honest.hasNode(false)
		}},
		"the event comes while the machine enrolls, and signing fails": {gone: true, play: func(s *stage) {
			s.onClaim = func(ledger.Claim) error {
				s.onClaim = nil
				s.honest.terminate()
				s.stateChanged(s.honest.id)
				return nil
			}
			s.signErr = errors.New("connection lost")
			s.honest.ask()
			s.honest.hasNode(false)
		}},
		"tag events long after the end": {gone: true, play: func(s *stage) {
			s.honest.mustEnroll()
			s.honest.terminate()
			s.stateChanged(s.honest.id)
			for version := range uint64(5) {
				s.tagsChanged(s.honest.id, version+1)
				s.wait(24 * time.Hour)
			}
			s.honest.hasNode(false)
		}},
		"an event about an instance that EC2 does not show yet": {play: func(s *stage) {
			instance := s.honest.ec2()
			s.honest.forget()
			s.stateChanged(s.honest.id)
			s.tagsChanged(s.honest.id, 1)
			s.instances[s.honest.id] = instance
			s.honest.mustEnroll()
		}},
		"EC2 forgets the machine for a moment": {play: func(s *stage) {
			s.honest.mustEnroll()
			instance := s.honest.ec2()
			s.honest.forget()
			s.stateChanged(s.honest.id)
			s.sweep()
			s.honest.hasNode(true)
			s.instances[s.honest.id] = instance
			s.wait(time.Hour)
			s.sweep()
			s.honest.hasNode(true)
		}},
		"EC2 forgets the machine twice within ten minutes": {play: func(s *stage) {
			s.honest.mustEnroll()
			instance := s.honest.ec2()
			s.honest.forget()
			s.sweep()
			s.wait(10 * time.Minute)
			s.sweep()
			s.stateChanged(s.honest.id)
			s.honest.hasNode(true)
			s.instances[s.honest.id] = instance
			s.sweep()
		}},
		"EC2 forgets the machine now and then, for days": {play: func(s *stage) {
			s.honest.mustEnroll()
			instance := s.honest.ec2()
			for range 6 {
				s.honest.forget()
				s.sweep()
				s.instances[s.honest.id] = instance
				s.wait(4 * time.Hour)
				s.sweep()
				s.wait(4 * time.Hour)
			}
			s.honest.hasNode(true)
		}},
		"EC2 has forgotten an instance for good": {play: func(s *stage) {
			s.honest.mustEnroll()
			lost := s.launch(otherInstance, "db")
			lost.mustEnroll()
			lost.forget()
			s.sweep()
			lost.hasNode(true)
			s.wait(time.Hour)
			s.sweep()
			lost.hasNode(false)
			lost.mustFail(protocol.CodeInstanceEnded)
		}},
		"a tag event with the highest version there is": {play: func(s *stage) {
			s.honest.mustEnroll()
			s.tagsChanged(s.honest.id, 1<<64-1)
			s.honest.tag("Name", "later")
			for version := range uint64(4) {
				s.tagsChanged(s.honest.id, version+5)
			}
			s.sweep()
			s.honest.label("aws/Name", "later")
		}},
		"tag events out of order": {play: func(s *stage) {
			s.honest.mustEnroll()
			s.honest.tag("env", "prod")
			s.tagsChanged(s.honest.id, 7)
			s.honest.tag("env", "staging")
			s.tagsChanged(s.honest.id, 8)
			s.tagsChanged(s.honest.id, 6)
			s.honest.label("aws/env", "staging")
		}},
		"a tag is taken away while the machine enrolls": {play: func(s *stage) {
			s.honest.mustEnroll()
			s.honest.tag("env", "prod")
			s.onClaim = func(ledger.Claim) error {
				s.onClaim = nil
				delete(s.honest.ec2().Tags, "env")
				s.tagsChanged(s.honest.id, 9)
				return nil
			}
			s.honest.mustEnroll()
			s.sweep()
			s.honest.label("aws/env", "")
		}},
		"a renewal renames while a tag event is handled": {play: func(s *stage) {
			s.honest.mustEnroll()
			s.wait(5 * 24 * time.Hour)
			s.honest.tag("Name", "renamed")
			s.tagsChanged(s.honest.id, 3)
			s.honest.mustEnroll()
			s.tagsChanged(s.honest.id, 2)
			s.sweep()
			node := s.nodes[s.honest.node()]
			if node.Hostname != "renamed-"+testInstance || !node.Expires.After(s.now.Add(6*24*time.Hour)) {
				s.t.Errorf("node %s until %s", node.Hostname, node.Expires)
			}
		}},
		"a stopped instance starts again with another address": {play: func(s *stage) {
			s.setPolicy(`{name: default, match: {` + open + `}, when_stopped: remove}`)
			s.honest.mustEnroll()
			s.honest.ec2().State = inventory.StateStopped
			s.stateChanged(s.honest.id)
			s.honest.hasNode(false)
			s.honest.mustFail(protocol.CodeInstanceState)
			s.wait(20 * 24 * time.Hour)
			s.honest.ec2().State, s.honest.ec2().PrivateIP = inventory.StateRunning, "10.0.9.9"
			s.honest.mustEnroll()
			s.honest.hasNode(true)
		}},
		"a thousand copies of one event": {play: func(s *stage) {
			s.honest.mustEnroll()
			s.honest.tag("env", "prod")
			for range 1000 {
				s.tagsChanged(s.honest.id, 4)
				s.stateChanged(s.honest.id)
			}
			s.honest.label("aws/env", "prod")
		}},
	}
}

// sweepSequences make EC2 and the policy go wrong for a whole fleet.
func sweepSequences() map[string]sequence {
	// many launches and enrolls n further instances.
	many := func(s *stage, n int) []*machine {
		s.t.Helper()
		list := []*machine{s.honest}
		s.honest.mustEnroll()
		for k := range n {
			m := s.launch(fmt.Sprintf("i-%017x", k+1), "web")
			m.mustEnroll()
			list = append(list, m)
		}
		return list
	}
	return map[string]sequence{
		"EC2 shows nothing of a small fleet, for two days": {play: func(s *stage) {
			all := many(s, 19)
			kept := make(map[string]*inventory.Instance)
			for _, m := range all[1:] {
				kept[m.id] = m.ec2()
				m.forget()
			}
			for range 12 {
				s.sweep()
				s.wait(time.Hour)
			}
			if left := len(s.nodes); left < 10 {
				s.t.Errorf("%d of 20 nodes are left after a day of empty answers", left)
			}
			for id, instance := range kept {
				s.instances[id] = instance
			}
		}},
		"all of a small fleet is terminated": {play: func(s *stage) {
			all := many(s, 19)
			for _, m := range all[1:] {
				m.terminate()
			}
			s.sweep()
			if left := len(s.nodes); left != 1 {
				s.t.Errorf("%d nodes are left, want the one that runs", left)
			}
		}},
		"a sweep while EC2 does not answer": {play: func(s *stage) {
			s.honest.mustEnroll()
			s.ec2Err = errors.New("RequestLimitExceeded")
			for range 3 {
				s.sweep()
				s.wait(time.Hour)
			}
			s.honest.hasNode(true)
		}},
		"a policy that admits nobody is deployed, and withdrawn": {play: func(s *stage) {
			s.honest.mustEnroll()
			good := s.signer.Policy
			s.setPolicy(`{name: nobody, match: {` + open + `, vpcs: [vpc-0123456789abcdef0]}}`)
			s.sweep()
			s.honest.hasNode(true)
			s.honest.mustFail(protocol.CodePolicyRefused)
			s.signer.Policy = good
		}},
		"a node that is not ours, and a copy of one that is": {play: func(s *stage) {
			s.honest.mustEnroll()
			mine := s.nodes[s.honest.node()]
			// This is a copy of our node under another id. Anyone who can write nodes in
			// Teleport can make one.
			copied := mine
			copied.ID = "00000000-0000-0000-0000-000000000001"
			s.nodes[copied.ID] = copied
			s.foreign("not-ours", "bastion")
			s.sweep()
			s.untouched("not-ours", "bastion")
			if _, there := s.nodes[copied.ID]; !there {
				s.t.Error("the sweep deleted a node whose id is not that of its labels")
			}
		}},
		"an instance ends without an event and without a node": {play: func(s *stage) {
			s.setPolicy(chosen)
			lost := s.launch(otherInstance, "db").tag("TeleportHostname", "bastion")
			lost.mustEnroll()
			delete(s.nodes, lost.node()) // its lease has expired
			lost.forget()
			s.wait(30 * 24 * time.Hour)
			for range 4 {
				s.sweep()
				s.wait(time.Hour)
			}
			s.honest.tag("TeleportHostname", "bastion")
			s.honest.mustEnroll()
			s.wait(time.Hour)
			s.honest.mustEnroll()
			s.honest.named("bastion")
		}},
	}
}

// imageSequences change what an instance runs, and what EC2 shows about it.
func imageSequences() map[string]sequence {
	const (
		mine  = `{name: default, match: {image_owners: ["` + testOwner + `"], max_age: 1h}}`
		other = "ami-0bad0bad0bad0bad0"
	)
	strict := func(s *stage) {
		s.limits(mine)
		s.honest.mustEnroll()
		s.wait(2 * 24 * time.Hour)
	}
	return map[string]sequence{
		"the image is deregistered, and a tag changes": {play: func(s *stage) {
			strict(s)
			s.honest.ec2().ImageOwner = ""
			s.honest.tag("cost-center", "42")
			s.tagsChanged(s.honest.id, 2)
			s.sweep()
			s.honest.hasNode(true)
		}},
		"a stranger's image replaces the root volume": {play: func(s *stage) {
			strict(s)
			image, owner := s.honest.ec2().ImageID, s.honest.ec2().ImageOwner
			s.honest.ec2().ImageID, s.honest.ec2().ImageOwner = other, ""
			s.honest.mustFail(protocol.CodePolicyRefused)
			s.honest.ec2().ImageOwner = "999999999999"
			s.honest.mustFail(protocol.CodePolicyRefused)
			s.honest.ec2().ImageID, s.honest.ec2().ImageOwner = image, owner // put back
		}},
		"the public address is gone while an Elastic IP moves": {play: func(s *stage) {
			s.setPolicy(`{name: default, match: {` + open + `}, address: public}`)
			s.honest.ec2().PublicIP = "203.0.113.7"
			s.honest.mustEnroll()
			s.honest.ec2().PublicIP = ""
			s.honest.tag("env", "prod")
			s.tagsChanged(s.honest.id, 2)
			s.sweep()
			s.honest.hasNode(true)
			s.honest.ec2().PublicIP = "203.0.113.8"
			s.tagsChanged(s.honest.id, 3)
			if address := s.nodes[s.honest.node()].Address; address != "203.0.113.8:22" {
				s.t.Errorf("address %s", address)
			}
		}},
		"the metadata document is of another address than EC2's": {play: func(s *stage) {
			s.honest.mustEnroll()
			s.honest.change = func(a *attempt) { a.document["privateIp"] = "10.9.9.9" }
			s.honest.mustFail(protocol.CodeInstanceMismatch)
			s.honest.change = nil
		}},
	}
}

// failureSequences make one service after another fail, in a first enrollment and in a
// renewal.
func failureSequences() map[string]sequence {
	lost := errors.New("connection lost")
	failures := map[string]func(*stage){
		"STS":                    func(s *stage) { s.stsErr = lost },
		"EC2":                    func(s *stage) { s.ec2Err = lost },
		"the ledger's look-up":   func(s *stage) { s.lookupErr = lost },
		"the ledger's claim":     func(s *stage) { s.claimErr = lost },
		"the dial to Teleport":   func(s *stage) { s.dialErr = lost },
		"the look-up of a node":  func(s *stage) { s.nodeErr = lost },
		"the write of the node":  func(s *stage) { s.upsertErr = lost },
		"signing":                func(s *stage) { s.signErr = lost },
		"the ledger's agreement": func(s *stage) { s.beforeOK = func() { s.lookupErr = lost } },
	}
	rows := make(map[string]sequence)
	for what, fail := range failures {
		rows[what+" fails at the first enrollment, three times"] = sequence{play: func(s *stage) {
			for range 3 {
				fail(s)
				s.honest.ask()
				s.wait(time.Minute)
			}
		}}
		rows[what+" fails at renewals for two days"] = sequence{play: func(s *stage) {
			s.honest.mustEnroll()
			s.wait(3 * 24 * time.Hour)
			fail(s)
			for range 20 {
				s.honest.ask()
				s.wait(2 * time.Hour)
			}
			s.honest.hasNode(true)
		}}
	}
	rows["the caller hangs up at each step of its enrollment"] = sequence{play: func(s *stage) {
		ctx, cancel := context.WithCancel(s.t.Context())
		for _, hang := range []func(){
			func() { s.onClaim = func(ledger.Claim) error { cancel(); return nil } },
			func() { s.beforeOK = cancel },
		} {
			hang()
			s.signer.Enroll(ctx, s.honest.request())
			s.onClaim, s.beforeOK = nil, nil
			ctx, cancel = context.WithCancel(s.t.Context())
		}
		cancel()
	}}
	return rows
}

// signerSequences let two signers meet.
func signerSequences() map[string]sequence {
	return map[string]sequence{
		"a second signer on the same ledger wants the machine": {play: func(s *stage) {
			s.honest.mustEnroll()
			s.signer.Audience = "second.example.com"
			second := *s.honest
			second.change = func(a *attempt) { a.payload.Audience = "second.example.com" }
			second.mustFail(protocol.CodeNameInUse)
			s.honest.label(node.SignerLabel, testAudience)
			s.signer.Audience = testAudience
		}},
		"a second signer wants a machine whose record is from before records named signers": {play: func(s *stage) {
			s.honest.mustEnroll()
			old := s.honest.record()
			s.ledger = ledger.Memory{}
			c := ledger.Claim{Instance: s.honest.ref(), Fingerprints: old.Fingerprints, Hostname: old.ConfirmedHostname, ValidUntil: old.ValidUntil}
			if err := s.ledger.Confirm(s.t.Context(), c, must(s.ledger.Claim(s.t.Context(), c, s.now)), s.now); err != nil {
				s.t.Fatal(err)
			}
			s.signer.Audience = "second.example.com"
			second := *s.honest
			second.change = func(a *attempt) { a.payload.Audience = "second.example.com" }
			second.mustFail(protocol.CodeNameInUse)
			s.honest.label(node.SignerLabel, testAudience)
			s.signer.Audience = testAudience
		}},
		"a second signer's sweep meets our nodes": {play: func(s *stage) {
			s.honest.mustEnroll()
			other := *s.fleet
			other.Audience = "second.example.com"
			s.honest.terminate()
			if _, err := (&other).Sweep(s.t.Context(), "", 0); err != nil {
				s.t.Error(err)
			}
			s.honest.hasNode(true)
			s.honest.ec2().State = inventory.StateRunning
		}},
		"evidence for a second signer is replayed here": {play: func(s *stage) {
			s.honest.mustEnroll()
			stolen := *s.honest
			stolen.change = func(a *attempt) { a.payload.Audience = "second.example.com" }
			stolen.mustFail(protocol.CodeAudienceMismatch)
		}},
	}
}
