//go:build linux

package lab

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// Secrets returns what the lab gave to its machines, and to Packer, for them alone: what
// metadata services handed out, and the private key of the key pair. A text of several lines is
// one secret for each line.
func (l *Lab) Secrets() ([]string, error) {
	key, err := os.ReadFile(l.keys.keyPair)
	if err != nil {
		return nil, err
	}
	secrets := KeyLines(string(key))
	l.launching.Lock()
	defer l.launching.Unlock()
	for _, metadata := range l.metadata {
		secrets = append(secrets, metadata.Secrets()...)
	}
	return secrets, nil
}

// KeyLines returns the lines of private keys or signatures in PEM form, without those that begin
// and end one, and without short ones, which may be anywhere.
func KeyLines(pem string) (lines []string) {
	const shortest = 16
	for line := range strings.Lines(pem) {
		if line = strings.TrimSpace(line); len(line) >= shortest && !strings.HasPrefix(line, "-----") {
			lines = append(lines, line)
		}
	}
	return lines
}

// Proofs collects what machines prove themselves with to the signer. With it, others could ask
// in a machine's name for some minutes.
type Proofs struct {
	mu        sync.Mutex
	collected []string
}

// Wrap returns a handler that collects the proofs of each request, for FrontTrouble.
func (p *Proofs) Wrap(signer http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, protocol.MaxRequestBytes+1))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		p.collect(r.Header.Get(protocol.HealthHeader), body)
		r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), r.Body))
		signer.ServeHTTP(w, r)
	})
}

func (p *Proofs) collect(health string, body []byte) {
	var request struct {
		Payload    string // not decoded
		Caller     protocol.CallerProof
		Signatures []string
	}
	if json.Unmarshal(body, &request) != nil { // a question for the CAs has no body
		request.Signatures = nil
	}
	_, signature, _ := strings.Cut(request.Caller.Authorization, "Signature=")
	found := []string{health, request.Payload, signature, request.Caller.SecurityToken}
	for _, armored := range request.Signatures {
		found = append(found, KeyLines(armored)...)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, proof := range found {
		if proof != "" {
			p.collected = append(p.collected, proof)
		}
	}
}

// All returns the proofs so far, an armored signature as one for each line.
func (p *Proofs) All() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.collected)
}
