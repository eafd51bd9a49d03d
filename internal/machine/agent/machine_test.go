package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/identity/identitytest"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/signerclient"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

const (
	testRegion  = "hm-test-1"
	testAccount = "111122223333"
	testCluster = "teleport.example.com"
	testName    = machinetest.HostName
	testHost    = "i-0123456789abcdef0"
)

// machine is an instance in a temporary folder: a real sshd on loopback, a metadata service,
// and a signer whose answers a test can change.
type machine struct {
	t    testing.TB
	dir  string
	sshd *machinetest.SSHD
	imds *testMetadata
	*testSigner
	*Enroller
	waits []time.Duration
	slept atomic.Int64 // nanoseconds that the pauses between attempts took, on a simulated clock
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	program := machinetest.FindSSHD(t)
	dir := t.TempDir()
	m := &machine{t: t, dir: dir, imds: newTestMetadata(t), testSigner: newTestSigner(t)}
	m.sshd = machinetest.NewSSHD(t, program, dir, m.openSSHCA.PublicKey())
	quick := newPolicy(t.Logf)
	quick.Wait = func(ctx context.Context, d time.Duration) error {
		m.waits = append(m.waits, d)
		m.slept.Add(int64(d))
		return ctx.Err()
	}
	quick.Now = func() time.Time { return time.Now().Add(time.Duration(m.slept.Load())) }
	quick.Random = func() float64 { return 0.5 }
	m.Enroller = &Enroller{
		Config:   config.Config{SignerURL: m.testSigner.server.URL + "/", Audience: "hallmark.example.com"},
		Timeout:  2 * time.Minute,
		stateDir: filepath.Join(dir, "state"), caFile: m.sshd.CAFile,
		server: m.sshd, metadata: imds.New(quick), retry: quick,
		now: time.Now, settle: 10 * time.Second, runDir: filepath.Join(dir, "run"), suspended: suspended,
	}
	m.connect(m.writeRoots(t, dir))
	m.metadata.Endpoint = m.imds.server.URL // set directly, not through its variable, so that tests can run in parallel
	return m
}

// connect creates the client for the signer.
func (m *machine) connect(roots string) {
	m.t.Helper()
	c := m.Config
	c.SignerCAFile = roots
	signer, err := signerclient.New(c, m.retry, m.metadata, func() time.Time { return m.now() })
	if err != nil {
		m.t.Fatal(err)
	}
	m.signer = signer
}

// noPenalties is for tests that make hours of connections within a second: sshd 9.8 and later
// would lock them out.
func (m *machine) noPenalties() {
	m.t.Helper()
	if machinetest.HandsOver(m.t, m.sshd.Program) {
		m.sshd.Stop()
		m.sshd.Configure("PerSourcePenalties no\n" + m.sshd.HallmarkLines())
		m.sshd.Run()
	}
}

// files returns the content of every file that an enrollment may write, except what a failed
// enrollment saves for the next one.
func (m *machine) files() string {
	m.t.Helper()
	var b strings.Builder
	for _, pattern := range []string{"*-cert.pub", "hallmark/*", ".*", "hallmark/.*", "state/*", "state/.*"} {
		paths, err := filepath.Glob(filepath.Join(m.dir, pattern))
		if err != nil {
			m.t.Fatal(err)
		}
		for _, path := range paths {
			if path == failurePath(m.stateDir) || path == state.LockPath(m.stateDir) {
				continue
			}
			if data, err := os.ReadFile(path); err == nil {
				fmt.Fprintf(&b, "%s:\n%s\n", path, data)
			}
		}
	}
	return b.String()
}

