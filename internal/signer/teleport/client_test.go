package teleport_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gravitational/trace"
	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc/peer"

	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

func start(t *testing.T, options teleporttest.Options) *teleporttest.Cluster {
	t.Helper()
	cluster, err := teleporttest.Start(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Close(); err != nil {
			t.Errorf("close the cluster: %v", err)
		}
	})
	return cluster
}

// quick starts a cluster whose keys are generated quickly.
func quick(t *testing.T) *teleporttest.Cluster {
	t.Helper()
	return start(t, teleporttest.Options{KeyType: teleporttest.KeyEd25519})
}

func config(t *testing.T, cluster *teleporttest.Cluster) teleport.Config {
	t.Helper()
	return teleport.Config{Address: cluster.Address(), Login: teleport.IdentityFile(write(t, cluster.IdentityFile()))}
}

func write(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "identity.pem")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func dial(t *testing.T, config teleport.Config) *teleport.Client {
	t.Helper()
	client, err := teleport.Dial(timeout(t, time.Minute), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func timeout(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestDialNames(t *testing.T) {
	cluster := start(t, teleporttest.Options{
		KeyType: teleporttest.KeyEd25519, ClusterName: "c.example", Hosts: []string{"proxy.example.com", "127.0.0.1"},
	})
	client := dial(t, config(t, cluster))
	if client.ClusterName() != "c.example" || client.ProxyName() != "proxy.example.com" {
		t.Errorf("cluster %q, proxy %q", client.ClusterName(), client.ProxyName())
	}
}

func TestDialRefusesLogin(t *testing.T) {
	cluster := quick(t)
	expired, err := cluster.NewIdentityFile(-time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	good := write(t, cluster.IdentityFile())
	tests := []struct {
		name, file, roots, want string
	}{
		{"missing", filepath.Join(t.TempDir(), "none"), "", "no such file"},
		{"garbage", write(t, []byte("garbage")), "", "not an identity file"},
		{"truncated", write(t, cluster.IdentityFile()[:300]), "", "teleport.login.file"},
		{"expired", write(t, expired), "", "expired at 20"},
		{"roots without a certificate", good, "oops", "no certificate in the Teleport roots"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := teleport.Dial(timeout(t, time.Minute), teleport.Config{
				Address: cluster.Address(), Login: teleport.IdentityFile(tt.file), RootsPEM: []byte(tt.roots),
			})
			expect(t, err, teleport.ErrDenied, tt.want)
		})
	}
	if calls := cluster.Calls(); calls["Ping"] != 0 {
		t.Errorf("the cluster was asked: %v", calls)
	}
}

// A login for another cluster does not work here, and neither side trusts the other.
func TestDialOtherCluster(t *testing.T) {
	here, there := quick(t), quick(t)
	_, err := teleport.Dial(timeout(t, 5*time.Second), teleport.Config{
		Address: here.Address(), Login: teleport.IdentityFile(write(t, there.IdentityFile())),
	})
	expect(t, err, teleport.ErrUnavailable, here.Address())
	if calls := here.Calls(); calls["Ping"] != 0 {
		t.Errorf("the cluster was asked: %v", calls)
	}
}

// After a rotation of the cluster's TLS CA, a login from before the rotation must be given the
// new one.
func TestDialWithRoots(t *testing.T) {
	cluster := quick(t)
	login := cluster.IdentityFile()
	last := bytes.LastIndex(login, []byte("-----BEGIN CERTIFICATE"))
	c := teleport.Config{Address: cluster.Address(), Login: teleport.IdentityFile(write(t, login[:last]))}

	_, err := teleport.Dial(timeout(t, 5*time.Second), c)
	expect(t, err, teleport.ErrUnavailable, "certificate")

	c.RootsPEM = login[last:]
	dial(t, c)
}

func TestDialNobodyThere(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	cluster := quick(t)
	began := time.Now()
	_, err = teleport.Dial(timeout(t, 5*time.Second), teleport.Config{
		Address: address, Login: teleport.IdentityFile(write(t, cluster.IdentityFile())),
	})
	expect(t, err, teleport.ErrUnavailable, address)
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one line: %q", err)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("it took %s, a second was given", took)
	}
}

func TestDialWhatIsNotTeleport(t *testing.T) {
	website := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	plain, encrypted := httptest.NewServer(website), httptest.NewTLSServer(website)
	defer plain.Close()
	defer encrypted.Close()
	encrypted.Config.ErrorLog = log.New(io.Discard, "", 0)
	roots := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: encrypted.Certificate().Raw})
	cluster := quick(t)
	file := teleport.IdentityFile(write(t, cluster.IdentityFile()))
	for name, tt := range map[string]struct {
		server *httptest.Server
		login  teleport.Login
		want   string
	}{
		"no TLS, file":  {plain, file, "is not Teleport"},
		"no TLS, bot":   {plain, bot(), "is not Teleport"},
		"website, file": {encrypted, file, "teleport.address"},
		"website, bot":  {encrypted, bot(), "teleport.address"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := teleport.Dial(timeout(t, time.Minute), teleport.Config{
				Address: tt.server.Listener.Addr().String(), RootsPEM: roots, Login: tt.login,
			})
			expect(t, err, teleport.ErrUnavailable, tt.want)
		})
	}
}

