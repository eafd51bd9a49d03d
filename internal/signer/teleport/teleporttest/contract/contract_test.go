package contract_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/caexport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest/contract"
)

func TestContract(t *testing.T) {
	for name, options := range map[string]teleporttest.Options{
		"13":                   {Generation: teleporttest.Generation13},
		"19":                   {Generation: teleporttest.Generation19},
		"19, Ed25519 with lag": {KeyType: teleporttest.KeyEd25519, ReadLag: 200 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			cluster, err := teleporttest.Start(options)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { cluster.Close() })
			contract.Run(t, target(t, cluster))
			for _, request := range cluster.HostCertRequests() {
				if request.Role != "ProvisionToken" || request.HostId != "" || request.Ttl.AsDuration() <= 0 {
					t.Errorf("Teleport was asked for %v", request)
				}
			}
		})
	}
}

func target(t *testing.T, cluster *teleporttest.Cluster) contract.Target {
	proxy, err := caexport.NewHTTPClient(cluster.RootsPEM())
	if err != nil {
		t.Fatal(err)
	}
	return contract.Target{
		Connect: func(t *testing.T) *teleport.Client {
			identity := filepath.Join(t.TempDir(), "identity.pem")
			login, err := cluster.NewIdentityFile(time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(identity, login, 0o600); err != nil {
				t.Fatal(err)
			}
			client, err := teleport.Dial(t.Context(), teleport.Config{Address: cluster.Address(), Login: teleport.IdentityFile(identity)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { client.Close() })
			return client
		},
		Export: func(ctx context.Context, kind caexport.Kind) ([]ssh.PublicKey, error) {
			return caexport.Fetch(ctx, proxy, cluster.Address(), kind)
		},
		Rotate: func(_ context.Context, kind caexport.Kind, phase teleporttest.Phase) error {
			if kind == caexport.Host {
				return cluster.RotateHost(phase)
			}
			return cluster.RotateOpenSSH(phase)
		},
	}
}
