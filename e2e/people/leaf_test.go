//go:build teleport && linux

package people

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/e2e/teleportd"
	"github.com/hallmark-ssh/hallmark/internal/caexport"
)

// The lab's cluster is the leaf of another one, whose people reach its machines.
func TestReachedFromRootCluster(t *testing.T) {
	leaf, root := shared.lab.Teleport, startRoot(t)
	keys := make(map[caexport.Kind][]string)
	for _, kind := range []caexport.Kind{caexport.OpenSSH, caexport.Host} {
		keys[kind] = cas(t, leaf, kind)
	}
	joinRoot(t, leaf, root)
	dana := newPerson(t, root, "root-dana", everywhere)
	m := shared.prod
	name := lab.User + "@" + m.state.Node.Hostname
	t.Run("tsh ssh", func(t *testing.T) {
		var out string
		// The leaf dials the root, and the root then reads what the leaf has.
		poll(t, func() (err error) {
			out, err = dana.Tsh(t.Context(), "ssh", "--cluster="+leaf.Name(), name, reach)
			return err
		})
		reached(t, m, out, nil)
	})
	// The root's proxy terminates the connection with a certificate of its own cluster. tsh
	// expects that, but the configuration that it writes for OpenSSH does not.
	address := name + "." + leaf.Name()
	t.Run("ssh -F", func(t *testing.T) {
		out, err := dana.SSH(t.Context(), "-p", "22", "-o", "HostKeyAlias="+m.state.Node.Hostname+"."+root.Name(), address, reach)
		reached(t, m, out, err)
	})
	t.Run("ssh -F as configured", func(t *testing.T) {
		out, err := dana.SSH(t.Context(), "-p", "22", address, reach)
		refused(t, out, err, "Host key verification failed")
	})
	t.Run("ssh -F by both clusters", func(t *testing.T) {
		out, err := dana.SSH(t.Context(), "-p", "22", address+"."+root.Name(), reach)
		refused(t, out, err, "Connection closed")
	})

	// The trust between clusters must not make the root's CAs pass for the leaf's: machines
	// would let in everyone with a certificate of the root's CA.
	for kind, before := range keys {
		if after := cas(t, leaf, kind); !slices.Equal(after, before) {
			t.Errorf("%s CA %v, before it joined %v", kind, after, before)
		}
	}
}

func cas(t *testing.T, cluster *teleportd.Cluster, kind caexport.Kind) []string {
	t.Helper()
	keys, err := cluster.CAs(t.Context(), kind)
	if err != nil {
		t.Fatal(err)
	}
	var prints []string
	for _, key := range keys {
		prints = append(prints, ssh.FingerprintSHA256(key))
	}
	return prints
}

func startRoot(t *testing.T) *teleportd.Cluster {
	t.Helper()
	dir := t.TempDir()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		log.Close()
		if data, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("log of the root cluster:\n%s", data)
		}
	})
	root, err := teleportd.Start(t.Context(), teleportd.Options{
		Programs: *programs, Dir: filepath.Join(dir, "teleport"), Name: "root.test", Address: "127.83.3.1",
		WebCA: shared.lab.Teleport.WebCA(), Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := root.Close(); err != nil {
			t.Error(err)
		}
	})
	return root
}

// joinRoot makes a cluster trust another one, as Teleport's guide describes: a token in the
// root, and a trusted cluster in the leaf that maps people's roles.
func joinRoot(t *testing.T, leaf, root *teleportd.Cluster) {
	t.Helper()
	const token = "a-token-for-leaf-clusters-0123456789"
	err := root.Create(t.Context(), "kind: token\nversion: v2\nmetadata: {name: "+token+"}\nspec: {roles: [Trusted_cluster]}\n")
	if err != nil {
		t.Fatal(err)
	}
	err = leaf.Create(t.Context(), fmt.Sprintf(`kind: trusted_cluster
version: v2
metadata: {name: %s}
spec:
  enabled: true
  token: %s
  tunnel_addr: %[3]s
  web_proxy_addr: %[3]s
  role_map:
  - {remote: root-dana, local: [everyone]}
`, root.Name(), token, root.Address()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := leaf.Tctl(context.WithoutCancel(t.Context()), "rm", "trusted_cluster/"+root.Name()); err != nil {
			t.Error(err)
		}
	})
}