// Teleport hangs up on clients that are too old. Its proxy says which clients those are.
func TestDialTooNewCluster(t *testing.T) {
	for minimum, tooNew := range map[string]bool{"25.0.0-aa": true, "17.0.0-aa": false, "": false} {
		cluster := start(t, teleporttest.Options{KeyType: teleporttest.KeyEd25519, MinClientVersion: minimum})
		cluster.Intercept(func(_ context.Context, method string) error {
			if method == "Ping" {
				return trace.ConnectionProblem(nil, "connection closed")
			}
			return nil
		})
		c := config(t, cluster)
		c.RootsPEM = cluster.RootsPEM()
		_, err := teleport.Dial(timeout(t, time.Minute), c)
		if tooNew {
			expect(t, err, teleport.ErrDenied, "update Hallmark")
		} else {
			expect(t, err, teleport.ErrUnavailable, "connection closed")
		}
	}
}

func TestDialWithoutLogin(t *testing.T) {
	if _, err := teleport.Dial(t.Context(), teleport.Config{Address: "127.0.0.1:1"}); err == nil {
		t.Error("connected")
	}
}

func TestErrorKinds(t *testing.T) {
	cluster := quick(t)
	client := dial(t, config(t, cluster))
	tests := []struct {
		name string
		hook error
		want error
	}{
		{"access denied", trace.AccessDenied("no"), teleport.ErrDenied},
		{"not found", trace.NotFound("no"), teleport.ErrNotFound},
		{"unavailable", trace.ConnectionProblem(nil, "down"), teleport.ErrUnavailable},
		{"too many requests", trace.LimitExceeded("slow down"), teleport.ErrUnavailable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cluster.Intercept(func(context.Context, string) error { return tt.hook })
			defer cluster.Intercept(nil)
			_, err := client.Node(timeout(t, time.Minute), "some-id")
			expect(t, err, tt.want, "read node some-id")
		})
	}
	t.Run("bad parameter", func(t *testing.T) {
		cluster.Intercept(func(context.Context, string) error { return trace.BadParameter("no") })
		defer cluster.Intercept(nil)
		_, err := client.Node(timeout(t, time.Minute), "some-id")
		for _, kind := range []error{teleport.ErrDenied, teleport.ErrNotFound, teleport.ErrUnavailable} {
			if err == nil || errors.Is(err, kind) {
				t.Errorf("got %v, want none of the kinds", err)
			}
		}
	})
	t.Run("slow", func(t *testing.T) {
		cluster.Intercept(func(ctx context.Context, _ string) error {
			<-ctx.Done()
			return ctx.Err()
		})
		defer cluster.Intercept(nil)
		_, err := client.Node(timeout(t, 200*time.Millisecond), "some-id")
		expect(t, err, teleport.ErrUnavailable, "read node some-id")
	})
}

