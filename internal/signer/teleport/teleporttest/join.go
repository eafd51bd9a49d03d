package teleporttest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/gravitational/teleport/api/client/proto"
	"github.com/gravitational/teleport/api/types"
	"github.com/gravitational/teleport/api/utils/grpc/interceptors"
	"github.com/gravitational/trace"
	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/joinv1"
)

// Bot is a Machine ID bot with a join token of method iam.
type Bot struct {
	Name string
	// Token is the name of the join token.
	Token string
	// AWSARN is the pattern of the token's allow list.
	AWSARN string
	// Roles are the roles that the bot may use.
	Roles []string
}

// AddBot adds a bot, in place of one with the same token.
func (c *Cluster) AddBot(b Bot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bots = append(slices.DeleteFunc(c.bots, func(old Bot) bool { return old.Token == b.Token }), b)
}

func (c *Cluster) bot(fits func(Bot) bool) (Bot, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.bots, fits)
	if i < 0 {
		return Bot{}, false
	}
	return c.bots[i], true
}

// user is the name of a bot's user, and of its role.
func (b Bot) user() string { return "bot-" + b.Name }

// maxBotTTL is the longest lifetime of a bot's certificates.
const maxBotTTL = 12 * time.Hour

// joinService lets bots join with the method iam, as proxies and auth services do.
type joinService struct {
	proto.UnimplementedJoinServiceServer
	cluster *Cluster
}

func (s *joinService) RegisterUsingIAMMethod(stream proto.JoinService_RegisterUsingIAMMethodServer) error {
	if err := s.cluster.called(stream.Context(), "RegisterUsingIAMMethod"); err != nil {
		return err
	}
	if s.cluster.options.NoOldJoin {
		return trace.AccessDenied("legacy join service has been disabled in this environment")
	}
	challenge := newChallenge()
	if err := stream.Send(&proto.RegisterUsingIAMMethodResponse{Challenge: challenge}); err != nil {
		return err
	}
	request, err := stream.Recv()
	if err != nil {
		return err
	}
	certs, err := s.cluster.joinOld(request, challenge)
	if err != nil {
		return err
	}
	return stream.Send(&proto.RegisterUsingIAMMethodResponse{Certs: certs})
}

func newChallenge() string {
	random := make([]byte, 32)
	_, _ = rand.Read(random) // it never fails
	return base64.RawStdEncoding.EncodeToString(random)
}

func (c *Cluster) joinOld(request *proto.RegisterUsingIAMMethodRequest, challenge string) (*proto.Certs, error) {
	if err := request.CheckAndSetDefaults(); err != nil {
		return nil, err
	}
	register := request.RegisterUsingTokenRequest
	bot, ok := c.bot(func(b Bot) bool { return b.Token == register.Token })
	if !ok {
		return nil, trace.AccessDenied("%q can not join the cluster with role %q, the token is not valid", register.NodeName, register.Role)
	}
	if register.Role != types.RoleBot {
		return nil, trace.BadParameter("node %q [%v] can not join the cluster, the token does not allow %q role", register.NodeName, register.HostID, register.Role)
	}
	if err := c.checkCaller(bot, request.StsIdentityRequest, challenge); err != nil {
		return nil, err
	}
	return c.joinedCerts(bot, register.PublicSSHKey, register.Expires)
}

// joinedCerts are those for the bot's own role, valid for an hour unless the request says how
// long.
func (c *Cluster) joinedCerts(bot Bot, sshKey []byte, expires *time.Time) (*proto.Certs, error) {
	end := c.options.Now().Add(time.Hour)
	if expires != nil {
		end = *expires
	}
	certs, err := c.botCerts(bot, bot.user(), sshKey, end)
	if err != nil {
		return nil, err
	}
	certs.TLSCACerts = append(certs.TLSCACerts, c.ca.host.trustedTLS()...)
	return certs, nil
}

// checkCaller asks STS who signed the request, and looks for that ARN in the token's list.
func (c *Cluster) checkCaller(bot Bot, wire []byte, challenge string) error {
	arn, err := c.callerOf(wire, challenge)
	if err != nil {
		return err
	}
	if matched, err := path.Match(strings.ReplaceAll(bot.AWSARN, "/", "|"), strings.ReplaceAll(arn, "/", "|")); err != nil || !matched {
		return trace.AccessDenied("instance did not match any allow rules")
	}
	return nil
}

