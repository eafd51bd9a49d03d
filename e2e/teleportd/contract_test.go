//go:build linux && teleport

package teleportd_test

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/e2e/machine"
	"github.com/hallmark-ssh/hallmark/e2e/teleportd"
	"github.com/hallmark-ssh/hallmark/internal/caexport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest/contract"
)

var programs = flag.String("programs", "../../bin/teleport", "folder with the programs of one version of Teleport")

// addSigner creates the signer's login, a user with the role that operators create.
func addSigner(t *testing.T, cluster *teleportd.Cluster) {
	t.Helper()
	const user = "kind: user\nversion: v2\nmetadata: {name: hallmark-enroll}\nspec: {roles: [hallmark-enroll]}\n"
	if err := cluster.Create(t.Context(), teleportd.Role(cluster.Name())+"---\n"+user); err != nil {
		t.Fatal(err)
	}
}

func TestContract(t *testing.T) {
	for name, address := range map[string]func(*teleportd.Cluster) string{
		"proxy": (*teleportd.Cluster).Address,
		"auth":  (*teleportd.Cluster).AuthAddress,
	} {
		t.Run(name, func(t *testing.T) {
			cluster := start(t, "contract.test", "127.83.1.1")
			addSigner(t, cluster)
			contract.Run(t, target(cluster, address(cluster)))
		})
	}
}

func target(cluster *teleportd.Cluster, address string) contract.Target {
	return contract.Target{
		Connect: func(t *testing.T) *teleport.Client {
			ctx := t.Context()
			var client *teleport.Client
			// Some versions restart in phases of a rotation.
			err := machine.Await(ctx, func() error {
				identity, err := cluster.SignIdentity(ctx, "hallmark-enroll", time.Hour)
				if err != nil {
					return err
				}
				client, err = teleport.Dial(ctx, teleport.Config{Address: address, Login: teleport.IdentityFile(identity)})
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { client.Close() })
			return client
		},
		Export: func(ctx context.Context, kind caexport.Kind) ([]ssh.PublicKey, error) {
			return cluster.Export(ctx, kind)
		},
		Rotate: func(ctx context.Context, kind caexport.Kind, phase teleporttest.Phase) error {
			return cluster.Rotate(ctx, kind, string(phase))
		},
	}
}

// start starts a cluster. If the test fails, the cluster's log goes into the test's log.
func start(t *testing.T, name, address string) *teleportd.Cluster {
	t.Helper()
	return startWith(t, teleportd.Options{Name: name, Address: address})
}

// startWith is start with more options.
func startWith(t *testing.T, options teleportd.Options) *teleportd.Cluster {
	t.Helper()
	dir, name := t.TempDir(), options.Name
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		log.Close()
		if data, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("log of cluster %s:\n%s", name, data)
		}
	})
	options.Programs, options.Dir, options.Log = *programs, dir, log
	began := time.Now()
	cluster, err := teleportd.Start(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("cluster %s started in %s", name, time.Since(began).Round(time.Millisecond))
	t.Cleanup(func() {
		if err := cluster.Close(); err != nil {
			t.Errorf("close cluster %s: %v", name, err)
		}
	})
	return cluster
}
