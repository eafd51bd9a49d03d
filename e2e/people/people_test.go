//go:build teleport && linux

package people

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gravitational/teleport/api/types"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/e2e/teleportd"
)

const everywhere = `{logins: [debian], node_labels: {'*': '*'}}`

// list runs `tsh ls`, and returns the nodes by host name.
func list(t *testing.T, p *teleportd.Person) map[string]*types.ServerV2 {
	t.Helper()
	out, err := p.Tsh(t.Context(), "ls", "--format=json")
	if err != nil {
		t.Fatal(err)
	}
	var nodes []*types.ServerV2
	if err := json.Unmarshal([]byte(out), &nodes); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	byName := make(map[string]*types.ServerV2)
	for _, node := range nodes {
		byName[node.GetHostname()] = node
	}
	return byName
}

func TestListShowsLabels(t *testing.T) {
	alice := newPerson(t, shared.lab.Teleport, "alice-lists", everywhere)
	nodes := list(t, alice)
	for env, m := range map[string]enrolled{"prod": shared.prod, "dev": shared.dev} {
		node := nodes[m.state.Node.Hostname]
		if node == nil {
			t.Errorf("no %s among %v", m.state.Node.Hostname, slices.Collect(maps.Keys(nodes)))
			continue
		}
		if node.GetName() != m.state.Node.ID || node.GetAddr() != m.Address.String()+":22" {
			t.Errorf("node %s at %s, want %s at %s:22", node.GetName(), node.GetAddr(), m.state.Node.ID, m.Address)
		}
		labels := node.GetAllLabels()
		for key, want := range map[string]string{
			"aws/Name": env, "aws/env": env, "teleport.dev/instance-id": m.ID, "hallmark/signer": lab.Audience,
		} {
			if labels[key] != want {
				t.Errorf("%s: label %s=%q, want %q", env, key, labels[key], want)
			}
		}
	}
}

// These are the names and ports that docs/people.md tells people to type.
func TestLogin(t *testing.T) {
	alice := newPerson(t, shared.lab.Teleport, "alice", everywhere)
	m := shared.prod
	name, id, cluster := m.state.Node.Hostname, m.state.Node.ID, "."+shared.lab.Cluster.Name()
	for _, args := range [][]string{
		{lab.User + "@" + name},
		{lab.User + "@" + id},
		{"--port=22", lab.User + "@" + name},
		{"--port=22", lab.User + "@" + id},
		{lab.User + "@aws/env=prod"},
	} {
		t.Run("tsh ssh "+strings.Join(args, " "), func(t *testing.T) {
			out, err := alice.Tsh(t.Context(), append(append([]string{"ssh"}, args...), reach)...)
			reached(t, m, out, err)
		})
	}
	for _, args := range [][]string{
		{"-p", "22", lab.User + "@" + name + cluster},
		{"-p", "22", lab.User + "@" + id + cluster},
	} {
		t.Run("ssh -F "+strings.Join(args, " "), func(t *testing.T) {
			out, err := alice.SSH(t.Context(), append(args, reach)...)
			reached(t, m, out, err)
		})
	}
	// Certificates name no addresses, which repeat across VPCs.
	t.Run("tsh ssh to the address", func(t *testing.T) {
		out, err := alice.Tsh(t.Context(), "ssh", lab.User+"@"+m.Address.String(), reach)
		// The proxy sends the reason while tsh still waits for its answer to the channel. The
		// network decides which of the two tsh reads first: tsh prints the reason or this
		// error.
		refused(t, out, err, "unexpected packet in response to channel open", "not in the set of valid principals")
	})
	// tsh config writes Port 3022, the port of Teleport's own agents.
	t.Run("ssh -F without a port", func(t *testing.T) {
		out, err := alice.SSH(t.Context(), lab.User+"@"+name+cluster, reach)
		refused(t, out, err, "Connection closed")
	})
}

func TestRoleReachesItsLabelsOnly(t *testing.T) {
	bob := newPerson(t, shared.lab.Teleport, "bob", `{logins: [debian], node_labels: {aws/env: prod}}`)
	if nodes := list(t, bob); len(nodes) != 1 || nodes[shared.prod.state.Node.Hostname] == nil {
		t.Errorf("tsh ls shows %v, want prod alone", slices.Collect(maps.Keys(nodes)))
	}
	out, err := bob.Tsh(t.Context(), "ssh", lab.User+"@"+shared.prod.state.Node.Hostname, reach)
	reached(t, shared.prod, out, err)
	for _, name := range []string{shared.dev.state.Node.Hostname, shared.dev.state.Node.ID} {
		out, err := bob.Tsh(t.Context(), "ssh", lab.User+"@"+name, reach)
		refused(t, out, err, "access denied to "+lab.User)
		out, err = bob.SSH(t.Context(), "-p", "22", lab.User+"@"+name+"."+shared.lab.Cluster.Name(), reach)
		refused(t, out, err, "Permission denied")
	}
}

