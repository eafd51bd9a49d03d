package teleport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/gravitational/teleport/api/client"
	"github.com/gravitational/teleport/api/client/proto"
	"github.com/gravitational/teleport/api/constants"
	"github.com/gravitational/teleport/api/metadata"
	"github.com/gravitational/teleport/api/types"
	"github.com/gravitational/teleport/api/utils/grpc/interceptors"
	"github.com/gravitational/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/joinv1"
)

const (
	// alpnJoin is how a proxy with TLS routing recognizes calls to its join services,
	// which need no client certificate.
	alpnJoin = "teleport-proxy-grpc"

	methodIAM = "iam"

	// maxJoinMessage bounds one message of a join service. Certificates with dozens of
	// CAs need less.
	maxJoinMessage = 256 << 10

	// givingUpTime is how long the client waits for the server to learn that it gives up.
	givingUpTime = time.Second
)

// join proves the AWS role and returns the bot's own identity, which may do little more
// than request a certificate for another role.
func (b Bot) join(ctx context.Context, config Config, key *botKey) (*identity, error) {
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	doing := "join Teleport at " + config.Address
	conn, err := dialJoin(ctx, config)
	if err != nil {
		return nil, unreachable(doing, err)
	}
	defer func() { _ = conn.Close() }()
	doing += " by token " + b.Token
	var answer *certified
	err = retry(ctx, func() (err error) {
		answer, err = b.joinOver(ctx, conn, config, key)
		return err
	}, func(err error) bool { return errors.Is(kindOf(err), ErrUnavailable) })
	if err != nil {
		return nil, failed(doing, err)
	}
	id, err := key.identity(answer, config.Now())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	return id, nil
}

// joinOver joins through the join service of Teleport 18 and later, or else through the
// older one, which Teleport 20 drops.
func (b Bot) joinOver(ctx context.Context, conn *grpc.ClientConn, config Config, key *botKey) (*certified, error) {
	if !config.learned.oldJoin.Load() {
		answer, err := b.joinNew(ctx, conn, key, config.Now)
		if !isUnimplemented(err) {
			return answer, err
		}
		config.learned.oldJoin.Store(true)
	}
	answer, err := b.joinOld(ctx, conn, key, config.Now)
	if err != nil && !errors.Is(kindOf(err), ErrUnavailable) {
		// The server may have been updated since: ask for the new service next time.
		config.learned.oldJoin.Store(false)
	}
	return answer, err
}

func isUnimplemented(err error) bool {
	return err != nil && (trace.IsNotImplemented(err) || hasCode(err, codes.Unimplemented))
}

// joinNew joins through teleport.join.v1: it sends the token, the keys and the solved
// challenge, and reads an answer to each.
func (b Bot) joinNew(ctx context.Context, conn *grpc.ClientConn, key *botKey, now func() time.Time) (*certified, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream
	stream, err := joinv1.Join(ctx, conn)
	if err != nil {
		return nil, err
	}
	giveUp := func(reason joinv1.GivingUp_Reason, err error) error {
		defer time.AfterFunc(givingUpTime, cancel).Stop()
		sendGivingUp(stream, reason, err)
		return err
	}

	response, err := exchange(stream, b.clientInit())
	if err != nil {
		return nil, err
	}
	switch init := response.GetInit(); {
	case init == nil:
		return nil, giveUp(joinv1.GivingUp_REASON_UNSUPPORTED_MESSAGE_TYPE, unexpected(response, "init"))
	case init.JoinMethod != methodIAM:
		return nil, giveUp(joinv1.GivingUp_REASON_UNSUPPORTED_JOIN_METHOD,
			fmt.Errorf("%w: the server chose join method %.40q; the join token needs join_method: iam", ErrDenied, init.JoinMethod))
	}

	if response, err = exchange(stream, iamInit(key, now().Add(botLifetime))); err != nil {
		return nil, err
	}
	challenge := response.GetChallenge().GetIamChallenge()
	if challenge == nil {
		return nil, giveUp(joinv1.GivingUp_REASON_UNSUPPORTED_MESSAGE_TYPE, unexpected(response, "an IAM challenge"))
	}
	signed, err := b.signChallenge(ctx, challenge.Challenge, now())
	if err != nil {
		return nil, giveUp(joinv1.GivingUp_REASON_CHALLENGE_SOLUTION_FAILED, err)
	}

	if response, err = exchange(stream, iamSolution(signed)); err != nil {
		return nil, err
	}
	certificates := response.GetResult().GetBotResult().GetCertificates()
	if certificates == nil {
		return nil, giveUp(joinv1.GivingUp_REASON_UNSUPPORTED_MESSAGE_TYPE, unexpected(response, "a bot's certificates"))
	}
	return certifiedDER(certificates)
}

