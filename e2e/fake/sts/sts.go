// Package sts is a test endpoint of the AWS Security Token Service. It answers
// GetCallerIdentity for the credentials registered with it, after checking the
// whole SigV4 signature as AWS does, and passes every other action on to a
// backend that checks nothing.
//
// It is for tests and the demo: its secrets are in memory, and known to the test.
package sts

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// maxBody bounds a request. GetCallerIdentity has 43 bytes; policies for AssumeRole are the
// longest.
const maxBody = 64 << 10

// Options configure the endpoint.
type Options struct {
	// Region is the region of the endpoint. GetCallerIdentity must be signed for
	// it, and for the host sts.<region>.amazonaws.com.
	Region string
	// Backend handles the other actions; nil refuses them.
	Backend *url.URL
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Credential is a set of temporary credentials and the identity behind them.
type Credential struct {
	AccessKeyID     string
	SecretAccessKey string
	SessionToken    string
	// ARN is the identity that GetCallerIdentity names.
	ARN string
	// Expires is when the credentials expire; zero means never.
	Expires time.Time
}

// Server is the endpoint. It is safe for concurrent use.
type Server struct {
	region  string
	backend http.Handler
	now     func() time.Time
	calls   atomic.Int64
	down    atomic.Bool

	mu          sync.RWMutex
	credentials map[string]Credential // by access key id
}

// New returns an endpoint that knows no credentials.
func New(o Options) *Server {
	s := &Server{region: o.Region, now: o.Now, credentials: make(map[string]Credential)}
	if s.now == nil {
		s.now = time.Now
	}
	if o.Backend != nil {
		s.backend = &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(o.Backend) }}
	}
	return s
}

// Register adds a credential, or replaces the one with the same access key.
func (s *Server) Register(c Credential) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.credentials[c.AccessKeyID] = c
}

func (s *Server) credential(accessKeyID string) (Credential, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c, ok := s.credentials[accessKeyID]
	return c, ok
}

// Calls returns how many GetCallerIdentity requests arrived, whether or not they succeeded.
func (s *Server) Calls() int { return int(s.calls.Load()) }

// SetDown makes every request fail with 503, or stops that.
func (s *Server) SetDown(down bool) { s.down.Store(down) }

// ServeHTTP answers one request of the AWS Query protocol.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		writeFault(w, r, &fault{http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", "The request is too large."})
		return
	}
	if s.down.Load() {
		writeFault(w, r, &fault{http.StatusServiceUnavailable, "ServiceUnavailable", "Service is unavailable."})
		return
	}
	action := actionOf(r, body)
	if action != "GetCallerIdentity" {
		s.passOn(w, r, action, body)
		return
	}
	s.calls.Add(1)
	c, f := s.authenticate(r, body)
	if f != nil {
		writeFault(w, r, f)
		return
	}
	writeIdentity(w, r, c.ARN)
}

// actionOf reads the action from its place in the Query protocol: the form of a POST, the
// query of a GET.
func actionOf(r *http.Request, body []byte) string {
	form := r.URL.Query()
	if r.Method == http.MethodPost {
		form, _ = url.ParseQuery(string(body)) // what doesn't parse has no action
	}
	return form.Get("Action")
}

func (s *Server) passOn(w http.ResponseWriter, r *http.Request, action string, body []byte) {
	switch {
	case action == "":
		writeFault(w, r, &fault{http.StatusBadRequest, "MissingAction", "The request names no action."})
	case s.backend == nil:
		writeFault(w, r, &fault{http.StatusBadRequest, "InvalidAction", "Could not find operation " + action + "."})
	default:
		r.Body = io.NopCloser(bytes.NewReader(body))
		s.backend.ServeHTTP(w, r)
	}
}

// authenticate returns the credential that signed the request.
func (s *Server) authenticate(r *http.Request, body []byte) (Credential, *fault) {
	if len(r.Header.Values("Authorization")) == 0 {
		return Credential{}, &fault{http.StatusForbidden, "MissingAuthenticationToken", "Request is missing Authentication Token"}
	}
	sig, f := parseSignature(r)
	if f != nil {
		return Credential{}, f
	}
	c, ok := s.credential(sig.accessKeyID)
	if !ok || r.Header.Get("X-Amz-Security-Token") != c.SessionToken {
		return Credential{}, &fault{http.StatusForbidden, "InvalidClientTokenId", "The security token included in the request is invalid."}
	}
	if f := s.checkSignature(sig, r, body, c.SecretAccessKey); f != nil {
		return Credential{}, f
	}
	if !c.Expires.IsZero() && !s.now().Before(c.Expires) {
		return Credential{}, &fault{http.StatusForbidden, "ExpiredToken", "The security token included in the request is expired"}
	}
	return c, nil
}

func (s *Server) checkSignature(sig *signature, r *http.Request, body []byte, secret string) *fault {
	host := s.region + ".amazonaws.com"
	if r.URL.Path != "/" || r.Host != "sts."+host && r.Host != "sts-fips."+host {
		return mismatch("The request was not signed for this endpoint.")
	}
	if sig.region != s.region || sig.service != "sts" {
		return mismatch("Credential should be scoped to a valid region.")
	}
	if f := sig.checkTime(s.now()); f != nil {
		return f
	}
	if f := sig.checkHeaders(r.Header); f != nil {
		return f
	}
	if !sig.matches(r, body, secret) {
		return mismatch("The request signature we calculated does not match the signature you provided. " +
			"Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
	}
	return nil
}

// accountOf returns the account in an ARN.
func accountOf(arn string) string {
	if parts := strings.SplitN(arn, ":", 6); len(parts) == 6 {
		return parts[4]
	}
	return ""
}
