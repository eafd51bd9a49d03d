package enroll

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// chosen lets the tag TeleportHostname choose a machine's host name.
const chosen = `{name: default, match: {` + open + `}, teleport_hostname: {pattern: "[a-z]+(-[0-9]+)?"}}`

// named checks which host name the machine is enrolled under.
func (m *machine) named(want string) {
	m.t.Helper()
	if got := m.record().ConfirmedHostname; got != want {
		m.t.Errorf("%s is called %q, want %q", m.id, got, want)
	}
}

func (m *machine) tag(key, value string) *machine {
	m.ec2().Tags[key] = value
	return m
}

// foreign puts a node of another program into Teleport.
func (s *stage) foreign(id, hostname string) {
	s.nodes[id] = node.Node{ID: id, Hostname: hostname, Labels: map[string]string{"team": "other"}}
}

// untouched checks that another program's node has not changed.
func (s *stage) untouched(id, hostname string) {
	s.t.Helper()
	if n, there := s.nodes[id]; !there || n.Hostname != hostname || n.Labels["team"] != "other" {
		s.t.Errorf("the node %s that is not ours is now %+v", id, n)
	}
}

// nameSequences try to take names from their holders, and to lock machines out with names that
// they had.
func nameSequences() map[string]sequence {
	return map[string]sequence{
		"renamed forty times in half a year": {play: func(s *stage) {
			for n := range 40 {
				s.honest.tag("Name", fmt.Sprint("web-v", n))
				s.honest.mustEnroll()
				s.wait(4 * 24 * time.Hour)
			}
			s.honest.named("web-v39-" + testInstance)
		}},
		"renamed forty times in an hour, then left alone": {play: func(s *stage) {
			for n := range 40 {
				s.honest.tag("Name", fmt.Sprint("web-v", n))
				s.honest.ask()
				s.wait(2 * time.Minute)
			}
			s.wait(8 * 24 * time.Hour)
			s.honest.mustEnroll()
			s.honest.named("web-v39-" + testInstance)
		}},
		"forty public addresses, then a first rename": {play: func(s *stage) {
			s.setPolicy(`{name: default, match: {` + open + `}, principals: [public_ip]}`)
			for n := range 40 {
				s.honest.ec2().PublicIP = fmt.Sprintf("203.0.113.%d", n+1)
				s.honest.mustEnroll()
				s.wait(3 * 24 * time.Hour)
			}
			s.honest.tag("Name", "renamed").mustEnroll()
			s.honest.named("renamed-" + testInstance)
		}},
		"an address moves to another instance while certificates name its last holder": {play: func(s *stage) {
			s.setPolicy(`{name: default, match: {` + open + `}, principals: [public_ip]}`)
			other := s.launch(otherInstance, "db")
			s.honest.ec2().PublicIP, other.ec2().PublicIP = "203.0.113.7", ""
			s.honest.mustEnroll()
			s.honest.ec2().PublicIP, other.ec2().PublicIP = "", "203.0.113.7"
			if got := other.mustEnroll(); slices.Contains(got.Principals, "203.0.113.7") {
				s.t.Error("an address has two holders")
			}
		}},
		"there and back: a name is given up and taken again": {play: func(s *stage) {
			for _, name := range []string{"web", "db", "web", "db"} {
				s.honest.tag("Name", name).mustEnroll()
				s.honest.named(name + "-" + testInstance)
				s.wait(2 * 24 * time.Hour)
			}
		}},
		"two machines swap their chosen names": {play: func(s *stage) {
			s.setPolicy(chosen)
			other := s.launch(otherInstance, "db").tag("TeleportHostname", "bravo")
			s.honest.tag("TeleportHostname", "alpha").mustEnroll()
			other.mustEnroll()
			s.honest.tag("TeleportHostname", "bravo").mustEnroll()
			other.tag("TeleportHostname", "alpha").mustEnroll()
			s.honest.named("bravo-" + testInstance)
			other.named("alpha-" + otherInstance)
		}},
		"a tag names the host that somebody else has": {play: func(s *stage) {
			s.setPolicy(chosen)
			holder := s.launch(otherInstance, "db").tag("TeleportHostname", "bastion")
			holder.mustEnroll()
			s.honest.tag("TeleportHostname", "bastion").mustEnroll()
			s.honest.named("bastion-" + testInstance)
			holder.mustEnroll()
			holder.named("bastion")
		}},
		"a tag names a node that is not ours, which comes to us later": {play: func(s *stage) {
			s.setPolicy(chosen)
			s.foreign("not-ours", "bastion")
			s.honest.mustEnroll()
			for range 3 {
				s.honest.tag("TeleportHostname", "bastion").mustEnroll()
				s.honest.named("bastion-" + testInstance)
				s.wait(3 * 24 * time.Hour)
			}
			s.untouched("not-ours", "bastion")
			delete(s.nodes, "not-ours")
			delete(s.honest.ec2().Tags, "TeleportHostname")
			s.honest.mustEnroll()
			bastion := s.launch(otherInstance, "b").tag("TeleportHostname", "bastion")
			bastion.mustEnroll()
			bastion.named("bastion")
		}},
		"a machine was off for a month, and a node that is not ours has got its name": {play: func(s *stage) {
			s.setPolicy(chosen)
			s.honest.tag("TeleportHostname", "bastion").mustEnroll()
			s.honest.named("bastion")
			s.wait(30 * 24 * time.Hour)
			delete(s.nodes, s.honest.node()) // its lease has expired
			s.foreign("not-ours", "bastion")
			got := s.honest.mustEnroll()
			s.honest.named("bastion-" + testInstance)
			if slices.Contains(got.Principals, "bastion") {
				s.t.Errorf("principals %v", got.Principals)
			}
			s.untouched("not-ours", "bastion")
		}},
		"a machine was off for a month, and a node that is not ours has got its id": {play: func(s *stage) {
			s.honest.mustEnroll()
			s.wait(30 * 24 * time.Hour)
			s.foreign(s.honest.node(), "theirs")
			s.honest.mustFail(protocol.CodeNameInUse)
			s.untouched(s.honest.node(), "theirs")
			delete(s.nodes, s.honest.node()) // the operator settles it
		}},
		"a tag names a node that is not ours by its full name": {play: func(s *stage) {
			s.setPolicy(chosen)
			s.foreign("not-ours", "bastion."+testCluster)
			got := s.honest.tag("TeleportHostname", "bastion").mustEnroll()
			if slices.Contains(got.Principals, "bastion."+testCluster) {
				s.t.Errorf("principals %v", got.Principals)
			}
			s.untouched("not-ours", "bastion."+testCluster)
		}},
		"a tag looks like another instance's default name": {play: func(s *stage) {
			s.setPolicy(`{name: default, match: {` + open + `}, teleport_hostname: {pattern: ".*"}}`)
			imposter := s.launch(otherInstance, "db").tag("TeleportHostname", testHostname)
			imposter.ask()
			s.honest.mustEnroll()
			s.honest.named(testHostname)
			imposter.ask()
			if got := imposter.record().ConfirmedHostname; got == testHostname {
				s.t.Errorf("%s is called %s", imposter.id, got)
			}
		}},
		"a name is wanted while its holder's last certificate lives": {play: func(s *stage) {
			s.setPolicy(chosen)
			holder := s.launch(otherInstance, "db").tag("TeleportHostname", "bastion")
			holder.mustEnroll()
			holder.terminate()
			s.stateChanged(holder.id)
			s.honest.tag("TeleportHostname", "bastion").mustEnroll()
			s.honest.named("bastion-" + testInstance)
			s.wait(8 * 24 * time.Hour)
			s.honest.mustEnroll()
			s.honest.named("bastion")
		}},
		"a former name is wanted while its certificate lives": {play: func(s *stage) {
			s.setPolicy(chosen)
			s.honest.tag("TeleportHostname", "bastion").mustEnroll()
			s.honest.tag("TeleportHostname", "gateway").mustEnroll()
			next := s.launch(otherInstance, "db").tag("TeleportHostname", "bastion")
			next.mustEnroll()
			next.named("bastion-" + otherInstance)
		}},
		"a former name is given away a month later, and wanted back": {play: func(s *stage) {
			s.setPolicy(chosen)
			s.honest.tag("TeleportHostname", "bastion").mustEnroll()
			s.honest.tag("TeleportHostname", "gateway").mustEnroll()
			for range 10 {
				s.wait(3 * 24 * time.Hour)
				s.honest.mustEnroll()
			}
			next := s.launch(otherInstance, "db").tag("TeleportHostname", "bastion")
			next.mustEnroll()
			s.honest.tag("TeleportHostname", "bastion").mustEnroll()
			next.named("bastion")
			s.honest.named("bastion-" + testInstance)
		}},
		"a host name is another machine's address": {play: func(s *stage) {
			s.setPolicy(`{name: default, match: {` + open + `}, teleport_hostname: {pattern: ".*"}, principals: [private_ip]}`)
			other := s.launch(otherInstance, "db").tag("TeleportHostname", s.honest.ec2().PrivateIP)
			other.ask()
			got := s.honest.mustEnroll()
			if !slices.Contains(got.Principals, s.honest.ec2().PrivateIP) {
				s.t.Errorf("the machine goes without its address: %v", got.Principals)
			}
		}},
		"the tags change to nonsense, and back": {play: func(s *stage) {
			s.setPolicy(chosen)
			s.honest.mustEnroll()
			for _, nonsense := range []string{"", ".", "localhost", "ip6-localhost", "::1", "127.1", strings.Repeat("a", 300), "a\u202eb", "*", "-", "bastion\nroot"} {
				s.honest.tag("Name", nonsense).tag("TeleportHostname", nonsense)
				if status, got, _ := s.honest.ask(); status == 200 && strings.TrimSpace(got.Node.Hostname) == strings.TrimSpace(nonsense) {
					s.t.Errorf("named %q", got.Node.Hostname)
				}
				s.wait(24 * time.Hour)
			}
			delete(s.honest.ec2().Tags, "TeleportHostname")
			s.honest.tag("Name", "web")
		}},
		"a node of ours is handed over to somebody else in Teleport": {play: func(s *stage) {
			s.honest.mustEnroll()
			mine := s.nodes[s.honest.node()]
			server := mine
			server.Labels = map[string]string{node.SignerLabel: "second.example.com", "team": "other"}
			s.nodes[server.ID] = server
			s.honest.tag("Name", "renamed").mustFail(protocol.CodeNameInUse)
			s.untouched(server.ID, mine.Hostname)
			delete(s.nodes, server.ID) // the operator settles it
		}},
	}
}
