//go:build linux

package lab

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"

	"github.com/hallmark-ssh/hallmark/e2e/machine"
)

// front is the signer's function URL, and the VPC endpoints next to it.
type front struct {
	server *http.Server

	mu        sync.Mutex
	trouble   FrontTrouble
	endpoints map[string]http.Handler // by host name
}

// FrontTrouble is a fault of the signer's URL.
type FrontTrouble struct {
	// WrongCertificate presents a TLS certificate that machines do not trust.
	WrongCertificate bool
	// Wrap returns a handler that answers instead of the given signer. Nil means the signer
	// itself.
	Wrap func(signer http.Handler) http.Handler
}

// SetFrontTrouble sets the fault of the signer's URL. The zero value ends it.
func (l *Lab) SetFrontTrouble(t FrontTrouble) {
	l.front.mu.Lock()
	defer l.front.mu.Unlock()
	l.front.trouble = t
}

func (f *front) now() FrontTrouble {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.trouble
}

// endpoint returns what answers for a host name, or nil if it is the function URL.
func (f *front) endpoint(host string) http.Handler {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.endpoints[host]
}

// StartURL starts the signer's function URL.
func (l *Lab) StartURL(ctx context.Context) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp4", net.JoinHostPort(machine.Hub, "443"))
	if err != nil {
		return err
	}
	signer := l.Signer.FunctionURL()
	answer := func(w http.ResponseWriter, r *http.Request) {
		if endpoint := l.front.endpoint(r.Host); endpoint != nil {
			endpoint.ServeHTTP(w, r)
			return
		}
		handler := signer
		if wrap := l.front.now().Wrap; wrap != nil {
			handler = wrap(signer)
		}
		handler.ServeHTTP(w, r)
	}
	l.front.server = serve(ctx, tls.NewListener(listener, &tls.Config{GetCertificate: l.frontCertificate}), http.HandlerFunc(answer))
	return nil
}

func (l *Lab) frontCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if l.front.now().WrongCertificate {
		return &l.keys.otherWeb, nil
	}
	return &l.keys.web, nil
}

// StopURL makes the signer unreachable: its port refuses connections.
func (l *Lab) StopURL() error { return l.front.server.Close() }