// The caller does not see one temporary failure.
func TestRetriesUnavailable(t *testing.T) {
	cluster := quick(t)
	client := dial(t, config(t, cluster))
	var calls atomic.Int32
	cluster.Intercept(func(context.Context, string) error {
		if calls.Add(1) == 1 {
			return trace.ConnectionProblem(nil, "restarting")
		}
		return nil
	})
	if _, err := client.CAs(timeout(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	if calls.Load() != 3 {
		t.Errorf("%d calls, want 2 and one again", calls.Load())
	}
}

// If every connection breaks, for example because a proxy restarts, the next call works.
func TestSurvivesLostConnections(t *testing.T) {
	cluster := quick(t)
	relay := newRelay(t, cluster.Address())
	c := config(t, cluster)
	c.Address = relay.address
	client := dial(t, c)
	for range 3 {
		relay.dropAll()
		if _, err := client.CAs(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
}

// If Teleport did not answer, the next call dials again, and does not wait for gRPC to retry.
func TestDialsAgainAfterAnOutage(t *testing.T) {
	cluster := quick(t)
	client := dial(t, config(t, cluster))
	calls := countConnections(cluster)
	for _, test := range []struct {
		answer error
		want   int // connections so far
	}{
		{trace.ConnectionProblem(nil, "restarting"), 2},
		{trace.AccessDenied("no"), 2},
		{trace.LimitExceeded("slow down"), 2}, // one more handshake would not help
		{trace.ConnectionProblem(nil, "restarting"), 3},
	} {
		calls.answer(test.answer)
		if _, err := client.CAs(timeout(t, time.Minute)); err == nil {
			t.Errorf("no error from %v", test.answer)
		}
		calls.answer(nil)
		if _, err := client.CAs(timeout(t, time.Minute)); err != nil {
			t.Error(err)
		}
		if got := calls.connections(); got != test.want {
			t.Errorf("after %v: %d connections, want %d", test.answer, got, test.want)
		}
	}
}

// calls counts the connections over which a cluster is called. A client opens others, too, for
// example to ask the proxy for its versions.
type calls struct {
	mu    sync.Mutex
	peers map[string]bool
	err   error
}

// countConnections counts from now on.
func countConnections(cluster *teleporttest.Cluster) *calls {
	c := &calls{peers: make(map[string]bool)}
	cluster.Intercept(func(ctx context.Context, _ string) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if from, ok := peer.FromContext(ctx); ok {
			c.peers[from.Addr.String()] = true
		}
		return c.err
	})
	return c
}

// answer makes every call fail with an error; nil ends that.
func (c *calls) answer(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

func (c *calls) connections() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.peers)
}

// relay passes on connections until it is told to drop them.
type relay struct {
	address string
	mu      sync.Mutex
	open    []net.Conn
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{address: listener.Addr().String()}
	t.Cleanup(func() {
		listener.Close()
		r.dropAll()
	})
	go func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			r.mu.Lock()
			r.open = append(r.open, in, out)
			r.mu.Unlock()
			go func() { _, _ = io.Copy(in, out) }()
			go func() { _, _ = io.Copy(out, in) }()
		}
	}()
	return r
}

func (r *relay) dropAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, conn := range r.open {
		conn.Close()
	}
	r.open = nil
}

