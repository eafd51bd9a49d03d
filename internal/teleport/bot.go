package teleport

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/gravitational/teleport/api/client"
	"github.com/gravitational/teleport/api/client/proto"
	"github.com/gravitational/teleport/api/constants"
	"github.com/gravitational/teleport/api/metadata"
	"github.com/gravitational/teleport/api/types"
	"github.com/gravitational/teleport/api/utils/grpc/interceptors"
	"github.com/gravitational/trace"
	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc"
)

const (
	// botLifetime is asked for the certificates of a bot. They are never renewed, only
	// replaced: the shorter, the less a leaked one is worth.
	botLifetime = time.Hour

	// alpnJoin is how a proxy with TLS routing knows calls of its join service, the
	// one that takes no client certificate.
	alpnJoin = "teleport-proxy-grpc"

	// newKeyFields is the first major version that takes SSH and TLS keys apart. Those
	// before know one key for both.
	newKeyFields = 17
)

// Bot is a Machine ID bot that joins by the AWS role which it runs in, so that
// nothing secret is stored: Teleport's join method "iam". It takes part with a
// certificate for Role, renewed when two thirds of its life are over.
type Bot struct {
	// Token is the name of the join token; it is no secret.
	Token string
	// Role is the role to work in, one of those that the bot may use.
	Role string
	// Credentials are those of the AWS role.
	Credentials aws.CredentialsProvider
	// Region is the one whose STS vouches for the role, and STSHost its host name.
	// Teleport knows those of its time.
	Region, STSHost string
}

func (b Bot) identity(ctx context.Context, config Config) (*identity, error) {
	if err := checkRoots(config.RootsPEM); err != nil {
		return nil, err
	}
	key, err := newBotKey()
	if err != nil {
		return nil, err
	}
	joined, err := b.join(ctx, config, key)
	if err != nil {
		return nil, err
	}
	now := config.Now()
	id, err := b.becomeRole(ctx, config, joined, key, now)
	if err != nil {
		return nil, err
	}
	id.renew = now.Add(id.expires.Sub(now) * 2 / 3)
	return id, nil
}

// botKey is the one key of a login, in the forms that Teleport takes it in.
type botKey struct {
	private crypto.Signer
	ssh     []byte // authorized_keys line
	tls     []byte // PEM, PKIX
}

func newBotKey() (*botKey, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	public, err := ssh.NewPublicKey(private.Public())
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		return nil, err
	}
	return &botKey{
		private: private,
		ssh:     ssh.MarshalAuthorizedKey(public),
		tls:     pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}),
	}, nil
}

// identity puts the key and certificates that Teleport made of it together.
func (k *botKey) identity(certificatePEM []byte, authorities [][]byte, now time.Time) (*identity, error) {
	block, _ := pem.Decode(certificatePEM)
	if block == nil {
		return nil, errors.New("no TLS certificate in the answer")
	}
	roots := x509.NewCertPool()
	for _, authority := range authorities {
		roots.AppendCertsFromPEM(authority)
	}
	return newIdentity(tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: k.private}, roots, now)
}

// join proves the AWS role and returns the identity of the bot itself, which may
// do little more than ask for one in another role.
func (b Bot) join(ctx context.Context, config Config, key *botKey) (*identity, error) {
	doing := "join Teleport at " + config.Address
	conn, err := dialJoin(ctx, config)
	if err != nil {
		return nil, unreachable(doing, err)
	}
	defer func() { _ = conn.Close() }()
	service := client.NewJoinServiceClient(proto.NewJoinServiceClient(conn))
	var certs *proto.Certs
	err = retry(ctx, func() (err error) {
		certs, err = service.RegisterUsingIAMMethod(ctx, func(challenge string) (*proto.RegisterUsingIAMMethodRequest, error) {
			return b.answer(ctx, challenge, key, config.Now())
		})
		return err
	}, func(err error) bool { return errors.Is(kindOf(err), ErrUnavailable) })
	if err != nil {
		return nil, failed(doing+" by token "+b.Token, err)
	}
	id, err := key.identity(certs.TLS, certs.TLSCACerts, config.Now())
	if err != nil {
		return nil, fmt.Errorf("%s by token %s: %w", doing, b.Token, err)
	}
	return id, nil
}

// answer answers the challenge of the server: the request that shows the AWS role
// bears it, so that it is good for this join alone.
func (b Bot) answer(ctx context.Context, challenge string, key *botKey, now time.Time) (*proto.RegisterUsingIAMMethodRequest, error) {
	request, err := b.signChallenge(ctx, challenge, now)
	if err != nil {
		return nil, err
	}
	expires := now.Add(botLifetime)
	return &proto.RegisterUsingIAMMethodRequest{
		RegisterUsingTokenRequest: &types.RegisterUsingTokenRequest{
			Token:        b.Token,
			Role:         types.RoleBot,
			PublicSSHKey: key.ssh,
			PublicTLSKey: key.tls,
			Expires:      &expires,
		},
		StsIdentityRequest: request,
	}, nil
}

