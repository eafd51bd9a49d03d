package teleport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gravitational/teleport/api/breaker"
	"github.com/gravitational/teleport/api/client"
	"github.com/gravitational/teleport/api/constants"
	"github.com/gravitational/teleport/api/utils"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/hallmark-ssh/hallmark/internal/backoff"
)

const (
	alpnHTTP1 = "http/1.1"
	alpnHTTP2 = "h2"
)

// connection is an open way to the auth service.
type connection struct {
	api *client.Client
	// http reaches the same service by HTTP, for what older servers have only there.
	http *http.Client
	// overHTTP says that host certificates are to be had over http: the server said
	// so once.
	overHTTP atomic.Bool
	// hostRole is the index in hostRoles of the role that the server issued last.
	hostRole atomic.Int32
}

func (c *connection) close() error {
	c.http.CloseIdleConnections()
	return c.api.Close()
}

// route is how TLS connections with the auth service are made.
type route struct {
	address string
	dialer  client.ContextDialer // to address; it knows HTTPS_PROXY
	tls     *tls.Config
	// cluster has a proxy with TLS routing pass the connection on, unopened, to the
	// auth service of that cluster. An auth service takes no notice. If it is empty,
	// the connection is with what is at the address.
	cluster string
}

// dial makes a connection and sees the handshake through, so that its errors are
// known for what they are.
func (r route) dial(ctx context.Context, protocols ...string) (*tls.Conn, error) {
	raw, err := r.dialer.DialContext(ctx, "tcp", r.address)
	if err != nil {
		return nil, err
	}
	config := r.tls.Clone()
	config.NextProtos = protocols
	if r.cluster != "" {
		config.NextProtos = append([]string{constants.ALPNSNIAuthProtocol + utils.EncodeClusterName(r.cluster)}, protocols...)
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return conn, nil
}

// connect opens a connection with a login.
func connect(ctx context.Context, config Config, id *identity) (*connection, error) {
	r := route{address: config.Address, dialer: newDialer(ctx, false), tls: id.tlsConfig(config.RootsPEM), cluster: id.cluster}
	first, err := dialPatiently(ctx, r, alpnHTTP2)
	// A load balancer that ends TLS shows its own certificate, and does not know what
	// the proxy behind it could do with the rest. Proxies take the same connection
	// inside of another, too.
	if (certificateError(err) || protocolError(err)) && behindBalancer(ctx, webRoute(ctx, config)) {
		r.dialer = newDialer(ctx, true)
		first, err = dialPatiently(ctx, r, alpnHTTP2)
	}
	if err != nil {
		return nil, unreachable("connect to Teleport at "+config.Address, err)
	}
	api, err := client.New(ctx, client.Config{
		Dialer:      &dialer{route: r, protocols: []string{alpnHTTP2}, first: only(first)},
		Credentials: []client.Credentials{client.LoadTLS(r.tls)},
		// Nothing is left to wait for: the first connection is open.
		DialInBackground: true,
		// A breaker that stays open across invocations would turn one bad minute of
		// Teleport's into a longer one of ours.
		CircuitBreakerConfig: breaker.NoopBreakerConfig(),
		DialOpts: []grpc.DialOption{
			grpc.WithTransportCredentials(handshaken{}),
			grpc.WithChainUnaryInterceptor(call),
		},
	})
	if err != nil {
		_ = first.Close()
		return nil, unreachable("connect to Teleport at "+config.Address, err)
	}
	return &connection{api: api, http: &http.Client{Transport: &http.Transport{
		DialTLSContext:  (&dialer{route: r, protocols: []string{alpnHTTP1}}).DialContext,
		IdleConnTimeout: idleLimit,
	}}}, nil
}

// webRoute is the way to what is at the address: a proxy, or a load balancer.
func webRoute(ctx context.Context, config Config) route {
	return route{
		address: config.Address,
		dialer:  newDialer(ctx, false),
		tls: &tls.Config{
			MinVersion: tls.VersionTLS12,
			ServerName: hostOf(config.Address),
			RootCAs:    rootPool(nil, config.RootsPEM),
		},
	}
}

// behindBalancer reports whether a load balancer ends TLS at the address: it
// knows none of the protocols that proxies do. Teleport's own variable for where
// this guesses wrong, TELEPORT_TLS_ROUTING_CONN_UPGRADE, comes first.
func behindBalancer(ctx context.Context, web route) bool {
	if required, ok := client.OverwriteALPNConnUpgradeRequirementByEnv(web.address); ok {
		return required
	}
	conn, err := web.dial(ctx, constants.ALPNSNIProtocolReverseTunnel)
	if err != nil {
		return protocolError(err)
	}
	defer func() { _ = conn.Close() }()
	return conn.ConnectionState().NegotiatedProtocol == ""
}

// isTeleportsOwn reports whether the certificate is one of those that a cluster
// makes for its own services.
func isTeleportsOwn(state tls.ConnectionState) bool {
	return slices.Contains(state.PeerCertificates[0].DNSNames, constants.APIDomain)
}

// newDialer returns a dialer that goes through the proxy of the environment, and
// if upgrade is true through a load balancer before Teleport's proxy. The
// library verifies the balancer's certificate by the system's CAs alone.
func newDialer(ctx context.Context, upgrade bool) client.ContextDialer {
	return client.NewDialer(ctx, callTimeout, callTimeout,
		client.WithInsecureSkipVerify(false), // without it there is no TLS configuration at all
		client.WithALPNConnUpgrade(upgrade))
}

// dialPatiently dials until it works, the time is up, or the answer is one that
// will not change.
func dialPatiently(ctx context.Context, r route, protocols ...string) (*tls.Conn, error) {
	var conn *tls.Conn
	err := retry(ctx, func() (err error) {
		conn, err = r.dial(ctx, protocols...)
		return err
	}, mayPass)
	return conn, err
}

// dialer makes TLS connections for those who bring an address of their own. If
// there is one in first, it is open already and is given out before others.
type dialer struct {
	route
	protocols []string
	first     chan net.Conn
}

func only(conn net.Conn) chan net.Conn {
	c := make(chan net.Conn, 1)
	c <- conn
	return c
}

// DialContext implements client.ContextDialer.
func (d *dialer) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	select {
	case conn := <-d.first:
		return conn, nil
	default:
	}
	conn, err := d.dial(ctx, d.protocols...)
	if err != nil {
		return nil, err // not conn, which would be a nil of a type
	}
	return conn, nil
}