// A connection that was idle too long is not used again: its other end may have closed it
// without notice.
func TestDialsAgainAfterRest(t *testing.T) {
	cluster := quick(t)
	clock := newClock()
	c := config(t, cluster)
	c.Now = clock.now
	client := dial(t, c)
	calls := countConnections(cluster)
	for _, step := range []struct {
		rest time.Duration
		want int
	}{{0, 1}, {idleLimit - time.Second, 1}, {idleLimit, 2}, {time.Second, 2}} {
		clock.advance(step.rest)
		if _, err := client.CAs(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		if got := calls.connections(); got != step.want {
			t.Errorf("after %s: %d connections, want %d", step.rest, got, step.want)
		}
	}
}

// A new identity file is used at once. A missing or broken one matters only when the login
// from the old file expires.
func TestIdentityFileChanges(t *testing.T) {
	cluster := quick(t)
	clock := newClock()
	path := write(t, cluster.IdentityFile())
	client := dial(t, teleport.Config{Address: cluster.Address(), Login: teleport.IdentityFile(path), Now: clock.now})
	calls := countConnections(cluster)
	call := func() error {
		_, err := client.CAs(timeout(t, time.Minute))
		return err
	}

	if err := call(); err != nil {
		t.Fatal(err)
	}
	fresh, err := cluster.NewIdentityFile(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	replace(t, path, fresh)
	if err := call(); err != nil {
		t.Fatal(err)
	}
	if got := calls.connections(); got != 2 {
		t.Errorf("%d connections with two logins, want 2", got)
	}

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := call(); err != nil {
		t.Errorf("the file is gone, the login is good: %v", err)
	}
	clock.advance(time.Hour)
	expect(t, call(), teleport.ErrDenied, "no such file")

	replace(t, path, fresh)
	expect(t, call(), teleport.ErrDenied, "expired at 20")
}

func TestIdentitySecret(t *testing.T) {
	cluster := quick(t)
	clock := newClock()
	var reads atomic.Int32
	var broken atomic.Bool
	var ends []time.Time // of the logins
	client := dial(t, teleport.Config{Address: cluster.Address(), Now: clock.now, LoggedIn: func(end time.Time) {
		ends = append(ends, end)
	}, Login: teleport.IdentitySecret{
		Name: "arn:aws:secretsmanager:us-west-2:111122223333:secret:signer",
		Read: func(context.Context) ([]byte, error) {
			reads.Add(1)
			if broken.Load() {
				return nil, errors.New("AccessDeniedException")
			}
			return cluster.IdentityFile(), nil
		},
	}})
	call := func() error {
		_, err := client.CAs(timeout(t, time.Minute))
		return err
	}
	for _, step := range []struct {
		rest   time.Duration
		broken bool
		reads  int32
	}{{0, false, 1}, {4 * time.Minute, false, 1}, {2 * time.Minute, false, 2}, {6 * time.Minute, true, 3}, {time.Second, true, 3}} {
		clock.advance(step.rest)
		broken.Store(step.broken)
		if err := call(); err != nil {
			t.Fatal(err)
		}
		if got := reads.Load(); got != step.reads {
			t.Errorf("%d reads, want %d", got, step.reads)
		}
	}
	clock.advance(12 * time.Hour)
	expect(t, call(), teleport.ErrUnavailable, "secret:signer (teleport.login.secret)")
	if len(ends) != 2 || !ends[0].After(time.Now()) {
		t.Errorf("notified of logins that end at %v, want two of them", ends)
	}
}

const idleLimit = time.Minute // as in client.go

type clock struct{ ahead atomic.Int64 }

func newClock() *clock { return new(clock) }

func (c *clock) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }

func replace(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestSignHostKeyDuringRotation(t *testing.T) {
	cluster := quick(t)
	client := dial(t, config(t, cluster))
	sign := func() *ssh.Certificate {
		t.Helper()
		cert, err := client.SignHostKey(timeout(t, time.Minute), sshkeytest.NewSigner(t).PublicKey(), []string{"web-1"}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(cert.SignatureKey.Marshal(), cluster.HostCA().Marshal()) {
			t.Error("signed by another key than the cluster signs with")
		}
		return cert
	}
	before := sign()
	for _, phase := range phases() {
		if err := cluster.RotateHost(phase); err != nil {
			t.Fatal(err)
		}
		sign()
	}
	if after := sign(); bytes.Equal(after.SignatureKey.Marshal(), before.SignatureKey.Marshal()) {
		t.Error("the rotation changed nothing")
	}
}

func TestCAsDuringRotation(t *testing.T) {
	cluster := quick(t)
	client := dial(t, config(t, cluster))
	keys := func() []string {
		t.Helper()
		cas, err := client.CAs(timeout(t, time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		var prints []string
		for _, key := range cas.OpenSSH {
			prints = append(prints, ssh.FingerprintSHA256(key))
		}
		return prints
	}
	old := keys()[0]
	steps := []struct {
		phase    teleporttest.Phase
		count    int
		oldFirst bool
	}{
		{teleporttest.PhaseInit, 2, true},
		{teleporttest.PhaseUpdateClients, 2, false},
		{teleporttest.PhaseRollback, 2, true},
		{teleporttest.PhaseStandby, 1, true},
	}
	for _, step := range steps {
		if err := cluster.RotateOpenSSH(step.phase); err != nil {
			t.Fatal(err)
		}
		if got := keys(); len(got) != step.count || (got[0] == old) != step.oldFirst {
			t.Errorf("phase %s: got %v, the old key is %s", step.phase, got, old)
		}
	}
}

func expect(t *testing.T, err, kind error, text string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("got %v, want one that is %q", err, kind)
	}
	if err != nil && !strings.Contains(err.Error(), text) {
		t.Errorf("got %q, want %q in it", err, text)
	}
}

func TestIsAddress(t *testing.T) {
	for text, want := range map[string]bool{
		"teleport.example.com:443": true, "192.0.2.7:3025": true, "[2001:db8::7]:443": true, "teleport.example.com:https": false,
		"": false, "teleport.example.com": false, "https://teleport.example.com:443": false, ":443": false, "teleport.example.com:": false,
		"teleport.example.com:0": false, "teleport.example.com:65536": false, "teleport.example.com:web!": false, "2001:db8::7": false,
	} {
		if got := teleport.IsAddress(text); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}