// exchange sends a message and returns the answer to it.
func exchange(stream joinv1.ClientStream, request *joinv1.JoinRequest) (*joinv1.JoinResponse, error) {
	// EOF means that the server has ended the stream. Recv returns the reason.
	if err := stream.Send(request); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	response, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("the join service ended before its result")
	}
	return response, err
}

// unexpected describes a message only by its type: a server that breaks the protocol must
// not fill the log.
func unexpected(response *joinv1.JoinResponse, want string) error {
	return fmt.Errorf("the join service answered with %T, want %s", response.GetPayload(), want)
}

// sendGivingUp tells the server that no answer will come. It sends only the reason: the
// error may contain details about AWS credentials. It returns when the server has ended
// the stream.
func sendGivingUp(stream joinv1.ClientStream, reason joinv1.GivingUp_Reason, err error) {
	message := &joinv1.GivingUp{Reason: reason}
	if reason != joinv1.GivingUp_REASON_CHALLENGE_SOLUTION_FAILED {
		message.Msg = err.Error()
	}
	request := &joinv1.JoinRequest{Payload: &joinv1.JoinRequest_GivingUp{GivingUp: message}}
	if stream.Send(request) == nil && stream.CloseSend() == nil {
		// Ignore the answer: the join has already failed.
		_, _ = stream.Recv()
	}
}

func (b Bot) clientInit() *joinv1.JoinRequest {
	method := methodIAM
	return &joinv1.JoinRequest{Payload: &joinv1.JoinRequest_ClientInit{ClientInit: &joinv1.ClientInit{
		JoinMethod: &method, TokenName: b.Token, SystemRole: string(types.RoleBot),
	}}}
}

func iamInit(key *botKey, expires time.Time) *joinv1.JoinRequest {
	bot := &joinv1.BotParams{
		PublicKeys: &joinv1.PublicKeys{PublicTlsKey: key.pkix, PublicSshKey: key.ssh.Marshal()},
		Expires:    timestamppb.New(expires),
	}
	return &joinv1.JoinRequest{Payload: &joinv1.JoinRequest_IamInit{IamInit: &joinv1.IAMInit{
		ClientParams: &joinv1.ClientParams{Payload: &joinv1.ClientParams_BotParams{BotParams: bot}},
	}}}
}

func iamSolution(signed []byte) *joinv1.JoinRequest {
	return &joinv1.JoinRequest{Payload: &joinv1.JoinRequest_Solution{Solution: &joinv1.ChallengeSolution{
		Payload: &joinv1.ChallengeSolution_IamChallengeSolution{IamChallengeSolution: &joinv1.IAMChallengeSolution{
			StsIdentityRequest: signed,
		}},
	}}}
}

// certifiedDER reads the result of a join by the new service.
func certifiedDER(certificates *joinv1.Certificates) (*certified, error) {
	roots := x509.NewCertPool()
	for _, der := range certificates.TlsCaCerts {
		ca, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("TLS CA in the answer: %w", err)
		}
		roots.AddCert(ca)
	}
	return &certified{certificates.TlsCert, roots}, nil
}