// callerOf checks a request for STS as Teleport does, sends it, and returns the
// ARN that the answer names.
func (c *Cluster) callerOf(wire []byte, challenge string) (string, error) {
	request, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(wire)))
	if err != nil {
		return "", trace.Wrap(err)
	}
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return "", trace.Wrap(err)
	}
	const header = "X-Teleport-Challenge"
	switch {
	case !c.knowsSTS(request.Host):
		return "", c.unknownSTS(request.Host)
	case request.Method != http.MethodPost || request.RequestURI != "/":
		return "", trace.AccessDenied("unexpected sts identity request %s %s", request.Method, request.RequestURI)
	case request.Header.Get(header) != challenge:
		return "", trace.AccessDenied("sts identity request does not include challenge header or it does not match")
	case !strings.Contains(request.Header.Get("Authorization"), strings.ToLower(header)):
		return "", trace.AccessDenied("sts identity request auth header does not include the challenge as a signed header")
	case string(body) != "Action=GetCallerIdentity&Version=2011-06-15":
		return "", trace.BadParameter("sts request body %q is not the expected one", body)
	case c.options.STS == nil:
		return "", trace.ConnectionProblem(nil, "no STS")
	}
	request.Body = io.NopCloser(bytes.NewReader(body))
	answer := httptest.NewRecorder()
	c.options.STS.ServeHTTP(answer, request)
	if answer.Code != http.StatusOK {
		return "", trace.AccessDenied("aws sts api returned status: %q body: %q", http.StatusText(answer.Code), answer.Body)
	}
	var identity struct {
		GetCallerIdentityResponse struct {
			GetCallerIdentityResult struct{ Arn string }
		}
	}
	err = json.Unmarshal(answer.Body.Bytes(), &identity)
	return identity.GetCallerIdentityResponse.GetCallerIdentityResult.Arn, err
}

func (c *Cluster) knowsSTS(host string) bool {
	prefix, rest, _ := strings.Cut(host, ".")
	// GovCloud's ordinary endpoints are FIPS endpoints.
	fips := prefix == "sts-fips" || prefix == "sts" && strings.HasPrefix(rest, "us-gov-")
	if !fips && (prefix != "sts" || c.options.FIPS) {
		return false
	}
	return strings.HasSuffix(rest, ".amazonaws.com")
}

// unknownSTS refuses a host with the generation's message.
func (c *Cluster) unknownSTS(host string) error {
	switch {
	case c.options.Generation == Generation13 && c.options.FIPS:
		return trace.AccessDenied("node selected non-FIPS STS endpoint (%s) for the IAM join method", host)
	case c.options.Generation == Generation13:
		return trace.AccessDenied("IAM join request uses unknown STS host %q.", host)
	case c.options.FIPS:
		return trace.AccessDenied("rejecting IAM join request using STS host %q. Error: node selected non-FIPS AWS STS endpoint while the Auth service is in FIPS mode", host)
	}
	return trace.AccessDenied("rejecting IAM join request using STS host %q. Error: AWS STS host is for unknown region", host)
}

// botCerts signs certificates for a bot's key, with its own role or another.
func (c *Cluster) botCerts(bot Bot, role string, sshKey []byte, expires time.Time) (*proto.Certs, error) {
	public, _, _, _, err := ssh.ParseAuthorizedKey(sshKey)
	if err != nil {
		return nil, trace.BadParameter("%v", err)
	}
	converted, ok := public.(ssh.CryptoPublicKey)
	if !ok {
		return nil, trace.BadParameter("key of type %s", public.Type())
	}
	now := c.options.Now()
	if latest := now.Add(maxBotTTL); expires.After(latest) {
		expires = latest
	}
	userTLS := c.ca.user.signerTLS()
	leaf, err := certify(&x509.Certificate{
		Subject:     pkix.Name{CommonName: bot.user(), Organization: []string{role}},
		NotAfter:    expires,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, converted.CryptoPublicKey(), userTLS.cert, userTLS.key)
	if err != nil {
		return nil, err
	}
	sshCert, err := signUser(c.ca.user.signer(), public, bot.user(), []string{"-teleport-internal-join"}, now, expires.Sub(now))
	if err != nil {
		return nil, err
	}
	return &proto.Certs{
		SSH:        ssh.MarshalAuthorizedKey(sshCert),
		TLS:        pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}),
		TLSCACerts: c.ca.user.trustedTLS(),
	}, nil
}