// handshaken are gRPC credentials for TLS connections that are open already.
type handshaken struct{}

func (handshaken) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	encrypted, ok := conn.(*tls.Conn)
	if !ok {
		return nil, nil, errors.New("not a TLS connection")
	}
	return conn, credentials.TLSInfo{
		State:          encrypted.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

func (handshaken) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("not a server")
}

func (handshaken) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (h handshaken) Clone() credentials.TransportCredentials { return h }

func (handshaken) OverrideServerName(string) error { return nil }

// retryLimit is how often something is tried. The pauses between are fixed, so that
// docs/teleport.md can say how long they last together.
const retryLimit = 4

// retry calls try until it works, its error will not pass, or time or patience is
// at its end. It returns the last error. gRPC's own backoff only covers lost connections.
func retry(ctx context.Context, try func() error, passes func(error) bool) error {
	policy := backoff.Policy{Growth: backoff.Growth{First: 200 * time.Millisecond, Longest: 800 * time.Millisecond}}
	return policy.Do(ctx, retryLimit, func(context.Context) (again bool, after time.Duration, err error) {
		err = try()
		return err != nil && passes(err), 0, err
	})
}

// call bounds a call, and repeats it if the cluster was not available. All calls
// of this package may be repeated: they read, or put the same record again, or sign
// once more.
func call(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	return retry(ctx, func() error {
		return invoke(ctx, method, request, reply, conn, options...)
	}, func(err error) bool {
		return status.Code(err) == codes.Unavailable && !turnedAway(err)
	})
}

// mayPass reports whether a dial that ended so may work in a moment: not if
// somebody answered who is not whom we mean.
func mayPass(err error) bool {
	return !certificateError(err) && !protocolError(err) && !isNoSuchHost(err) && !isA[tls.RecordHeaderError](err)
}

// certificateError reports whether err is the other side's certificate.
func certificateError(err error) bool {
	return isA[*tls.CertificateVerificationError](err)
}

// protocolError reports whether the other side knows none of the protocols that
// it was offered. Go has no type for the alert that says so.
func protocolError(err error) bool {
	return err != nil && strings.Contains(err.Error(), "tls: no application protocol")
}

// turnedAway reports whether one side does not believe the other's certificate. With
// TLS 1.3 a client may hear that only in its first call, and gRPC passes it on as text.
func turnedAway(err error) bool {
	if err == nil || protocolError(err) {
		return false
	}
	return certificateError(err) ||
		strings.Contains(err.Error(), "remote error: tls:") ||
		strings.Contains(err.Error(), "tls: failed to verify certificate:")
}

func isNoSuchHost(err error) bool {
	lookup, ok := errors.AsType[*net.DNSError](err)
	return ok && lookup.IsNotFound
}

// rootPool returns the system's CAs, or those of base, with more.
func rootPool(base *x509.CertPool, morePEM []byte) *x509.CertPool {
	var pool *x509.CertPool
	if base != nil {
		pool = base.Clone()
	} else if system, err := x509.SystemCertPool(); err == nil {
		pool = system
	} else {
		pool = x509.NewCertPool()
	}
	pool.AppendCertsFromPEM(morePEM)
	return pool
}

func checkRoots(rootsPEM []byte) error {
	if len(rootsPEM) != 0 && !x509.NewCertPool().AppendCertsFromPEM(rootsPEM) {
		return fmt.Errorf("%w: no certificate in the Teleport roots; put PEM certificates into teleport.roots_file", ErrDenied)
	}
	return nil
}
