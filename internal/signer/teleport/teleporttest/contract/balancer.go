package contract

import (
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"testing"
)

// StartBalancer starts an HTTPS server like a load balancer that terminates TLS. With
// protocols, it refuses a client that offers only others by ALPN; without any, it ignores
// what the client offers.
func StartBalancer(t testing.TB, protocols []string, handler http.Handler) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.TLS = &tls.Config{NextProtos: protocols}
	if protocols == nil {
		// httptest adds its own names to the list, but adds none to this one.
		server.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return &tls.Config{Certificates: server.TLS.Certificates}, nil
		}
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server
}