// joinOld joins by the service of Teleport 13 to 19. A Teleport that runs with
// TELEPORT_UNSTABLE_NO_AGENT_ID_SELECTION refuses that; see remoteAdvice.
func (b Bot) joinOld(ctx context.Context, conn *grpc.ClientConn, key *botKey, now func() time.Time) (*certified, error) {
	service := client.NewJoinServiceClient(proto.NewJoinServiceClient(conn))
	certs, err := service.RegisterUsingIAMMethod(ctx, func(challenge string) (*proto.RegisterUsingIAMMethodRequest, error) {
		signed, err := b.signChallenge(ctx, challenge, now())
		if err != nil {
			return nil, err
		}
		expires := now().Add(botLifetime)
		return &proto.RegisterUsingIAMMethodRequest{
			RegisterUsingTokenRequest: &types.RegisterUsingTokenRequest{
				Token:        b.Token,
				Role:         types.RoleBot,
				PublicSSHKey: key.sshLine(),
				PublicTLSKey: key.pkixPEM(),
				Expires:      &expires,
			},
			StsIdentityRequest: signed,
		}, nil
	})
	if err != nil {
		return nil, err
	}
	return certifiedPEM(certs)
}

// dialJoin connects to the join service of a proxy or an auth service. It verifies the
// server's certificate: an attacker in between could get the bot's certificates.
func dialJoin(ctx context.Context, config Config) (*grpc.ClientConn, error) {
	r, first, err := joinRoute(ctx, config)
	if err != nil {
		return nil, err
	}
	d := &dialer{route: r, protocols: []string{alpnJoin, alpnHTTP2}, first: only(first)}
	return grpc.NewClient("passthrough:///"+constants.APIDomain,
		grpc.WithContextDialer(client.GRPCContextDialer(d)),
		grpc.WithTransportCredentials(openConnection{}),
		joinOptions(),
		grpc.WithChainStreamInterceptor(metadata.StreamClientInterceptor, interceptors.GRPCClientStreamErrorInterceptor))
}

func joinOptions() grpc.DialOption {
	return grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxJoinMessage))
}

// joinRoute finds out which service is at the address, and returns the route to it with a
// first connection.
func joinRoute(ctx context.Context, config Config) (route, *tls.Conn, error) {
	proxy := webRoute(ctx, config)
	conn, err := dialWithRetry(ctx, proxy, alpnJoin, alpnHTTP2)
	switch {
	case certificateError(err) && len(config.RootsPEM) != 0:
		auth := authRoute(proxy, config.RootsPEM)
		if conn, authErr := auth.dial(ctx, alpnHTTP2); authErr == nil {
			return auth, conn, nil
		}
	case err == nil && isTeleportsOwn(conn.ConnectionState()):
		// An auth service, under another of its names.
	case (err == nil || protocolError(err)) && behindBalancer(ctx, proxy):
		if err == nil {
			_ = conn.Close()
		}
		balancer := balancerRoute(ctx, proxy)
		conn, err = dialWithRetry(ctx, balancer, alpnJoin, alpnHTTP2)
		return balancer, conn, err
	}
	return proxy, conn, err
}

// authRoute is the route to an auth service at the address. Its certificate has one of
// Teleport's own names, so a configured CA must have signed it.
func authRoute(r route, rootsPEM []byte) route {
	r.tls = r.tls.Clone()
	r.tls.ServerName = constants.APIDomain
	r.tls.RootCAs = x509.NewCertPool()
	r.tls.RootCAs.AppendCertsFromPEM(rootsPEM)
	return r
}

// balancerRoute is the route to a proxy behind a load balancer that ends TLS: one
// connection inside another. It verifies the outer one as usual.
func balancerRoute(ctx context.Context, r route) route {
	r.dialer = newDialer(ctx, true)
	r.tls = r.tls.Clone()
	r.tls.InsecureSkipVerify = true // #nosec G402 -- verifyBehindBalancer says why
	r.tls.VerifyConnection = verifyBehindBalancer
	return r
}

// verifyBehindBalancer checks the certificate of a proxy behind a load balancer. The
// balancer has already presented a certificate for its name. The inner certificate is the
// cluster's own, so the client cannot verify it before the bot has joined.
func verifyBehindBalancer(state tls.ConnectionState) error {
	if !isTeleportsOwn(state) {
		return &tls.CertificateVerificationError{
			UnverifiedCertificates: state.PeerCertificates,
			Err:                    errors.New("behind the load balancer there is no Teleport proxy"),
		}
	}
	return nil
}