// joinNew lets a bot join with the method iam of the new join service.
func (c *Cluster) joinNew(stream joinv1.ServerStream) error {
	if err := c.called(stream.Context(), "Join"); err != nil {
		return err
	}
	first, err := c.receive(stream)
	if err != nil {
		return err
	}
	bot, err := c.checkInit(first.GetClientInit())
	if err != nil {
		return err
	}
	second, err := c.ask(stream, &joinv1.JoinResponse{Payload: &joinv1.JoinResponse_Init{
		Init: &joinv1.ServerInit{JoinMethod: "iam", SignatureAlgorithmSuite: "balanced-v1"},
	}})
	if err != nil {
		return err
	}
	params := second.GetIamInit().GetClientParams().GetBotParams()
	if params == nil {
		return trace.BadParameter("expected an IAMInit with BotParams, got %T", second.GetPayload())
	}
	challenge := newChallenge()
	third, err := c.ask(stream, &joinv1.JoinResponse{Payload: &joinv1.JoinResponse_Challenge{Challenge: &joinv1.Challenge{
		Payload: &joinv1.Challenge_IamChallenge{IamChallenge: &joinv1.IAMChallenge{Challenge: challenge}},
	}}})
	if err != nil {
		return err
	}
	if err := c.checkCaller(bot, third.GetSolution().GetIamChallengeSolution().GetStsIdentityRequest(), challenge); err != nil {
		return err
	}
	result, err := c.joinResult(bot, params)
	if err != nil {
		return err
	}
	return stream.Send(result)
}

// GaveUp returns the reasons of clients that gave up a join.
func (c *Cluster) GaveUp() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.gaveUp)
}

func (c *Cluster) checkInit(init *joinv1.ClientInit) (Bot, error) {
	bot, known := c.bot(func(b Bot) bool { return b.Token == init.GetTokenName() })
	switch {
	case init == nil:
		return Bot{}, trace.BadParameter("expected a ClientInit")
	case !known:
		return Bot{}, trace.AccessDenied("token expired or not found")
	case init.JoinMethod != nil && *init.JoinMethod != "iam":
		return Bot{}, trace.BadParameter("client requested join method %s, provision token only supports method iam", *init.JoinMethod)
	case init.SystemRole != string(types.RoleBot):
		return Bot{}, trace.BadParameter("can not join the cluster, the token does not allow role %s", init.SystemRole)
	}
	return bot, nil
}

func (c *Cluster) ask(stream joinv1.ServerStream, response *joinv1.JoinResponse) (*joinv1.JoinRequest, error) {
	if err := stream.Send(response); err != nil {
		return nil, err
	}
	return c.receive(stream)
}

func (c *Cluster) receive(stream joinv1.ServerStream) (*joinv1.JoinRequest, error) {
	request, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if g := request.GetGivingUp(); g != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.gaveUp = append(c.gaveUp, strings.TrimSpace(g.Reason.String()+" "+g.Msg))
		return nil, trace.Errorf("the client gave up: %s", g.Reason)
	}
	return request, nil
}

