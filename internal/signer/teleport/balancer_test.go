package teleport_test

import (
	"context"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest/contract"
)

// Through a load balancer that terminates TLS, the connection to Teleport is inside another
// one.
func TestThroughBalancer(t *testing.T) {
	runAlone(t, throughBalancer)
}

// runAlone runs the test in a separate process. The library verifies balancers only with the
// system's CAs, and a process reads those only once.
func runAlone(t *testing.T, test func(t *testing.T)) {
	const alone = "HALLMARK_TEST_ALONE"
	if os.Getenv(alone) == t.Name() {
		test(t)
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1")
	cmd.Env = append(os.Environ(), alone+"="+t.Name())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// trustBySystem makes the server's CA one of the system's.
func trustBySystem(t *testing.T, server *httptest.Server) {
	t.Helper()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSL_CERT_FILE", ca)
	t.Setenv("SSL_CERT_DIR", t.TempDir())
}

func throughBalancer(t *testing.T) {
	// Teleport's proxies present the cluster's own certificate inside.
	j := newJoinable(t, teleporttest.Options{Hosts: []string{"teleport.cluster.local"}})
	lax := newBalancer(t, j.Address(), nil)
	strict := newBalancer(t, j.Address(), []string{"http/1.1"})
	trustBySystem(t, lax) // they have the same certificate
	for name, login := range map[string]teleport.Login{
		"bot":           bot(),
		"identity file": teleport.IdentityFile(write(t, j.IdentityFile())),
	} {
		for kind, balancer := range map[string]*httptest.Server{"lax": lax, "strict": strict} {
			t.Run(name+", "+kind, func(t *testing.T) {
				client := dial(t, teleport.Config{Address: balancer.Listener.Addr().String(), Login: login, Now: j.clock.now})
				if err := signOne(t, client); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestBehindBalancerNoTeleport(t *testing.T) {
	runAlone(t, func(t *testing.T) {
		j := newJoinable(t, teleporttest.Options{})
		balancer := newBalancer(t, j.Address(), nil)
		trustBySystem(t, balancer)
		_, err := teleport.Dial(timeout(t, time.Minute), teleport.Config{Address: balancer.Listener.Addr().String(), Login: bot(), Now: j.clock.now})
		expect(t, err, teleport.ErrUnavailable, "no Teleport proxy")
		if j.joins() != 0 {
			t.Error("the bot showed its AWS role to it")
		}
	})
}

// newBalancer starts a load balancer that terminates TLS and supports none of Teleport's
// protocols: with protocols it refuses others, without any it ignores them. It includes the
// part of a proxy that accepts connections inside HTTP requests.
func newBalancer(t *testing.T, behind string, protocols []string) *httptest.Server {
	t.Helper()
	server := contract.StartBalancer(t, protocols, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/webapi/connectionupgrade" {
			http.NotFound(w, r)
			return
		}
		in, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer in.Close()
		out, err := net.Dial("tcp", behind)
		if err != nil {
			t.Error(err)
			return
		}
		defer out.Close()
		_, _ = io.WriteString(in, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: alpn\r\n\r\n")
		go func() { _, _ = io.Copy(out, in) }()
		_, _ = io.Copy(in, out)
	}))
	return server
}
