package enroll

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
)

// This runs the signer with a real client, against both generations of Teleport. It enrolls
// and renews in each phase of a rotation of the Host CA, and machines accept its answers.
func TestEitherTeleport(t *testing.T) {
	for name, generation := range map[string]teleporttest.Generation{
		"13": teleporttest.Generation13, "19": teleporttest.Generation19,
	} {
		t.Run(name, func(t *testing.T) {
			cluster, err := teleporttest.Start(teleporttest.Options{Generation: generation, KeyType: teleporttest.KeyEd25519})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { cluster.Close() })
			w := newWorld(t)
			a := newAttempt(t, w.now)
			w.signer.Connect = func(ctx context.Context) (Cluster, error) { return loggedIn(ctx, t, cluster) }
			w.acceptedByMachine(a)
			for _, phase := range []teleporttest.Phase{
				teleporttest.PhaseInit, teleporttest.PhaseUpdateClients, teleporttest.PhaseUpdateServers, teleporttest.PhaseStandby,
			} {
				if err := cluster.RotateHost(phase); err != nil {
					t.Fatal(err)
				}
				w.acceptedByMachine(a)
			}
			for _, request := range cluster.HostCertRequests() {
				if request.Role != "ProvisionToken" {
					t.Errorf("asked for role %s", request.Role)
				}
			}
			if nodes := cluster.Nodes(); len(nodes) != 1 || nodes[0].GetHostname() != testHostname {
				t.Errorf("nodes %v", nodes)
			}
		})
	}
}

// loggedIn logs in with an identity file of this phase.
func loggedIn(ctx context.Context, t *testing.T, cluster *teleporttest.Cluster) (Cluster, error) {
	file := filepath.Join(t.TempDir(), "identity.pem")
	login, err := cluster.NewIdentityFile(time.Hour)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, login, 0o600); err != nil {
		return nil, err
	}
	client, err := teleport.Dial(ctx, teleport.Config{Address: cluster.Address(), Login: teleport.IdentityFile(file)})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { client.Close() })
	return client, nil
}

// acceptedByMachine enrolls and checks the answer as a machine does.
func (w *world) acceptedByMachine(a *attempt) {
	w.t.Helper()
	status, granted, refused := w.enroll(a)
	if status != http.StatusOK {
		w.t.Fatalf("status %d, %+v; log: %s", status, refused, w.log.String())
	}
	cas := parseKeys(w.t, granted)
	for i, text := range granted.Certificates {
		certificate, err := hostcert.Parse(text)
		if err != nil {
			w.t.Fatal(err)
		}
		if err := hostcert.Check(certificate, hostcert.Want{
			Key: a.keys[i].PublicKey(), Principals: granted.Principals, CAs: cas, MaxLifetime: 30 * 24 * time.Hour,
		}, w.now); err != nil {
			w.t.Error(err)
		}
		if !bytes.Equal(certificate.SignatureKey.Marshal(), cas[0].Marshal()) {
			w.t.Error("signed by another key than the first")
		}
	}
}

func parseKeys(t testing.TB, granted protocol.Response) []ssh.PublicKey {
	t.Helper()
	var keys []ssh.PublicKey
	for _, text := range granted.HostCAs {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	return keys
}
