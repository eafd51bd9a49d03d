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

// front is the signer's function URL.
type front struct {
	server *http.Server

	mu      sync.Mutex
	trouble FrontTrouble
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

// StartURL starts the signer's function URL.
func (l *Lab) StartURL(ctx context.Context) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp4", net.JoinHostPort(machine.Hub, "443"))
	if err != nil {
		return err
	}
	signer := l.Signer.FunctionURL()
	answer := func(w http.ResponseWriter, r *http.Request) {
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