// joinResult contains the certificates in the forms of the new join service.
func (c *Cluster) joinResult(bot Bot, params *joinv1.BotParams) (*joinv1.JoinResponse, error) {
	key, err := ssh.ParsePublicKey(params.GetPublicKeys().GetPublicSshKey())
	if err != nil {
		return nil, trace.BadParameter("failed to parse SSH public key")
	}
	if _, err := x509.ParsePKIXPublicKey(params.GetPublicKeys().GetPublicTlsKey()); err != nil {
		return nil, trace.BadParameter("failed to parse TLS public key")
	}
	var expires *time.Time
	if params.Expires != nil {
		end := params.Expires.AsTime()
		expires = &end
	}
	certs, err := c.joinedCerts(bot, ssh.MarshalAuthorizedKey(key), expires)
	if err != nil {
		return nil, err
	}
	sshCert, _, _, _, err := ssh.ParseAuthorizedKey(certs.SSH)
	if err != nil {
		return nil, err
	}
	certificates := &joinv1.Certificates{TlsCert: der(certs.TLS), SshCert: sshCert.Marshal()}
	for _, ca := range certs.TLSCACerts {
		certificates.TlsCaCerts = append(certificates.TlsCaCerts, der(ca))
	}
	for _, ca := range c.ca.host.trusted() {
		certificates.SshCaKeys = append(certificates.SshCaKeys, ca.Marshal())
	}
	return &joinv1.JoinResponse{Payload: &joinv1.JoinResponse_Result{Result: &joinv1.Result{
		Payload: &joinv1.Result_BotResult{BotResult: &joinv1.BotResult{Certificates: certificates}},
	}}}, nil
}

func der(certificatePEM []byte) []byte {
	block, _ := pem.Decode(certificatePEM)
	return block.Bytes
}

// GenerateUserCerts gives a bot one of its roles. Other users do not need it here.
func (s *authService) GenerateUserCerts(ctx context.Context, request *proto.UserCertsRequest) (*proto.Certs, error) {
	caller, err := callerName(ctx)
	if err != nil {
		return nil, err
	}
	bot, ok := s.cluster.bot(func(b Bot) bool { return b.user() == caller })
	if !ok || request.Username != caller || !request.UseRoleRequests || len(request.RoleRequests) != 1 {
		return nil, trace.NotImplemented("certificates but for a bot's role")
	}
	if role := request.RoleRequests[0]; !slices.Contains(bot.Roles, role) {
		return nil, trace.AccessDenied("user %q has requested role impersonation for [%s]", caller, role)
	}
	key := request.SSHPublicKey
	if s.cluster.options.Generation == Generation13 {
		key = request.PublicKey //nolint:staticcheck // all that those versions know
	}
	return s.cluster.botCerts(bot, request.RoleRequests[0], key, request.Expires)
}

// GetClusterCACert returns the CA of the auth service's certificate.
func (s *authService) GetClusterCACert(context.Context, *emptypb.Empty) (*proto.GetClusterCACertResponse, error) {
	return &proto.GetClusterCACertResponse{TLSCA: bytes.Join(s.cluster.ca.host.trustedTLS(), []byte("\n"))}, nil
}

// callerName is the user in the caller's certificate.
func callerName(ctx context.Context) (string, error) {
	subject, err := callerSubject(ctx)
	return subject.CommonName, err
}

func callerSubject(ctx context.Context) (pkix.Name, error) {
	caller, ok := peer.FromContext(ctx)
	if !ok {
		return pkix.Name{}, trace.AccessDenied("no peer")
	}
	info, ok := caller.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return pkix.Name{}, trace.AccessDenied("no client certificate of this cluster")
	}
	return info.State.VerifiedChains[0][0].Subject, nil
}

// limitBots refuses bots in their own role everything except what leads to another role.
func limitBots(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	subject, err := callerSubject(ctx)
	if err != nil {
		return nil, err
	}
	ownRole := len(subject.Organization) == 1 && strings.HasPrefix(subject.Organization[0], "bot-")
	method := path.Base(info.FullMethod)
	if ownRole && !slices.Contains([]string{"Ping", "GenerateUserCerts", "GetClusterCACert", "GetCertAuthority"}, method) {
		return nil, trace.AccessDenied("access denied to %s for role %s", method, subject.Organization[0])
	}
	return handler(ctx, request)
}

// relayErrors is toStatus for streams. It hides the code in the text, like a proxy that passes
// on the auth service's answer to a join.
func relayErrors(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := interceptors.GRPCServerStreamErrorInterceptor(server, stream, info, handler); err != nil {
		return status.Error(codes.Unknown, err.Error())
	}
	return nil
}
