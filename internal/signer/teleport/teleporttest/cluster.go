// Package teleporttest is the part of a Teleport cluster that Hallmark uses, in one process:
// the auth service's records of nodes, its CAs and its signing of host certificates, and the
// proxy's public export.
//
// It answers as Teleport does where that matters, even where it is awkward. It is for tests
// and demonstrations only: it stores nothing, knows one role, and trusts anyone who holds the
// one identity file that it writes.
package teleporttest

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gravitational/teleport/api/client/proto"
	trustpb "github.com/gravitational/teleport/api/gen/proto/go/teleport/trust/v1"
	"github.com/gravitational/teleport/api/types"
	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc"

	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/joinv1"
)

// Generation is the major version of Teleport that a cluster behaves like.
type Generation int

// The generations. What differs between them, and was seen on 13.3.8 and
// 19.0.0-prealpha.2:
//
//   - 13 signs host keys by the auth service's HTTP endpoint only, and 19 by gRPC only.
//   - 13 has the system role Nop, and calls Signup Password; 19 has no Nop.
//   - 13 restarts in a rotation of the Host CA, and connections end; in 19 they stay.
//   - 13 has the old join service, and 19 a new one beside it.
//   - 13 takes one key for a bot, and 19 SSH and TLS keys apart.
//   - 19 limits the requests of one source address for the public export.
const (
	Generation13 Generation = 13
	Generation19 Generation = 19
)

// version is the Teleport version that a cluster reports.
func (g Generation) version() string {
	if g == Generation13 {
		return "13.3.8"
	}
	return "19.0.0"
}

// minClientVersion is the oldest client library that it accepts.
func (g Generation) minClientVersion() string { return fmt.Sprintf("%d.0.0", g-1) }

// Options describe a cluster. The zero value is valid.
type Options struct {
	// ClusterName is "hallmark.test" by default.
	ClusterName string
	// Listen is the TCP address to listen on, 127.0.0.1:0 by default.
	Listen string
	// Hosts are the names and addresses in the proxy's web certificate; localhost
	// and 127.0.0.1 by default. The first is the proxy's public name.
	Hosts []string
	// KeyType of the SSH CAs: KeyRSA by default.
	KeyType KeyType
	// ReadLag is how long reads do not see a write, like Teleport's cache.
	ReadLag time.Duration
	// Generation is Generation19 by default.
	Generation Generation
	// NoOldJoin switches off the old join service, as TELEPORT_UNSTABLE_NO_AGENT_ID_SELECTION
	// does.
	NoOldJoin bool
	// UnknownRoles are additional system roles that the cluster does not have.
	UnknownRoles []types.SystemRole
	// MinClientVersion is the oldest client library that the cluster says it accepts; by
	// default that of its generation.
	MinClientVersion string
	// LoginTTL is how long the identity file is valid, 12 hours by default.
	LoginTTL time.Duration
	// FIPS makes it accept no STS hosts except sts-fips.
	FIPS bool
	// STS answers the GetCallerIdentity calls with which bots join.
	STS http.Handler
	// Now is the clock for everything except TLS; time.Now by default.
	Now func() time.Time
}

// Hook is called before each request is served. Its error becomes the answer, over gRPC and
// HTTP alike, by the kinds of the trace package (trace.LimitExceeded is 429); if it waits,
// that is latency. Method is "GetNode", "GenerateHostCert" and so on, or the path of an HTTP
// request.
type Hook func(ctx context.Context, method string) error

// Cluster is a running cluster. Its methods are safe for concurrent use.
type Cluster struct {
	options  Options
	listener net.Listener
	server   *http.Server
	served   chan struct{} // closed when the server has stopped

	ca    *caSet
	nodes *nodes
	login []byte
	conns *connections
	rates *rates

	mu        sync.Mutex // guards what follows
	hook      Hook
	calls     map[string]int
	bots      []Bot
	gaveUp    []string
	hostCerts []*trustpb.GenerateHostCertRequest
}

// Start starts a cluster; Close stops it.
func Start(options Options) (*Cluster, error) {
	setDefaults(&options)
	ca, err := newCASet(options)
	if err != nil {
		return nil, fmt.Errorf("make CAs: %w", err)
	}
	c := &Cluster{
		options: options,
		served:  make(chan struct{}),
		ca:      ca,
		nodes:   newNodes(options.Now, options.ReadLag),
		calls:   make(map[string]int),
		conns:   newConnections(),
		rates:   newRates(options.Now),
	}
	if c.login, err = ca.identityFile("hallmark-signer", options.LoginTTL); err != nil {
		return nil, fmt.Errorf("make identity file: %w", err)
	}
	if c.listener, err = net.Listen("tcp", options.Listen); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := c.serve(); err != nil {
		c.listener.Close()
		return nil, fmt.Errorf("serve: %w", err)
	}
	return c, nil
}

