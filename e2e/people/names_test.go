//go:build teleport && linux

package people

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/gravitational/teleport/api/types"

	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/e2e/machine"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

const theirAddress = "192.0.2.9:22"

// Somebody else's node keeps its record and its name: the signer cannot be used to take over
// the sessions of a machine that it does not know.
func TestForeignNodeStays(t *testing.T) {
	for test, foreign := range map[string]func(instance string) (id, hostname string){
		"id": func(i string) (string, string) {
			return ec2ref.Instance{Account: moto.Account, Region: lab.Region, ID: ec2ref.InstanceID(i)}.NodeID(), "theirs"
		},
		"name": func(i string) (string, string) { return uuid.NewString(), "claims-" + i },
	} {
		t.Run(test, func(t *testing.T) {
			var id string
			instance, err := shared.lab.Launch(t.Context(), lab.Template{
				Name: "claims-" + test, Image: shared.image, Tags: map[string]string{"Name": "claims"},
				BeforeBoot: func(instance string) error {
					var hostname string
					id, hostname = foreign(instance)
					return addForeign(t, id, hostname)
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := instance.PowerOff(context.WithoutCancel(t.Context())); err != nil {
					t.Error(err)
				}
			})
			poll(t, func() error {
				out, err := instance.Hallmark(t.Context(), "enroll")
				if err == nil {
					return machine.Fatal(fmt.Errorf("it enrolls: %s", out))
				}
				if !strings.Contains(err.Error(), string(protocol.CodeNameInUse)) {
					return fmt.Errorf("want %s: %w", protocol.CodeNameInUse, err)
				}
				return nil
			})
			checkForeign(t, id, instance.ID)
		})
	}
}

// addForeign adds somebody else's node, and waits until reads show it.
func addForeign(t *testing.T, id, hostname string) error {
	err := shared.lab.Teleport.Create(t.Context(), fmt.Sprintf(`kind: node
version: v2
sub_kind: openssh
metadata: {name: %s}
spec: {addr: "%s", hostname: %s}
`, id, theirAddress, hostname))
	if err != nil {
		return err
	}
	t.Cleanup(func() {
		if _, err := shared.lab.Teleport.Tctl(context.WithoutCancel(t.Context()), "rm", "node/"+id); err != nil {
			t.Error(err)
		}
	})
	poll(t, func() error {
		node, err := find(t, func(n types.Server) bool { return n.GetName() == id })
		if err == nil && node == nil {
			err = errors.New("not there yet")
		}
		return err
	})
	return nil
}

// checkForeign checks that the foreign node has not changed, and that the instance has none.
func checkForeign(t *testing.T, id, instance string) {
	t.Helper()
	node, err := find(t, func(n types.Server) bool { return n.GetName() == id })
	if err != nil {
		t.Fatal(err)
	}
	if node == nil || node.GetAddr() != theirAddress || len(node.GetAllLabels()) != 0 {
		t.Errorf("the foreign node is now %v", node)
	}
	if own, err := find(t, func(n types.Server) bool { return n.GetAllLabels()["teleport.dev/instance-id"] == instance }); err != nil || own != nil {
		t.Errorf("the refused instance has the node %v, %v", own, err)
	}
}

func find(t *testing.T, ok func(types.Server) bool) (types.Server, error) {
	nodes, err := shared.lab.Cluster.Nodes(t.Context())
	if err != nil {
		return nil, err
	}
	for _, node := range nodes {
		if ok(node) {
			return node, nil
		}
	}
	return nil, nil
}

// With this setting the proxy picks the node with the latest expiry among those with the same
// name. A machine that could choose its name would take over another's sessions.
func TestMostRecentRouting(t *testing.T) {
	route := func(ctx context.Context, strategy types.RoutingStrategy) {
		err := shared.lab.Teleport.Create(ctx, fmt.Sprintf(`kind: cluster_networking_config
version: v2
metadata: {name: cluster-networking-config}
spec: {routing_strategy: %d, proxy_listener_mode: 1}
`, strategy))
		if err != nil {
			t.Fatal(err)
		}
	}
	route(t.Context(), types.RoutingStrategy_MOST_RECENT)
	t.Cleanup(func() { route(context.WithoutCancel(t.Context()), types.RoutingStrategy_UNAMBIGUOUS_MATCH) })

	// Only the Name tag and the instance id distinguish the first machine.
	name := shared.prod.state.Node.Hostname
	thief, err := shared.lab.Launch(t.Context(), lab.Template{
		Name: "thief", Image: shared.image, Tags: map[string]string{"Name": name, "TeleportHostname": name},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := thief.PowerOff(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	state, err := thief.WaitEnrolled(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := name + "-" + thief.ID; state.Node.Hostname != want {
		t.Errorf("it is called %s, want %s", state.Node.Hostname, want)
	}
	erin := newPerson(t, shared.lab.Teleport, "erin", everywhere)
	out, err := erin.Tsh(t.Context(), "ssh", lab.User+"@"+name, reach)
	reached(t, shared.prod, out, err)
}
