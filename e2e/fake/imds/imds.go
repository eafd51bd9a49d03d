// Package imds is an EC2 instance metadata service for one fictional instance: the
// part of version 2 that cloud-init, AWS's SDKs and Hallmark read.
//
// Its identity documents are signed for a fictional region. AWS describes the
// service at
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-metadata.html.
package imds

import (
	"crypto/rand"
	"maps"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/identity/identitytest"
)

const (
	tokenPath   = "/latest/api/token"
	tokenHeader = "X-Aws-Ec2-Metadata-Token"
	ttlHeader   = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"

	signedDocument = "rsa2048"

	// shortest is how long a line must be to be a secret. Shorter text may be anywhere.
	shortest = 16

	maxTTL = 6 * time.Hour
)

// Instance is what the service says about its instance.
type Instance struct {
	ID               string
	AccountID        string
	AvailabilityZone string
	ImageID          string
	Type             string
	Architecture     string // x86_64 or arm64
	PrivateIP        string
	Hostname         string
	Started          time.Time
	Tags             map[string]string // as with InstanceMetadataTags=enabled
	PublicKey        string            // of the key pair, in authorized_keys form
	UserData         string
}

// Credential is a set of credentials of the instance identity role.
type Credential struct {
	AccessKeyID     string
	SecretAccessKey string
	SessionToken    string
	Expires         time.Time
}

// Options configure a server.
type Options struct {
	Instance Instance
	// Region signs the identity documents.
	Region *identitytest.Region
	// IdentityRole are the credentials that prove which instance is calling.
	IdentityRole Credential
	// Profile are the credentials of the instance profile's role; the zero value means that
	// the instance has no profile.
	Profile Credential
	// TokensRequired refuses version 1, as HttpTokens=required does.
	TokensRequired bool
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Trouble is a fault of a metadata service.
type Trouble struct {
	// Disabled refuses everything, as HttpEndpoint=disabled does.
	Disabled bool
	// Silent closes every connection without an answer, as if nothing were there.
	Silent bool
	// Forgetful forgets each session token after one page, as a service that was
	// restarted does: the next page is refused with 401 until there is a new token.
	Forgetful bool
	// Delay is the pause before each answer.
	Delay time.Duration
	// NoIdentityRole serves no credentials of the instance identity role, as
	// compatible clouds do.
	NoIdentityRole bool
}

// Request is one request that the service received.
type Request struct {
	Method, Path, UserAgent string
	// Token reports whether the request had a valid session token.
	Token  bool
	Status int
}

// Server is the metadata service of one instance.
type Server struct {
	options Options
	now     func() time.Time

	mu        sync.Mutex
	tokens    map[string]time.Time // to their ends
	documents []string             // signed, each different
	trouble   Trouble
	requests  []Request
}

// New returns a server without a fault.
func New(o Options) *Server {
	s := &Server{options: o, now: o.Now, tokens: make(map[string]time.Time)}
	if s.now == nil {
		s.now = time.Now
	}
	return s
}

// SetTrouble sets the service's fault. The zero value ends it.
func (s *Server) SetTrouble(t Trouble) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble = t
}

// Requests returns the requests so far.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Secrets returns what only this instance may know: the keys and tokens of its credentials, the
// session tokens of the service, and the lines of the signed identity documents that it got.
func (s *Server) Secrets() (secrets []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range []Credential{s.options.IdentityRole, s.options.Profile} {
		if c != (Credential{}) {
			secrets = append(secrets, c.SecretAccessKey, c.SessionToken)
		}
	}
	for _, document := range s.documents {
		for _, line := range strings.Fields(document) {
			if len(line) >= shortest {
				secrets = append(secrets, line)
			}
		}
	}
	return slices.AppendSeq(secrets, maps.Keys(s.tokens))
}

