package agent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/identity/identitytest"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

const (
	testRegion  = "hm-test-1"
	testAccount = "111122223333"
	testCluster = "teleport.example.com"
	testName    = "web-i-0123456789abcdef0"
	testHost    = "i-0123456789abcdef0"
)

// machine is an instance in a temporary folder: a real sshd on loopback, a
// metadata service, and a signer whose answers a test can spoil.
type machine struct {
	t    testing.TB
	dir  string
	sshd *testSSHD
	imds *testMetadata
	*testSigner
	*Enroller
	waits []time.Duration
	slept atomic.Int64 // nanoseconds that the pauses between attempts took, in made-up time
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	program := findSSHD(t)
	dir := t.TempDir()
	m := &machine{t: t, dir: dir, imds: newTestMetadata(t), testSigner: newTestSigner(t)}
	m.sshd = newTestSSHD(t, program, dir, m.authority.PublicKey())
	client, err := newSignerClient(m.writeRoots(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	quick := retry{
		sleep: func(ctx context.Context, d time.Duration) error {
			m.waits = append(m.waits, d)
			m.slept.Add(int64(d))
			return ctx.Err()
		},
		now:    func() time.Time { return time.Now().Add(time.Duration(m.slept.Load())) },
		random: func() float64 { return 0.5 },
		log:    t.Logf,
	}
	m.Enroller = &Enroller{
		Config:   Config{SignerURL: m.testSigner.server.URL + "/", Audience: "hallmark.example.com"},
		Timeout:  2 * time.Minute,
		stateDir: filepath.Join(dir, "state"), caFile: m.sshd.caFile,
		server: m.sshd, metadata: newMetadata(quick), http: client, retry: quick, attempt: signerTimeout,
		now: time.Now, settle: 10 * time.Second, runDir: filepath.Join(dir, "run"), suspended: suspended,
	}
	m.metadata.endpoint = m.imds.server.URL // not by its variable, so that tests can run side by side
	return m
}

// noPenalties is for tests that go through hours of connections in a second: sshd 9.8
// and later would shut them out.
func (m *machine) noPenalties() {
	m.t.Helper()
	if handsOver(m.t, m.sshd.Program) {
		m.sshd.stop()
		m.sshd.configure("PerSourcePenalties no\n" + m.sshd.hallmarkLines())
		m.sshd.start()
	}
}

// files returns the content of every file that an enrollment may write, but for
// what a failed one notes for the next.
func (m *machine) files() string {
	m.t.Helper()
	var b strings.Builder
	for _, pattern := range []string{"*-cert.pub", "hallmark/*", ".*", "hallmark/.*", "state/*", "state/.*"} {
		paths, err := filepath.Glob(filepath.Join(m.dir, pattern))
		if err != nil {
			m.t.Fatal(err)
		}
		for _, path := range paths {
			if path == setbackPath(m.stateDir) || path == lockPath(m.stateDir) {
				continue
			}
			if data, err := os.ReadFile(path); err == nil {
				fmt.Fprintf(&b, "%s:\n%s\n", path, data)
			}
		}
	}
	return b.String()
}

// findSSHD returns a real sshd. Only where nothing demands it may a test go
// without.
func findSSHD(t testing.TB) string {
	t.Helper()
	server, err := sshd.Find("/")
	if err == nil {
		return server.Program
	}
	if os.Getenv("HALLMARK_TEST_STRICT") != "" {
		t.Fatalf("%v: install openssh-server", err)
	}
	t.Skipf("%v: install openssh-server to run this test", err)
	return ""
}

// testSSHD is a real sshd that counts its reloads.
type testSSHD struct {
	sshd.Server
	t       testing.TB
	dir     string
	caFile  string
	address netip.AddrPort
	process *exec.Cmd
	exited  chan struct{}
	reloads int
	starts  int
	// onReload replaces Reload, if set.
	onReload func(ctx context.Context) error
	login    ssh.Signer
	// arguments are further ones of its command line.
	arguments []string
	// blind tells that nobody can look at it.
	blind bool
	// sites has the configuration include files named NN-….conf.
	sites bool
	// listen replaces the configuration's ListenAddress line, if set.
	listen *string
}

func newTestSSHD(t testing.TB, program, dir string, ca ssh.PublicKey) *testSSHD {
	t.Helper()
	s := &testSSHD{
		t: t, dir: dir, caFile: filepath.Join(dir, "hallmark", "openssh_ca.pub"),
		Server: sshd.Server{Program: program, Config: filepath.Join(dir, "sshd_config")},
		login:  newSigner(t), blind: os.Getenv(wrappersVariable) != "",
	}
	makePrivilegeFolder(t)
	for _, kind := range []string{"rsa", "ecdsa", "ed25519"} {
		writeHostKey(t, kind, s.keyPath(kind))
	}
	s.write("authorized_keys", string(ssh.MarshalAuthorizedKey(s.login.PublicKey())))
	if err := os.Mkdir(filepath.Dir(s.caFile), 0o755); err != nil {
		t.Fatal(err)
	}
	s.write("hallmark/openssh_ca.pub", string(renderAuthorities([]ssh.PublicKey{ca})))
	s.address = freeAddress(t)
	s.configure(s.hallmarkLines())
	s.start()
	t.Cleanup(s.stop)
	return s
}

// makePrivilegeFolder makes the privilege separation folder, as sshd's unit or tmpfiles do.
func makePrivilegeFolder(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		t.Fatal(err)
	}
}

func (s *testSSHD) keyPath(kind string) string {
	return filepath.Join(s.dir, "ssh_host_"+kind+"_key")
}

func (s *testSSHD) hallmarkLines() string {
	return string(sshd.Options{
		TrustedUserCAKeys: s.caFile,
		HostCertificates: []string{
			s.keyPath("rsa") + "-cert.pub", s.keyPath("ecdsa") + "-cert.pub", s.keyPath("ed25519") + "-cert.pub",
		},
		MaxStartups: sshd.DefaultMaxStartups,
	}.Render())
}

// configure writes sshd's configuration: lines, of which hallmark's own go into a drop-in.
// A file whose content stays is not touched.
func (s *testSSHD) configure(lines string) {
	others, ours, found := strings.Cut(lines, s.hallmarkLines())
	if found {
		lines = others + "Include " + s.dropIn() + "\n" + ours
		ours = s.hallmarkLines()
	} else {
		lines += "Include " + s.dropIn() + "\n"
	}
	if s.sites {
		lines = "Include " + s.dir + "/[1-9]*.conf\n" + lines
	}
	s.update(filepath.Base(s.dropIn()), ours)
	listen := "ListenAddress " + s.address.String()
	if s.listen != nil {
		listen = *s.listen
	}
	s.update("sshd_config", lines+fmt.Sprintf(`
%s
HostKey %s
HostKey %s
HostKey %s
PidFile %s/sshd.pid
AuthorizedKeysFile %s/authorized_keys
StrictModes no
UsePAM no
PermitRootLogin yes
LogLevel ERROR
`, listen, s.keyPath("rsa"), s.keyPath("ecdsa"), s.keyPath("ed25519"), s.dir, s.dir))
}

// dropIn is where hallmark's own lines are.
func (s *testSSHD) dropIn() string { return filepath.Join(s.dir, filepath.Base(sshd.DropIn)) }

// update writes a file unless it has the content already.
func (s *testSSHD) update(name, content string) {
	s.t.Helper()
	if old, err := os.ReadFile(filepath.Join(s.dir, name)); err != nil || string(old) != content {
		s.write(name, content)
	}
}

func (s *testSSHD) write(name, content string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *testSSHD) start() {
	s.t.Helper()
	// Not -E: sshd's children would open the file anew, while the folder is removed.
	log, err := os.OpenFile(filepath.Join(s.dir, "sshd.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	// Of two options of a kind the last one counts, as with -f.
	arguments := []string{"-D", "-e"}
	if s.Config != "" {
		arguments = append(arguments, "-f", s.Config)
	}
	s.process = exec.Command(s.Program, append(arguments, s.arguments...)...)
	s.process.Stderr = log
	if err := s.process.Start(); err != nil {
		s.t.Fatal(err)
	}
	exited := make(chan struct{})
	s.exited = exited
	process := s.process
	go func() { _ = process.Wait(); close(exited) }()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	err = until(ctx, func(ctx context.Context) error {
		_, err := sshd.Presented(ctx, s.address, nil)
		if s.blind && !errors.Is(err, sshd.ErrRefused) {
			return nil
		}
		return err
	})
	if err != nil {
		s.t.Fatalf("sshd does not start: %v", err)
	}
}

func (s *testSSHD) stop() {
	// One that is just starting anew after a SIGHUP may miss the first.
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		_ = s.process.Process.Signal(syscall.SIGTERM) // it may have ended already
		select {
		case <-s.exited:
			return
		case <-again.C:
		}
	}
}

// waitForLoad waits until sshd has loaded its files again.
func (m *machine) waitForLoad(pidFile string, before sshd.Load) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute) // a safety net
	defer cancel()
	err := until(ctx, func(ctx context.Context) error {
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

func (s *testSSHD) Reload(ctx context.Context, pidFile string) error {
	s.reloads++
	if s.onReload != nil {
		return s.onReload(ctx)
	}
	return s.Server.Reload(ctx, pidFile)
}

func (s *testSSHD) Start(context.Context) error {
	s.starts++
	s.stop()
	s.start() //nolint:contextcheck // it outlives the enrollment
	return nil
}

// acceptsLogins fails the test unless sshd admits the plain key that it admitted
// before anything was enrolled.
func (s *testSSHD) acceptsLogins() {
	s.t.Helper()
	if err := s.tryLogin(s.login, ssh.InsecureIgnoreHostKey()); err != nil {
		s.t.Errorf("sshd no longer accepts a login that it accepted before: %v", err)
	}
}

func (s *testSSHD) tryLogin(signer ssh.Signer, check ssh.HostKeyCallback) error {
	me, err := user.Current()
	if err != nil {
		return err
	}
	conn, err := net.DialTimeout("tcp", s.address.String(), 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil { // a safety net
		return err
	}
	c, channels, requests, err := ssh.NewClientConn(conn, testName+":22", &ssh.ClientConfig{
		User: me.Username, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: check,
	})
	if err != nil {
		return err
	}
	return ssh.NewClient(c, channels, requests).Close()
}

// userCertificate makes a signer that logs in by a certificate of the CA.
func userCertificate(t testing.TB, ca ssh.Signer) ssh.Signer {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	key := newSigner(t)
	cert := &ssh.Certificate{
		Key: key.PublicKey(), CertType: ssh.UserCert, ValidPrincipals: []string{me.Username},
		ValidBefore: ssh.CertTimeInfinity,
	}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// testMetadata is a metadata service that knows IMDSv2 only.
type testMetadata struct {
	server *httptest.Server
	mu     sync.Mutex
	pages  map[string]string
	// intercept answers instead, if set and true.
	intercept func(http.ResponseWriter, *http.Request) bool
}

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
		documentPage: document,
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

// testSigner signs what it is asked to, after checking the machine's proofs.
type testSigner struct {
	t         testing.TB
	server    *httptest.Server
	hosts     ssh.Signer // Host CA
	authority ssh.Signer // OpenSSH CA
	mu        sync.Mutex
	requests  []*protocol.Payload
	last      *http.Request // with its body
	gets      int
	// get answers a GET, if set. Otherwise the signer is an old one.
	get func(w http.ResponseWriter, r *http.Request)
	// retired are CAs that are trusted beside those that sign.
	retiredHosts, retiredAuthorities []ssh.Signer
	further                          []string // principals beside the four
	// spoil changes a good answer, if set.
	spoil func(*protocol.Response)
	// answerInstead answers instead, if set and true. n counts requests from 1.
	answerInstead func(w http.ResponseWriter, r *http.Request, n int) bool
	lifetime      time.Duration
	clock         func() time.Time
	mutate        func(*ssh.Certificate) // changes a certificate before it is signed
}

func newTestSigner(t testing.TB) *testSigner {
	t.Helper()
	s := &testSigner{t: t, hosts: newSigner(t), authority: newSigner(t), lifetime: 7 * 24 * time.Hour, clock: time.Now}
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
	id := protocol.NodeID(testAccount, testRegion, testHost)
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

// cas are the cluster's authorities, those that sign first.
func (s *testSigner) cas() protocol.CAs {
	lines := func(all []ssh.Signer) (lines []string) {
		for _, ca := range all {
			lines = append(lines, authorizedLine(ca.PublicKey()))
		}
		return lines
	}
	return protocol.CAs{
		Version:    protocol.CAsVersion,
		OpenSSHCAs: lines(append([]ssh.Signer{s.authority}, s.retiredAuthorities...)),
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
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(cert)))
}

func newSigner(t testing.TB) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

func freeAddress(t testing.TB) netip.AddrPort {
	t.Helper()
	// Below the ports from which the system takes those of outgoing connections.
	for range 100 {
		address := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(20_000+mathrand.N(12_000)))
		if l, err := net.Listen("tcp", address.String()); err == nil {
			l.Close()
			return address
		}
	}
	t.Fatal("no address is free")
	return netip.AddrPort{}
}
