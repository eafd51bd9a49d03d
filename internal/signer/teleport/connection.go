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

// connection is an open connection to the auth service.
type connection struct {
	api *client.Client
	// http reaches the same service over HTTP, for calls that older servers have only
	// there.
	http *http.Client
	// overHTTP says that the server signs host certificates only over HTTP, as it
	// answered once.
	overHTTP atomic.Bool
	// hostRole is the index in hostRoles of the role that the server issued last.
	hostRole atomic.Int32
}

func (c *connection) close() error {
	c.http.CloseIdleConnections()
	return c.api.Close()
}

// route says how to make TLS connections to the auth service.
type route struct {
	address string
	dialer  client.ContextDialer // to address; it knows HTTPS_PROXY
	tls     *tls.Config
	// cluster makes a proxy with TLS routing pass the connection, unopened, to the auth
	// service of that cluster. An auth service ignores it. If it is empty, the connection
	// ends at the address.
	cluster string
}

// dial makes a connection and completes the handshake, so that its errors have a known
// cause.
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
	first, err := dialWithRetry(ctx, r, alpnHTTP2)
	// A load balancer that ends TLS presents its own certificate, and ignores the
	// protocols that only the proxy behind it understands. Proxies therefore also accept
	// the same connection inside another one.
	if (certificateError(err) || protocolError(err)) && behindBalancer(ctx, webRoute(ctx, config)) {
		r.dialer = newDialer(ctx, true)
		first, err = dialWithRetry(ctx, r, alpnHTTP2)
	}
	if err != nil {
		return nil, unreachable("connect to Teleport at "+config.Address, err)
	}
	api, err := client.New(ctx, client.Config{
		Dialer:      &dialer{route: r, protocols: []string{alpnHTTP2}, first: only(first)},
		Credentials: []client.Credentials{client.LoadTLS(r.tls)},
		// Nothing needs to be waited for: the first connection is open.
		DialInBackground: true,
		// A circuit breaker that stays open across invocations would turn a minute's
		// outage of Teleport into a longer one of the signer.
		CircuitBreakerConfig: breaker.NoopBreakerConfig(),
		DialOpts: []grpc.DialOption{
			grpc.WithTransportCredentials(openConnection{}),
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

// webRoute is the route to the service at the address: a proxy or a load balancer.
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

// behindBalancer reports whether a load balancer ends TLS at the address: it supports
// none of the protocols that proxies do. Teleport's own variable for wrong guesses,
// TELEPORT_TLS_ROUTING_CONN_UPGRADE, takes precedence.
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

// isTeleportsOwn reports whether the certificate is one that a cluster issues to its own
// services.
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

// dialWithRetry dials until it succeeds, the time is up, or the error is permanent.
func dialWithRetry(ctx context.Context, r route, protocols ...string) (*tls.Conn, error) {
	var conn *tls.Conn
	err := retry(ctx, func() (err error) {
		conn, err = r.dial(ctx, protocols...)
		return err
	}, mayPass)
	return conn, err
}

// dialer makes TLS connections for callers that bring their own address. If first holds a
// connection, the dialer returns that one first.
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
		return nil, err // not conn: a typed nil is not a nil interface
	}
	return conn, nil
}

// openConnection are gRPC credentials for TLS connections that are already open.
type openConnection struct{}

func (openConnection) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	encrypted, ok := conn.(*tls.Conn)
	if !ok {
		return nil, nil, errors.New("not a TLS connection")
	}
	return conn, credentials.TLSInfo{
		State:          encrypted.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

func (openConnection) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("not a server")
}

func (openConnection) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (h openConnection) Clone() credentials.TransportCredentials { return h }

func (openConnection) OverrideServerName(string) error { return nil }

// retryLimit is the number of attempts. The pauses between them are fixed, so that
// docs/teleport.md can state their total.
const retryLimit = 4

// retry calls try until it succeeds, its error is permanent, or the time or the attempts
// are used up. It returns the last error. gRPC's own backoff only covers lost connections.
func retry(ctx context.Context, try func() error, passes func(error) bool) error {
	policy := backoff.Policy{Growth: backoff.Growth{First: 200 * time.Millisecond, Longest: 800 * time.Millisecond}}
	return policy.Do(ctx, retryLimit, func(context.Context) (again bool, after time.Duration, err error) {
		err = try()
		return err != nil && passes(err), 0, err
	})
}

// call bounds a call, and repeats it if the cluster was unavailable. All calls of this
// package are safe to repeat: they read, put the same record, or sign again.
func call(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	return retry(ctx, func() error {
		return invoke(ctx, method, request, reply, conn, options...)
	}, func(err error) bool {
		return status.Code(err) == codes.Unavailable && !turnedAway(err)
	})
}

// mayPass reports whether a dial error may be temporary. It is not if the wrong server
// answered.
func mayPass(err error) bool {
	return !certificateError(err) && !protocolError(err) && !isNoSuchHost(err) && !isA[tls.RecordHeaderError](err)
}

// certificateError reports whether err is about the other side's certificate.
func certificateError(err error) bool {
	return isA[*tls.CertificateVerificationError](err)
}

// protocolError reports whether the other side supports none of the offered protocols. Go
// has no type for that alert.
func protocolError(err error) bool {
	return err != nil && strings.Contains(err.Error(), "tls: no application protocol")
}

// turnedAway reports whether one side rejects the other's certificate. With TLS 1.3 a
// client may learn that only from its first call, and gRPC passes it on as text.
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

// rootPool returns the system's CAs, or those of base, plus the given ones.
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
