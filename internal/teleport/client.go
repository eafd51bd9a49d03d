// Package teleport is the part of a Teleport cluster that the signer needs: the
// records of nodes, host certificates, and the keys of the cluster's authorities.
//
// It speaks to the cluster's auth service over mutual TLS, directly or through a
// proxy, with the login of an identity file.
package teleport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/gravitational/teleport/api/breaker"
	"github.com/gravitational/teleport/api/client"
	"github.com/gravitational/teleport/api/identityfile"
	"github.com/gravitational/teleport/api/utils/keys"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// callTimeout bounds each call, and each dial, that comes without a deadline.
	callTimeout = 15 * time.Second

	// idleLimit is how long a connection may rest before it is dialed again. A
	// function that was frozen holds connections whose other end is long gone
	// without anybody having said so; a call on one would hang.
	idleLimit = time.Minute

	// retryPause is how long a call that met a lost connection, or a cluster that is
	// restarting, waits before its second and last try.
	retryPause = 200 * time.Millisecond
)

// Config says how to reach a cluster and who calls.
type Config struct {
	// Address is host:port of the cluster's proxy or auth service.
	Address string
	// RootsPEM are certificates that may sign the auth service's certificate, beside
	// those in the identity file: after a rotation of the cluster's TLS authority
	// the file may not know the new one. Optional.
	RootsPEM []byte
	// IdentityFile is the path of an identity file, as `tctl auth sign` and tbot
	// write it. It is read again at each dial.
	IdentityFile string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Client talks to one cluster. It may be used by many goroutines and for as long
// as the login lasts: it dials again by itself.
type Client struct {
	config  Config
	cluster string
	proxy   string

	mu       sync.Mutex // guards what follows
	api      *client.Client
	lastUsed time.Time
	closed   bool
}

// Dial connects to the cluster and learns its name. It fails with ErrDenied if
// the identity file is missing, broken or expired, and with ErrUnavailable if
// nothing at the address lets this login in.
func Dial(ctx context.Context, config Config) (*Client, error) {
	if config.Now == nil {
		config.Now = time.Now
	}
	c := &Client{config: config}
	api, err := c.conn(ctx)
	if err != nil {
		return nil, err
	}
	pong, err := api.Ping(ctx)
	if err != nil {
		return nil, errors.Join(failed("ping Teleport at "+config.Address, err), c.Close())
	}
	c.cluster, c.proxy = pong.ClusterName, hostOf(pong.ProxyPublicAddr)
	return c, nil
}

// ClusterName returns the name of the cluster.
func (c *Client) ClusterName() string { return c.cluster }

// ProxyName returns the host name by which people reach the cluster's proxy; it
// is empty if the cluster has none.
func (c *Client) ProxyName() string { return c.proxy }

// Close ends the connection. Calls after it fail.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.api == nil {
		return nil
	}
	return c.api.Close()
}

// conn returns a connection that is fresh enough to be alive.
func (c *Client) conn(ctx context.Context) (*client.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errors.New("the Teleport client is closed")
	}
	now := c.config.Now()
	if c.api != nil && now.Sub(c.lastUsed) < idleLimit {
		c.lastUsed = now
		return c.api, nil
	}
	api, err := dial(ctx, c.config, now)
	if err != nil {
		return nil, err
	}
	if c.api != nil {
		// Whatever it says: a connection left behind has nothing to report.
		_ = c.api.Close()
	}
	c.api, c.lastUsed = api, now
	return api, nil
}

func dial(ctx context.Context, config Config, now time.Time) (*client.Client, error) {
	login, err := readLogin(config, now)
	if err != nil {
		return nil, err
	}
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	api, err := client.New(ctx, client.Config{
		Addrs:       []string{config.Address},
		Credentials: []client.Credentials{login},
		// With this the first of the library's ways to connect works for an auth
		// service and for a proxy with TLS routing alike: one handshake, with the auth
		// service itself, that the proxy only passes on. The library tries its others
		// (SSH tunnels, load balancers that end TLS) at the same time.
		ALPNSNIAuthDialClusterName: login.cluster,
		// A breaker that stays open across invocations would turn one bad minute of
		// Teleport's into a longer one of ours.
		CircuitBreakerConfig: breaker.NoopBreakerConfig(),
		DialOpts:             []grpc.DialOption{grpc.WithChainUnaryInterceptor(call)},
	})
	if err != nil {
		// The library's text has a line or two for each way that it tried.
		reason := strings.Join(strings.Fields(err.Error()), " ")
		return nil, fmt.Errorf("connect to Teleport at %s: %w: %s", config.Address, ErrUnavailable, reason)
	}
	return api, nil
}

// withDeadline gives ctx a deadline if it has none.
func withDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, callTimeout)
}

// call bounds a call, and repeats it once if the cluster was not available. All
// calls of this package may be repeated: they read, or put the same record again,
// or sign once more.
func call(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	err := invoke(ctx, method, request, reply, conn, options...)
	if status.Code(err) != codes.Unavailable {
		return err
	}
	select {
	case <-time.After(retryPause):
		return invoke(ctx, method, request, reply, conn, options...)
	case <-ctx.Done():
		return err
	}
}

// login is the content of an identity file with further roots.
type login struct {
	client.Credentials
	cluster string
	roots   []byte
}

// TLSConfig returns the configuration of the identity file, with its roots and ours.
func (l login) TLSConfig() (*tls.Config, error) {
	config, err := l.Credentials.TLSConfig()
	if err != nil {
		return nil, err
	}
	config.RootCAs.AppendCertsFromPEM(l.roots)
	return config, nil
}

// readLogin loads the identity file and checks it here, where the reason can be
// told: to a client with an expired certificate, a server just hangs up.
func readLogin(config Config, now time.Time) (*login, error) {
	path := config.IdentityFile
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read Teleport identity file: %w: %w", ErrDenied, err)
	}
	file, err := identityfile.FromString(string(data))
	if err != nil {
		return nil, fmt.Errorf("read Teleport identity file %s: %w: %w", path, ErrDenied, err)
	}
	cert, _, err := keys.X509Certificate(file.Certs.TLS)
	if err != nil {
		return nil, fmt.Errorf("read Teleport identity file %s: TLS certificate: %w: %w", path, ErrDenied, err)
	}
	if !now.Before(cert.NotAfter) {
		return nil, fmt.Errorf("%w: Teleport identity file %s expired at %s: make a new one",
			ErrDenied, path, cert.NotAfter.UTC().Format(time.RFC3339))
	}
	if len(config.RootsPEM) != 0 && !x509.NewCertPool().AppendCertsFromPEM(config.RootsPEM) {
		return nil, fmt.Errorf("%w: no certificate in the Teleport roots", ErrDenied)
	}
	l := &login{Credentials: client.LoadIdentityFileFromString(string(data)), roots: config.RootsPEM}
	if names := cert.Issuer.Organization; len(names) > 0 {
		l.cluster = names[0] // Teleport writes the cluster's name there
	}
	return l, nil
}

// hostOf returns the host of a host:port, or all of it if it has no port.
func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}
