// Package contract checks what Hallmark relies on in a Teleport cluster. The same tests
// run against the embedded cluster and a real one, so the first stays true to the second.
package contract

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/caexport"
	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// Target is the cluster to test.
type Target struct {
	// Connect returns a client with a valid login. The test closes it.
	Connect func(t *testing.T) *teleport.Client
	// Export reads a CA's keys from the public export of the proxy.
	Export func(ctx context.Context, kind caexport.Kind) ([]ssh.PublicKey, error)
	// Rotate moves a CA to a phase of its rotation.
	Rotate func(ctx context.Context, kind caexport.Kind, phase teleporttest.Phase) error
}

// Run runs every test on the target. It leaves no nodes behind, but it rotates the
// cluster's CAs.
func Run(t *testing.T, target Target) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, c *teleport.Client)
	}{
		{"names", testNames},
		{"node life", testNodeLife},
		{"node twice", testNodeTwice},
		{"node expiry", testNodeExpiry},
		{"node on the loopback interface", testNodeLoopback},
		{"nodes by name", testNodesNamed},
		{"nodes by label", testNodesWith},
		{"node refused", testNodeRefused},
		{"host certificate", testHostCertificate},
		{"host certificate refused", testHostCertificateRefused},
		{"many at once", testConcurrency},
		{"closed", testClosed},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, target.Connect(t)) })
	}
	t.Run("authorities", target.cas)
	t.Run("rotation of openssh", target.rotateOpenSSH)
	t.Run("rotation of host", target.rotateHost)
}

func testNames(t *testing.T, c *teleport.Client) {
	if c.ClusterName() == "" {
		t.Error("no cluster name")
	}
	if strings.Contains(c.ProxyName(), ":") {
		t.Errorf("proxy name %q has a port", c.ProxyName())
	}
}

func testNodeLife(t *testing.T, c *teleport.Client) {
	server := newNode(t, c, time.Hour)
	ctx := deadline(t)
	if _, err := c.Node(ctx, server.ID); !errors.Is(err, teleport.ErrNotFound) {
		t.Fatalf("before it is written: got %v, want ErrNotFound", err)
	}
	check(t, c.UpsertNode(ctx, server))
	got := await(t, c, server.ID, func(n *node.Node) bool { return n != nil })
	if got.ID != server.ID || got.Hostname != server.Hostname || got.Address != server.Address ||
		!got.Expires.Equal(server.Expires) || !maps.Equal(got.Labels, server.Labels) {
		t.Errorf("read back %+v, want %+v", *got, server)
	}
	check(t, c.DeleteNode(ctx, server.ID))
	await(t, c, server.ID, func(n *node.Node) bool { return n == nil })
	if err := c.DeleteNode(ctx, server.ID); !errors.Is(err, teleport.ErrNotFound) {
		t.Errorf("delete it again: got %v, want ErrNotFound", err)
	}
}

func testNodeTwice(t *testing.T, c *teleport.Client) {
	server := newNode(t, c, time.Hour)
	ctx := deadline(t)
	check(t, c.UpsertNode(ctx, server))
	server.Address, server.Expires = "192.0.2.2:2222", server.Expires.Add(time.Hour)
	delete(server.Labels, "aws/Name")
	check(t, c.UpsertNode(ctx, server))
	got := await(t, c, server.ID, func(n *node.Node) bool { return n != nil && n.Address == server.Address })
	if !maps.Equal(got.Labels, server.Labels) || !got.Expires.Equal(server.Expires) {
		t.Errorf("read back %+v, want %+v", *got, server)
	}
}

func testNodeExpiry(t *testing.T, c *teleport.Client) {
	server := newNode(t, c, 2*time.Second)
	check(t, c.UpsertNode(deadline(t), server))
	await(t, c, server.ID, func(n *node.Node) bool { return n == nil && time.Now().After(server.Expires) })
}

// An address that means the host itself never stays: Teleport replaces it with the caller's,
// which for an agent is the machine, and here is the signer.
func testNodeLoopback(t *testing.T, c *teleport.Client) {
	server := newNode(t, c, time.Hour)
	server.Address = "127.66.66.66:22"
	check(t, c.UpsertNode(deadline(t), server))
	got := await(t, c, server.ID, func(n *node.Node) bool { return n != nil })
	if got.Address == server.Address || !strings.HasSuffix(got.Address, ":22") {
		t.Errorf("address %s, want that of the caller", got.Address)
	}
}

func testNodesNamed(t *testing.T, c *teleport.Client) {
	server, other := newNode(t, c, time.Hour), newNode(t, c, time.Hour)
	other.Hostname = server.Hostname + "-2" // a keyword finds it too, and its label names the first
	other.Labels["aws/Name"] = server.Hostname
	ctx := deadline(t)
	check(t, c.UpsertNode(ctx, server))
	check(t, c.UpsertNode(ctx, other))
	await(t, c, server.ID, func(n *node.Node) bool { return n != nil })
	await(t, c, other.ID, func(n *node.Node) bool { return n != nil })
	for _, name := range []string{server.Hostname, strings.ToUpper(server.Hostname)} {
		nodes, err := c.NodesNamed(ctx, name)
		check(t, err)
		if len(nodes) != 1 || nodes[0].ID != server.ID {
			t.Errorf("nodes named %s: got %+v, want just %s", name, nodes, server.ID)
		}
	}
	nodes, err := c.NodesNamed(ctx, "nobody", other.Hostname, server.Hostname+"."+c.ClusterName(), server.Hostname)
	check(t, err)
	if len(nodes) != 2 {
		t.Errorf("nodes of two names: %+v", nodes)
	}
	nodes, err = c.NodesNamed(ctx, "nobody-"+uuid.NewString())
	check(t, err)
	if len(nodes) != 0 {
		t.Errorf("nodes of a name that nobody has: %+v", nodes)
	}
}