func setDefaults(o *Options) {
	if o.Generation == 0 {
		o.Generation = Generation19
	}
	if o.MinClientVersion == "" {
		o.MinClientVersion = o.Generation.minClientVersion()
	}
	if o.ClusterName == "" {
		o.ClusterName = "hallmark.test"
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if len(o.Hosts) == 0 {
		o.Hosts = []string{"localhost", "127.0.0.1"}
	}
	if o.KeyType == "" {
		o.KeyType = KeyRSA
	}
	if o.LoginTTL == 0 {
		o.LoginTTL = 12 * time.Hour
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

// serve answers as an auth service and as a proxy on one port. A TLS handshake with the auth
// service's own name gets mutual TLS: direct connections ask for that name, and so do
// connections that a proxy with TLS routing passes on.
func (c *Cluster) serve() error {
	webTLS, err := c.ca.webConfig(c.options.Hosts)
	if err != nil {
		return err
	}
	rpc := grpc.NewServer(
		grpc.ChainUnaryInterceptor(toStatus, requireLogin, limitBots, c.observe),
		grpc.ChainStreamInterceptor(relayErrors))
	proto.RegisterJoinServiceServer(rpc, &joinService{cluster: c})
	if c.options.Generation >= Generation19 {
		joinv1.Serve(rpc, c.joinNew)
	}
	proto.RegisterAuthServiceServer(rpc, &authService{cluster: c})
	trustpb.RegisterTrustServiceServer(rpc, &trustService{cluster: c})
	auth, proxy := c.authHandler(), c.webHandler()

	c.server = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"):
				rpc.ServeHTTP(w, r)
			case isAuthName(r.TLS.ServerName):
				auth.ServeHTTP(w, r)
			default:
				proxy.ServeHTTP(w, r)
			}
		}),
		TLSConfig: &tls.Config{
			NextProtos: []string{"h2", "http/1.1"},
			GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
				if isAuthName(hello.ServerName) {
					return c.ca.authConfig(), nil
				}
				return webTLS, nil
			},
		},
		ConnState:         c.conns.note,
		ReadHeaderTimeout: 10 * time.Second,
		// The client tries several protocols on each port, so failed handshakes are expected.
		ErrorLog: log.New(io.Discard, "", 0),
	}
	go func() {
		defer close(c.served)
		// Only Close ends it.
		_ = c.server.ServeTLS(c.listener, "", "")
	}()
	return nil
}

// Close stops the cluster and closes every connection to it.
func (c *Cluster) Close() error {
	err := c.server.Close()
	<-c.served
	return err
}

// CloseConnections closes all connections, as a restart does.
func (c *Cluster) CloseConnections() { c.conns.closeAll() }

// Name returns the cluster's name.
func (c *Cluster) Name() string { return c.options.ClusterName }

// Address returns the host:port that the cluster listens on, as auth service and
// as proxy.
func (c *Cluster) Address() string { return c.listener.Addr().String() }

// PublicAddress returns the proxy's public name with its port.
func (c *Cluster) PublicAddress() string {
	_, port, _ := net.SplitHostPort(c.Address())
	return net.JoinHostPort(c.options.Hosts[0], port)
}

// RootsPEM returns the certificate that signed the proxy's web certificate.
func (c *Cluster) RootsPEM() []byte { return c.ca.web.pem() }

// IdentityFile returns the signer's login.
func (c *Cluster) IdentityFile() []byte { return c.login }

// NewIdentityFile returns another login, valid for ttl; with a negative ttl it has expired.
func (c *Cluster) NewIdentityFile(ttl time.Duration) ([]byte, error) {
	return c.ca.identityFile("hallmark-signer", ttl)
}

// HostCA returns the key that signs host certificates now.
func (c *Cluster) HostCA() ssh.PublicKey { return c.ca.host.signer().PublicKey() }

// OpenSSHCA returns the key that signs user certificates for OpenSSH nodes now.
func (c *Cluster) OpenSSHCA() ssh.PublicKey { return c.ca.openssh.signer().PublicKey() }

// KnownHosts returns the Host CA as the lines of a known_hosts file.
func (c *Cluster) KnownHosts() []byte {
	return bytes.Join(knownHostsLines(c.Name(), c.ca.host.trusted()), nil)
}

// IssueUserCertificate signs a certificate such as Teleport's proxy presents to OpenSSH nodes
// when somebody from the cluster logs in.
func (c *Cluster) IssueUserCertificate(key ssh.PublicKey, logins []string, ttl time.Duration) (*ssh.Certificate, error) {
	return signUser(c.ca.openssh.signer(), key, "demo", logins, c.options.Now(), ttl)
}

// Nodes returns the cluster's nodes, without lag, sorted by name.
func (c *Cluster) Nodes() []*types.ServerV2 { return c.nodes.current() }

// Intercept sets the hook; nil removes it.
func (c *Cluster) Intercept(hook Hook) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hook = hook
}

// Calls returns how often each method, by the names that Hook gets, was called.
func (c *Cluster) Calls() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.calls)
}

// HostCertRequests returns the requests for host certificates so far.
func (c *Cluster) HostCertRequests() []*trustpb.GenerateHostCertRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*trustpb.GenerateHostCertRequest(nil), c.hostCerts...)
}

// called counts a call and calls the hook.
func (c *Cluster) called(ctx context.Context, method string) error {
	c.mu.Lock()
	c.calls[method]++
	hook := c.hook
	c.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(ctx, method)
}
