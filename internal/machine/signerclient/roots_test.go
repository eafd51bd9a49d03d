package signerclient

import (
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSystemRootsAreSome(t *testing.T) {
	system, err := x509.SystemCertPool()
	if err != nil || system.Equal(x509.NewCertPool()) {
		if os.Getenv("HALLMARK_TEST_STRICT") != "" {
			t.Fatalf("no CAs on this system: %v; install ca-certificates", err)
		}
		t.Skipf("no CAs on this system: %v", err)
	}
	if roots, err := systemRoots(); err != nil || roots.Equal(x509.NewCertPool()) {
		t.Errorf("no CAs were found: %v", err)
	}
}

// SSL_CERT_FILE and SSL_CERT_DIR replace the system's CAs.
func TestSystemRootsHonorTheVariables(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	path := filepath.Join(t.TempDir(), "ca.pem")
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(path, root, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSL_CERT_FILE", path)
	t.Setenv("SSL_CERT_DIR", t.TempDir())
	roots, err := systemRoots()
	if err != nil {
		t.Fatal(err)
	}
	if bundle, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt"); err == nil {
		all := x509.NewCertPool()
		all.AppendCertsFromPEM(bundle)
		if roots.Equal(all) {
			t.Error("the bundle was read")
		}
	}
}

func TestSignerRootsRefuseJunk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "junk")
	if err := os.WriteFile(path, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newTransport(path); err == nil || !strings.Contains(err.Error(), "no PEM certificate") {
		t.Errorf("error %v", err)
	}
	if _, err := newTransport(path + "x"); err == nil {
		t.Error("a missing file was accepted")
	}
}