func testNodesWith(t *testing.T, c *teleport.Client) {
	server, other := newNode(t, c, time.Hour), newNode(t, c, time.Hour)
	mark := uuid.NewString()
	server.Labels[node.SignerLabel], server.Labels["aws/mark"] = "contract", mark
	other.Labels[node.SignerLabel], other.Labels["aws/mark"] = "another", mark
	ctx := deadline(t)
	check(t, c.UpsertNode(ctx, server))
	check(t, c.UpsertNode(ctx, other))
	await(t, c, server.ID, func(n *node.Node) bool { return n != nil })
	await(t, c, other.ID, func(n *node.Node) bool { return n != nil })
	nodes, err := c.NodesWith(ctx, map[string]string{node.SignerLabel: "contract", "aws/mark": mark})
	check(t, err)
	if len(nodes) != 1 || nodes[0].ID != server.ID || !maps.Equal(nodes[0].Labels, server.Labels) {
		t.Errorf("got %+v, want just %s", nodes, server.ID)
	}
}

func testNodeRefused(t *testing.T, c *teleport.Client) {
	for name, change := range map[string]func(*node.Node){
		"no ID":               func(n *node.Node) { n.ID = "" },
		"no expiry":           func(n *node.Node) { n.Expires = time.Time{} },
		"no host name":        func(n *node.Node) { n.Hostname = "" },
		"bad host name":       func(n *node.Node) { n.Hostname = "web_1" },
		"over-long host name": func(n *node.Node) { n.Hostname = strings.Repeat("a", 257) },
		"address, no port":    func(n *node.Node) { n.Address = "192.0.2.1" },
		"bad label key":       func(n *node.Node) { n.Labels["a key"] = "" },
	} {
		server := newNode(t, c, time.Hour)
		change(&server)
		if err := c.UpsertNode(deadline(t), server); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func testHostCertificate(t *testing.T, c *teleport.Client) {
	ctx, key := deadline(t), sshkeytest.NewSigner(t).PublicKey()
	id := uuid.NewString()
	principals := []string{"web-1", id, "web-1." + c.ClusterName(), id + "." + c.ClusterName()}
	cert, err := c.SignHostKey(ctx, key, principals, 24*time.Hour)
	check(t, err)
	cas, err := c.CAs(ctx)
	check(t, err)
	check(t, hostcert.Check(cert, hostcert.Want{
		Key: key, Principals: principals, CAs: cas.Host[:1], MaxLifetime: 24 * time.Hour,
		Roles: teleport.HostRoles(),
	}, time.Now()))
	if end := time.Unix(int64(cert.ValidBefore), 0); time.Until(end) < 23*time.Hour {
		t.Errorf("it ends %s, a day was asked for", end)
	}
	if time.Unix(int64(cert.ValidAfter), 0).After(time.Now()) {
		t.Error("it starts in the future: a clock that is a little slow would refuse it")
	}
}

func testHostCertificateRefused(t *testing.T, c *teleport.Client) {
	key := sshkeytest.NewSigner(t).PublicKey()
	if _, err := c.SignHostKey(deadline(t), key, nil, time.Hour); err == nil {
		t.Error("no principals: accepted")
	}
	for _, ttl := range []time.Duration{0, -time.Hour} {
		if _, err := c.SignHostKey(deadline(t), key, []string{"web-1"}, ttl); err == nil {
			t.Errorf("lifetime %s: accepted", ttl)
		}
	}
}

func testConcurrency(t *testing.T, c *teleport.Client) {
	ctx, key := deadline(t), sshkeytest.NewSigner(t).PublicKey()
	var group sync.WaitGroup
	for range 8 {
		n := newNode(t, c, time.Hour)
		group.Go(func() {
			if err := c.UpsertNode(ctx, n); err != nil {
				t.Errorf("upsert: %v", err)
			}
		})
		group.Go(func() {
			if _, err := c.SignHostKey(ctx, key, []string{n.ID}, time.Hour); err != nil {
				t.Errorf("sign: %v", err)
			}
		})
	}
	group.Wait()
}

func testClosed(t *testing.T, c *teleport.Client) {
	check(t, c.Close())
	if _, err := c.CAs(deadline(t)); err == nil {
		t.Error("a call after Close works")
	}
}

// newNode returns a new node, which is removed when the test ends.
func newNode(t *testing.T, c *teleport.Client, ttl time.Duration) node.Node {
	id := uuid.NewString()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		// Most tests wrote it, some deleted it, one closed the client.
		_ = c.DeleteNode(ctx, id)
	})
	return node.Node{
		ID:       id,
		Hostname: "contract-" + id[:8],
		Address:  "192.0.2.1:22",
		Labels:   map[string]string{node.SignerLabel: "contract", "aws/Name": "web", "aws:autoscaling:groupName": "web"},
		Expires:  time.Now().Add(ttl).UTC().Truncate(time.Second),
	}
}

// await reads the node, nil if there is none, until it is as expected.
func await(t *testing.T, c *teleport.Client, id string, ok func(*node.Node) bool) *node.Node {
	t.Helper()
	ctx := deadline(t)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		n, err := c.Node(ctx, id)
		if err != nil && !errors.Is(err, teleport.ErrNotFound) {
			t.Fatal(err)
		}
		if ok(n) {
			return n
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("node %s is still %+v", id, n)
		}
	}
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
