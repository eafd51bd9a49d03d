package teleport

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/gravitational/teleport/api/client"
	"github.com/gravitational/teleport/api/client/proto"
	"github.com/gravitational/teleport/api/defaults"
	"github.com/gravitational/teleport/api/types"

	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// hostnamePattern is Teleport's own rule. Its newer servers replace a name that breaks
// it, without an error, and the certificate would no longer match the node.
var hostnamePattern = regexp.MustCompile(`^[a-zA-Z0-9]+[a-zA-Z0-9.-]*$`)

const maxHostnameLength = 256

// Node returns the node with that ID. It fails with ErrNotFound if there is none, and may
// do so for a while after UpsertNode: Teleport reads from a cache.
func (c *Client) Node(ctx context.Context, id string) (*node.Node, error) {
	var server types.Server
	err := c.do(ctx, "read node "+id, func(ctx context.Context, live *connection) (err error) {
		server, err = live.api.GetNode(ctx, defaults.Namespace, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	n := nodeOf(server)
	return &n, nil
}

// maxNamed bounds how many nodes with the host names the client reads. More would not
// change the answer to whether there are any.
const maxNamed = 100

// NodesNamed returns nodes that have any of the host names, at most maxNamed, from any
// program. Names match as given, in all lower or upper case, or with a capital first
// letter. Like Node, it may not yet show recent nodes.
func (c *Client) NodesNamed(ctx context.Context, hostnames ...string) ([]node.Node, error) {
	if len(hostnames) == 0 {
		return nil, nil
	}
	var page *types.ListResourcesResponse
	err := c.do(ctx, fmt.Sprintf("list nodes named %q", hostnames), func(ctx context.Context, live *connection) (err error) {
		page, err = live.api.ListResources(ctx, proto.ListResourcesRequest{
			ResourceType:        types.KindNode,
			Namespace:           defaults.Namespace,
			PredicateExpression: nameExpression(hostnames),
			Limit:               maxNamed,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	var nodes []node.Node
	for _, resource := range page.Resources {
		if server, ok := resource.(types.Server); ok {
			nodes = append(nodes, nodeOf(server))
		}
	}
	return nodes, nil
}

// nameExpression selects nodes by host name, which is what "name" means for nodes
// (Teleport documentation, "Predicate Language"). Matching on the server saves reading
// every node with a label that contains the name.
func nameExpression(hostnames []string) string {
	var terms []string
	for _, name := range hostnames {
		lower := strings.ToLower(name)
		spellings := []string{name, lower, strings.ToUpper(name), strings.ToUpper(lower[:min(1, len(lower))]) + lower[min(1, len(lower)):]}
		slices.Sort(spellings)
		for _, spelling := range slices.Compact(spellings) {
			terms = append(terms, "name == "+strconv.Quote(spelling))
		}
	}
	return strings.Join(terms, " || ")
}

// NodesWith returns the nodes that have all the labels, from any program. Like Node, it
// may not yet show recent nodes.
func (c *Client) NodesWith(ctx context.Context, labels map[string]string) ([]node.Node, error) {
	var servers []types.Server
	err := c.do(ctx, "list nodes by their labels", func(ctx context.Context, live *connection) (err error) {
		servers, err = client.GetAllResources[types.Server](ctx, live.api, &proto.ListResourcesRequest{
			ResourceType: types.KindNode,
			Namespace:    defaults.Namespace,
			Labels:       labels,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	nodes := make([]node.Node, 0, len(servers))
	for _, server := range servers {
		nodes = append(nodes, nodeOf(server))
	}
	return nodes, nil
}

// UpsertNode creates or replaces the node, even another program's: the caller must know
// that this signer owns it.
func (c *Client) UpsertNode(ctx context.Context, n node.Node) error {
	server, err := serverOf(n)
	if err != nil {
		return fmt.Errorf("write node %s: %w", n.ID, err)
	}
	return c.do(ctx, "write node "+n.ID, func(ctx context.Context, live *connection) error {
		_, err := live.api.UpsertNode(ctx, server)
		return err
	})
}

// DeleteNode removes the node. It fails with ErrNotFound if there is none.
func (c *Client) DeleteNode(ctx context.Context, id string) error {
	return c.do(ctx, "delete node "+id, func(ctx context.Context, live *connection) error {
		return live.api.DeleteNode(ctx, defaults.Namespace, id)
	})
}

func nodeOf(server types.Server) node.Node {
	return node.Node{
		ID:       server.GetName(),
		Hostname: server.GetHostname(),
		Address:  server.GetAddr(),
		Labels:   server.GetAllLabels(),
		Expires:  server.Expiry(),
	}
}

func serverOf(n node.Node) (*types.ServerV2, error) {
	switch {
	case n.ID == "":
		return nil, errors.New("no ID") // the library would generate one
	case len(n.Hostname) > maxHostnameLength || !hostnamePattern.MatchString(n.Hostname):
		return nil, fmt.Errorf("host name %q is not one that Teleport keeps", n.Hostname)
	case n.Expires.IsZero():
		// The node would outlive its machine forever if every event about the machine is
		// lost.
		return nil, errors.New("no expiry time")
	}
	expires := n.Expires.UTC()
	server := &types.ServerV2{
		Kind:    types.KindNode,
		SubKind: types.SubKindOpenSSHNode,
		Version: types.V2,
		Metadata: types.Metadata{
			Name:      n.ID,
			Namespace: defaults.Namespace,
			Labels:    n.Labels,
			Expires:   &expires,
		},
		Spec: types.ServerSpecV2{Addr: n.Address, Hostname: n.Hostname},
	}
	return server, server.CheckAndSetDefaults()
}