// dialJoin connects to the join service, which is at proxies and auth services.
// Who answers is checked by its certificate: whoever stands between could have the
// bot's certificates for himself.
func dialJoin(ctx context.Context, config Config) (*grpc.ClientConn, error) {
	r, first, err := joinRoute(ctx, config)
	if err != nil {
		return nil, err
	}
	d := &dialer{route: r, protocols: []string{alpnJoin, alpnHTTP2}, first: only(first)}
	return grpc.NewClient("passthrough:///"+constants.APIDomain,
		grpc.WithContextDialer(client.GRPCContextDialer(d)),
		grpc.WithTransportCredentials(handshaken{}),
		grpc.WithChainStreamInterceptor(metadata.StreamClientInterceptor, interceptors.GRPCClientStreamErrorInterceptor))
}

// joinRoute finds out what is at the address, and returns the way to it with a
// first connection.
func joinRoute(ctx context.Context, config Config) (route, *tls.Conn, error) {
	proxy := webRoute(ctx, config)
	conn, err := dialPatiently(ctx, proxy, alpnJoin, alpnHTTP2)
	switch {
	case certificateError(err) && len(config.RootsPEM) != 0:
		auth := authRoute(proxy, config.RootsPEM)
		if conn, authErr := auth.dial(ctx, alpnHTTP2); authErr == nil {
			return auth, conn, nil
		}
	case err == nil && isTeleportsOwn(conn.ConnectionState()):
		// An auth service, known by another of its names.
	case (err == nil || protocolError(err)) && behindBalancer(ctx, proxy):
		if err == nil {
			_ = conn.Close()
		}
		balancer := balancerRoute(ctx, proxy)
		conn, err = dialPatiently(ctx, balancer, alpnJoin, alpnHTTP2)
		return balancer, conn, err
	}
	return proxy, conn, err
}

// authRoute is for an auth service at the address. Its certificate is for a name
// of Teleport's own, so it must be signed by an authority that we were given.
func authRoute(r route, rootsPEM []byte) route {
	r.tls = r.tls.Clone()
	r.tls.ServerName = constants.APIDomain
	r.tls.RootCAs = x509.NewCertPool()
	r.tls.RootCAs.AppendCertsFromPEM(rootsPEM)
	return r
}

// balancerRoute is for a proxy behind a load balancer that ends TLS: a connection
// inside of another. The outer one is verified as usual.
func balancerRoute(ctx context.Context, r route) route {
	r.dialer = newDialer(ctx, true)
	r.tls = r.tls.Clone()
	r.tls.InsecureSkipVerify = true // #nosec G402 -- verifyBehindBalancer says why
	r.tls.VerifyConnection = verifyBehindBalancer
	return r
}

// verifyBehindBalancer looks at the certificate of a proxy behind a load balancer.
// The balancer has shown a certificate for its name, inside of which this one
// cannot be verified before the bot has joined: it is the cluster's own.
func verifyBehindBalancer(state tls.ConnectionState) error {
	if !isTeleportsOwn(state) {
		return &tls.CertificateVerificationError{
			UnverifiedCertificates: state.PeerCertificates,
			Err:                    errors.New("behind the load balancer there is no Teleport proxy"),
		}
	}
	return nil
}

// becomeRole has Teleport make a certificate for the bot's working role.
func (b Bot) becomeRole(ctx context.Context, config Config, joined *identity, key *botKey, now time.Time) (*identity, error) {
	conn, err := connect(ctx, config, joined)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.close() }()
	pong, err := conn.api.Ping(ctx)
	if err != nil {
		return nil, failed("ping Teleport as a bot", err)
	}
	if err := checkVersion(pong.ServerVersion); err != nil {
		return nil, err
	}
	doing := "become role " + b.Role + " in Teleport"
	request, err := b.roleRequest(joined, key, pong, now)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	certs, err := conn.api.GenerateUserCerts(ctx, request)
	if trace.IsNotFound(err) {
		return nil, fmt.Errorf("%s: %w: %w (make the role from templates/teleport/role.yaml, or correct teleport.login.role)", doing, ErrDenied, err)
	}
	if err != nil {
		return nil, failed(doing, err)
	}
	// What comes with the certificate does not name the authority of the auth
	// service's own certificate.
	authority, err := conn.api.GetClusterCACert(ctx)
	if err != nil {
		return nil, failed("read Teleport's TLS authority", err)
	}
	id, err := key.identity(certs.TLS, append(certs.TLSCACerts, authority.TLSCA), now)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	return id, nil
}

func (b Bot) roleRequest(joined *identity, key *botKey, pong proto.PingResponse, now time.Time) (proto.UserCertsRequest, error) {
	bot, err := x509.ParseCertificate(joined.certificate.Certificate[0])
	if err != nil {
		return proto.UserCertsRequest{}, err
	}
	request := proto.UserCertsRequest{
		Username:        bot.Subject.CommonName,
		Expires:         now.Add(botLifetime),
		RouteToCluster:  pong.ClusterName,
		UseRoleRequests: true,
		RoleRequests:    []string{b.Role},
	}
	if major := majorOf(pong.ServerVersion); major != 0 && major < newKeyFields {
		request.PublicKey = key.ssh //nolint:staticcheck // all that those versions know
	} else {
		request.SSHPublicKey, request.TLSPublicKey = key.ssh, key.tls
	}
	return request, nil
}