func TestLoginThatTheRoleDoesNotAllow(t *testing.T) {
	carol := newPerson(t, shared.lab.Teleport, "carol", everywhere)
	out, err := carol.Tsh(t.Context(), "ssh", "root@"+shared.prod.state.Node.Hostname, reach)
	refused(t, out, err, "access denied to root")
	out, err = carol.SSH(t.Context(), "-p", "22", "root@"+shared.prod.state.Node.Hostname+"."+shared.lab.Cluster.Name(), reach)
	refused(t, out, err, shared.lab.Teleport.Behavior().RefusedLogin)
}

// The proxy records what happens on a terminal, and lists every command. Whether one
// without a terminal can be played depends on the version.
func TestProxyRecords(t *testing.T) {
	auditor := newPerson(t, shared.lab.Teleport, "auditor-of-all", everywhere, "auditor")
	host := lab.User + "@" + shared.prod.state.Node.Hostname
	listed := map[string]bool{}
	for _, session := range []struct {
		name   string
		run    func(ctx context.Context, args ...string) (string, error)
		args   []string
		played bool
	}{
		{"on a terminal", auditor.TshOnTerminal, []string{"ssh", "-t", host}, true},
		{"without a terminal", auditor.Tsh, []string{"ssh", host}, shared.lab.Teleport.Behavior().RecordsCommands},
	} {
		t.Run(session.name, func(t *testing.T) {
			mark := uuid.NewString()
			if out, err := session.run(t.Context(), append(session.args, "echo "+mark)...); err != nil || !strings.Contains(out, mark) {
				t.Fatalf("got %q, %v", out, err)
			}
			var id string
			poll(t, func() (err error) {
				id, err = recorded(t, auditor, listed)
				return err
			})
			listed[id] = true
			if !session.played {
				out, err := auditor.Tsh(t.Context(), "play", "--format=json", id)
				refused(t, out, err, "not found")
				return
			}
			poll(t, func() error {
				play, err := auditor.Tsh(t.Context(), "play", "--format=json", id)
				if err == nil && !strings.Contains(play, mark) {
					err = fmt.Errorf("no %s in the recording:\n%s", mark, play)
				}
				return err
			})
		})
	}
}

// recorded returns the auditor's session that `tsh recordings ls` lists in addition to those
// that it listed before.
func recorded(t *testing.T, auditor *teleportd.Person, before map[string]bool) (id string, err error) {
	t.Helper()
	out, err := auditor.Tsh(t.Context(), "recordings", "ls", "--format=json")
	if err != nil {
		return "", err
	}
	var sessions []struct {
		ID        string `json:"sid"`
		User      string `json:"user"`
		Login     string `json:"login"`
		Host      string `json:"server_hostname"`
		Recording string `json:"session_recording"`
	}
	if err := json.Unmarshal([]byte(out), &sessions); err != nil {
		return "", fmt.Errorf("read what tsh recordings ls prints: %w in %q", err, out)
	}
	for _, s := range sessions {
		if s.User != "auditor-of-all" || before[s.ID] {
			continue
		}
		if s.Login != lab.User || s.Host != shared.prod.state.Node.Hostname || s.Recording != "proxy" {
			return "", fmt.Errorf("recorded %+v", s)
		}
		return s.ID, nil
	}
	return "", errors.New("no recording")
}

// A machine's lease expires with its certificate, and a renewal extends both.
func TestRenewalMovesTheLease(t *testing.T) {
	alice := newPerson(t, shared.lab.Teleport, "alice-renews", everywhere)
	m := shared.dev
	before := list(t, alice)[m.state.Node.Hostname].Expiry()
	now, err := m.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if end := now.Certificates[0].ValidBefore; before.Sub(end).Abs() > time.Minute {
		t.Errorf("lease until %v, certificate until %v", before, end)
	}
	issueAgain(t, m)
	poll(t, func() error {
		if after := list(t, alice)[m.state.Node.Hostname].Expiry(); !after.After(before) {
			return fmt.Errorf("lease until %v, as before", after)
		}
		return nil
	})
	out, err := alice.Tsh(t.Context(), "ssh", lab.User+"@"+m.state.Node.Hostname, reach)
	reached(t, m, out, err)
}

// A node whose lease has expired disappears, like the node of a machine that nobody renews.
func TestEndedLeaseLeavesTheList(t *testing.T) {
	alice := newPerson(t, shared.lab.Teleport, "alice-waits", everywhere)
	const name = "gone-soon"
	id := uuid.NewString()
	lease := func(ttl time.Duration) {
		node := fmt.Sprintf(`kind: node
version: v2
sub_kind: openssh
metadata: {name: %s, expires: %s}
spec: {addr: "192.0.2.1:22", hostname: %s}
`, id, time.Now().Add(ttl).UTC().Format(time.RFC3339), name)
		if err := shared.lab.Teleport.Create(t.Context(), node); err != nil {
			t.Fatal(err)
		}
	}
	lease(time.Hour)
	poll(t, func() error {
		if list(t, alice)[name] == nil {
			return os.ErrNotExist
		}
		return nil
	})
	lease(4 * time.Second)
	poll(t, func() error {
		if list(t, alice)[name] != nil {
			return os.ErrExist
		}
		return nil
	})
}