// ServeHTTP answers one request, and records it.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	trouble, valid := s.admit(r)
	if trouble.Silent {
		panic(http.ErrAbortHandler)
	}
	status := s.answer(w, r, trouble, valid)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, Request{
		Method: r.Method, Path: r.URL.Path, UserAgent: r.UserAgent(), Token: valid, Status: status,
	})
}

// admit says what is wrong with the service now, and whether the request has a valid token.
func (s *Server) admit(r *http.Request) (Trouble, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	token := r.Header.Get(tokenHeader)
	end, known := s.tokens[token]
	if s.trouble.Forgetful {
		delete(s.tokens, token)
	}
	return s.trouble, known && s.now().Before(end)
}

// answer writes the answer and returns its status.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, trouble Trouble, valid bool) int {
	select {
	case <-time.After(trouble.Delay):
	case <-r.Context().Done():
	}
	w.Header().Set("Server", "EC2ws")
	w.Header().Set("Content-Type", "text/plain")
	switch {
	case trouble.Disabled:
		return write(w, http.StatusForbidden, "")
	case r.Method == http.MethodPut && path.Clean(r.URL.Path) == tokenPath:
		return s.answerToken(w, r)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return write(w, http.StatusMethodNotAllowed, "")
	// Refuse a wrong token even if no token is required.
	case !valid && (s.options.TokensRequired || r.Header.Get(tokenHeader) != ""):
		return write(w, http.StatusUnauthorized, "")
	}
	body, ok := s.lookUp(r.URL.Path, trouble)
	if !ok {
		return write(w, http.StatusNotFound, "")
	}
	if path.Base(r.URL.Path) == signedDocument {
		s.mu.Lock()
		s.documents = append(s.documents, body)
		s.mu.Unlock()
	}
	return write(w, http.StatusOK, body)
}

func (s *Server) answerToken(w http.ResponseWriter, r *http.Request) int {
	// A proxy must not get a token for requests that it forwards from outside.
	if r.Header.Get("X-Forwarded-For") != "" {
		return write(w, http.StatusForbidden, "")
	}
	seconds, err := strconv.Atoi(r.Header.Get(ttlHeader))
	ttl := time.Duration(seconds) * time.Second
	if err != nil || ttl <= 0 || ttl > maxTTL {
		return write(w, http.StatusBadRequest, "")
	}
	token := rand.Text()
	s.mu.Lock()
	s.tokens[token] = s.now().Add(ttl)
	s.mu.Unlock()
	w.Header().Set(ttlHeader, strconv.Itoa(seconds))
	return write(w, http.StatusOK, token)
}

func write(w http.ResponseWriter, status int, body string) int {
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body)) // a client that disconnected doesn't matter
	return status
}

// lookUp finds what is at a path: a value, or the names below it.
func (s *Server) lookUp(requested string, trouble Trouble) (string, bool) {
	version, rest, _ := strings.Cut(strings.TrimPrefix(path.Clean(requested), "/"), "/")
	if version == "" {
		return strings.Join(versions(), "\n"), true
	}
	if !regexp.MustCompile(`^(latest|1\.0|\d{4}-\d{2}-\d{2})$`).MatchString(version) {
		return "", false
	}
	tree, err := s.tree(trouble)
	if err != nil {
		return err.Error(), true
	}
	if value, ok := tree[rest]; ok {
		return value, true
	}
	names := list(tree, rest)
	return strings.Join(names, "\n"), len(names) > 0
}

func versions() []string { return []string{"1.0", "2021-03-23", "latest"} }

// list returns the names directly below a path, as the service lists them:
// those with names below them end in a slash.
func list(tree map[string]string, dir string) []string {
	if dir != "" {
		dir += "/"
	}
	var names []string
	for key := range tree {
		below, ok := strings.CutPrefix(key, dir)
		if !ok {
			continue
		}
		name, _, more := strings.Cut(below, "/")
		// The only list with labels instead of names.
		if dir == "meta-data/public-keys/" {
			name, more = name+"=default", false
		}
		if more {
			name += "/"
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}
