//go:build linux && teleport

package teleportd_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/hallmark-ssh/hallmark/e2e/teleportd"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest/contract"
)

// TestMain makes the system trust the load balancers' certificate: Teleport's library verifies
// them only with the system's CAs, and a process reads those once. The clusters have their own
// CAs.
func TestMain(m *testing.M) {
	code, err := trustBalancers(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func trustBalancers(run func() int) (code int, err error) {
	dir, err := os.MkdirTemp("", "teleportd-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	server := httptest.NewTLSServer(nil) // all of that kind have the same certificate
	server.Close()
	file := filepath.Join(dir, "ca.pem")
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(file, ca, 0o600); err != nil {
		return 0, err
	}
	for name, value := range map[string]string{"SSL_CERT_FILE": file, "SSL_CERT_DIR": dir} {
		if err := os.Setenv(name, value); err != nil {
			return 0, err
		}
	}
	return run(), nil
}

// Behind a load balancer that terminates TLS, the signer works as it does elsewhere.
func TestThroughBalancer(t *testing.T) {
	t.Run("contract", func(t *testing.T) {
		cluster := start(t, "balanced.test", "127.83.5.1")
		addSigner(t, cluster)
		contract.Run(t, target(cluster, newBalancer(t, cluster, []string{"http/1.1"})))
	})
	t.Run("bot", func(t *testing.T) {
		b := startBots(t, "balanced-bot.test", "127.83.5.2")
		for kind, protocols := range map[string][]string{"strict": {"http/1.1"}, "lax": nil} {
			t.Run(kind, func(t *testing.T) {
				config := b.config(functionARN, teleportd.EnrollBot, teleportd.EnrollBot)
				config.Address, config.RootsPEM = newBalancer(t, b.Cluster, protocols), nil
				client, err := b.dial(t, config)
				if err != nil {
					t.Fatal(err)
				}
				b.enroll(t, client)
			})
		}
	})
}

// newBalancer starts a load balancer that terminates TLS in front of the cluster's proxy, and
// returns its address. It supports HTTP and none of Teleport's protocols: with protocols it
// refuses others, without any it ignores them.
func newBalancer(t *testing.T, cluster *teleportd.Cluster, protocols []string) string {
	t.Helper()
	behind := &tls.Config{RootCAs: x509.NewCertPool(), NextProtos: []string{"http/1.1"}}
	behind.RootCAs.AppendCertsFromPEM(cluster.RootsPEM())
	server := contract.StartBalancer(t, protocols, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := passOn(w, r, cluster.Address(), behind); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
		}
	}))
	return server.Listener.Addr().String()
}

// passOn passes on a request with its headers, as AWS's load balancers do, and then everything
// that either side sends.
func passOn(w http.ResponseWriter, r *http.Request, address string, config *tls.Config) error {
	out, err := (&tls.Dialer{Config: config}).DialContext(r.Context(), "tcp", address)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := r.Write(out); err != nil {
		return err
	}
	in, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	defer in.Close()
	go func() {
		defer out.Close() // then the copy below ends, too
		_, _ = io.Copy(out, buffered)
	}()
	_, _ = io.Copy(in, out)
	return nil
}