// waitForLoad waits until sshd has loaded its files again.
func (m *machine) waitForLoad(pidFile string, before sshd.Load) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute) // a safety net
	defer cancel()
	err := sshd.Wait(ctx, func(ctx context.Context) error {
		load, err := m.sshd.LastLoad(ctx, pidFile)
		if err == nil && (load.Stamp == "" || load.Stamp == before.Stamp || !load.At.After(before.At)) {
			err = errors.New("sshd has not loaded its files again")
		}
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

// testMetadata is a metadata service that supports only IMDSv2.
type testMetadata struct {
	server *httptest.Server
	mu     sync.Mutex
	pages  map[string]string
	// intercept answers instead if it is set and returns true.
	intercept func(http.ResponseWriter, *http.Request) bool
}

const identityPage = "/latest/dynamic/instance-identity/document"

const rolePage = "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance"

func newTestMetadata(t testing.TB) *testMetadata {
	t.Helper()
	region, err := identitytest.NewRegion(testRegion)
	if err != nil {
		t.Fatal(err)
	}
	document := fmt.Sprintf(`{"accountId":%q,"region":%q,"instanceId":%q}`, testAccount, testRegion, testHost)
	signed, err := region.Sign([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	m := &testMetadata{pages: map[string]string{
		identityPage: document,
		"/latest/dynamic/instance-identity/rsa2048": string(signed),
		rolePage: `{"Code":"Success","AccessKeyId":"ASIAEXAMPLE","SecretAccessKey":"secret","Token":"token"}`,
	}}
	m.server = httptest.NewServer(m)
	t.Cleanup(m.server.Close)
	return m
}

func (m *testMetadata) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.intercept != nil && m.intercept(w, r) {
		return
	}
	if r.URL.Path == "/latest/api/token" {
		if r.Method != http.MethodPut || r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds") == "" {
			http.Error(w, "no", http.StatusBadRequest)
			return
		}
		_, _ = io.WriteString(w, "session")
		return
	}
	if r.Header.Get("X-aws-ec2-metadata-token") != "session" {
		http.Error(w, "no token", http.StatusUnauthorized)
		return
	}
	page, ok := m.pages[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	_, _ = io.WriteString(w, page)
}

// testSigner signs what the machine asks for, after checking the machine's proofs.
type testSigner struct {
	t         testing.TB
	server    *httptest.Server
	hosts     ssh.Signer // Host CA
	openSSHCA ssh.Signer // OpenSSH CA
	mu        sync.Mutex
	requests  []*protocol.Payload
	last      *http.Request // with its body
	gets      int
	// get answers a GET, if set. Otherwise the signer behaves like an old one.
	get func(w http.ResponseWriter, r *http.Request)
	// retired are CAs that are trusted in addition to those that sign.
	retiredHosts, retiredOpenSSHCAs []ssh.Signer
	further                         []string // principals in addition to those four
	// spoil changes a good answer, if set.
	spoil func(*protocol.Response)
	// answerInstead answers instead if it is set and returns true. n counts requests from 1.
	answerInstead func(w http.ResponseWriter, r *http.Request, n int) bool
	lifetime      time.Duration
	clock         func() time.Time
	mutate        func(*ssh.Certificate) // changes a certificate before it is signed
}

func newTestSigner(t testing.TB) *testSigner {
	t.Helper()
	s := &testSigner{t: t, hosts: sshkeytest.NewSigner(t), openSSHCA: sshkeytest.NewSigner(t), lifetime: 7 * 24 * time.Hour, clock: time.Now}
	s.server = httptest.NewUnstartedServer(s)
	s.server.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes are part of the tests
	s.server.StartTLS()
	t.Cleanup(s.server.Close)
	return s
}

func (s *testSigner) writeRoots(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "signer_ca.pem")
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.server.Certificate().Raw})
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (s *testSigner) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Method == http.MethodGet {
		s.gets++
		if s.get == nil {
			http.Error(w, `{"error":{"code":"method_not_allowed","message":"use POST"}}`, http.StatusMethodNotAllowed)
			return
		}
		s.get(w, r)
		return
	}
	var body bytes.Buffer
	r.Body = io.NopCloser(io.TeeReader(r.Body, &body))
	payload, keys, err := readRequest(r)
	s.last = r.Clone(r.Context())
	s.last.Body = io.NopCloser(&body)
	if err != nil {
		s.t.Errorf("the machine sent a bad request: %v", err)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.requests = append(s.requests, payload)
	if s.answerInstead != nil && s.answerInstead(w, r, len(s.requests)) {
		return
	}
	answer := s.answer(keys)
	if s.spoil != nil {
		s.spoil(answer)
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func readRequest(r *http.Request) (*protocol.Payload, []ssh.PublicKey, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, nil, err
	}
	request, err := protocol.ParseRequest(body)
	if err != nil {
		return nil, nil, err
	}
	payload, err := protocol.ParsePayload(request.Payload)
	if err != nil {
		return nil, nil, err
	}
	keys, err := identity.ParseHostKeys(payload.HostKeys)
	if err != nil {
		return nil, nil, err
	}
	if len(request.Signatures) != len(keys) || r.Method != http.MethodPost {
		return nil, nil, errors.New("not one signature for each key")
	}
	for i, key := range keys {
		if err := identity.VerifyBinding(key, protocol.Bind(request.Payload), request.Signatures[i]); err != nil {
			return nil, nil, err
		}
	}
	if got := request.Caller.Date; got != payload.IssuedAt.Format("20060102T150405Z") {
		return nil, nil, fmt.Errorf("proof is of %s, payload of %s", got, payload.IssuedAt)
	}
	return payload, keys, nil
}

func (s *testSigner) answer(keys []ssh.PublicKey) *protocol.Response {
	id := ec2ref.Instance{Account: testAccount, Region: testRegion, ID: testHost}.NodeID()
	r := &protocol.Response{
		Version: protocol.Version, RequestID: "request-1",
		Node:       protocol.Node{ID: id, Hostname: testName, Address: "10.0.0.1:22", Cluster: testCluster},
		Principals: append([]string{testName, id, testName + "." + testCluster, id + "." + testCluster}, s.further...),
		OpenSSHCAs: s.cas().OpenSSHCAs,
		HostCAs:    s.cas().HostCAs,
		RenewAfter: s.clock().Add(s.lifetime / 3),
	}
	for _, key := range keys {
		r.Certificates = append(r.Certificates, s.certify(key, r.Principals, s.hosts))
	}
	return r
}

// cas are the cluster's CAs. Those that sign come first.
func (s *testSigner) cas() protocol.CAs {
	lines := func(all []ssh.Signer) (lines []string) {
		for _, ca := range all {
			lines = append(lines, sshkey.Line(ca.PublicKey()))
		}
		return lines
	}
	return protocol.CAs{
		Version:    protocol.CAsVersion,
		OpenSSHCAs: lines(append([]ssh.Signer{s.openSSHCA}, s.retiredOpenSSHCAs...)),
		HostCAs:    lines(append([]ssh.Signer{s.hosts}, s.retiredHosts...)),
	}
}

// serveCAs answers a GET as a signer does.
func (s *testSigner) serveCAs(w http.ResponseWriter, r *http.Request) {
	body, err := s.cas().Encode()
	if err != nil {
		s.t.Error(err)
	}
	w.Header().Set("ETag", protocol.ETag(body))
	if r.Header.Get("If-None-Match") == protocol.ETag(body) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	_, _ = w.Write(body)
}

func (s *testSigner) certify(key ssh.PublicKey, principals []string, ca ssh.Signer) string {
	s.t.Helper()
	cert := &ssh.Certificate{
		Key: key, CertType: ssh.HostCert, ValidPrincipals: principals, Serial: uint64(len(s.requests)),
		ValidAfter:  uint64(s.clock().Add(-time.Minute).Unix()),
		ValidBefore: uint64(s.clock().Add(s.lifetime).Unix()),
	}
	if s.mutate != nil {
		s.mutate(cert)
	}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		s.t.Fatal(err)
	}
	return sshkey.Line(cert)
}
