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
)

// Bot is a Machine ID bot with a join token of method iam.
type Bot struct {
	Name string
	// Token is the name of the join token.
	Token string
	// AWSARN is the pattern of the token's allow list.
	AWSARN string
	// Roles are those that the bot may work in.
	Roles []string
}

// AddBot makes a bot known, in place of one with the same token.
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

// user is the name of a bot's user, and of the role that it has.
func (b Bot) user() string { return "bot-" + b.Name }

// maxBotTTL is the longest life of a bot's certificates.
const maxBotTTL = 12 * time.Hour

// joinService lets bots in by the method iam, as proxies and auth services do.
type joinService struct {
	proto.UnimplementedJoinServiceServer
	cluster *Cluster
}

func (s *joinService) RegisterUsingIAMMethod(stream proto.JoinService_RegisterUsingIAMMethodServer) error {
	if err := s.cluster.called(stream.Context(), "RegisterUsingIAMMethod"); err != nil {
		return err
	}
	random := make([]byte, 32)
	_, _ = rand.Read(random) // it never fails
	challenge := base64.RawStdEncoding.EncodeToString(random)
	if err := stream.Send(&proto.RegisterUsingIAMMethodResponse{Challenge: challenge}); err != nil {
		return err
	}
	request, err := stream.Recv()
	if err != nil {
		return err
	}
	certs, err := s.cluster.join(request, challenge)
	if err != nil {
		return err
	}
	return stream.Send(&proto.RegisterUsingIAMMethodResponse{Certs: certs})
}

func (c *Cluster) join(request *proto.RegisterUsingIAMMethodRequest, challenge string) (*proto.Certs, error) {
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
	arn, err := c.callerOf(request.StsIdentityRequest, challenge)
	if err != nil {
		return nil, err
	}
	if matched, err := path.Match(strings.ReplaceAll(bot.AWSARN, "/", "|"), strings.ReplaceAll(arn, "/", "|")); err != nil || !matched {
		return nil, trace.AccessDenied("instance did not match any allow rules")
	}
	expires := c.options.Now().Add(time.Hour)
	if register.Expires != nil {
		expires = *register.Expires
	}
	certs, err := c.botCerts(bot, bot.user(), register.PublicSSHKey, expires)
	if err != nil {
		return nil, err
	}
	hostTLS, _ := c.ca.tls()
	certs.TLSCACerts = append(certs.TLSCACerts, hostTLS.pem())
	return certs, nil
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
	case !strings.HasPrefix(request.Host, "sts.") || !strings.HasSuffix(request.Host, ".amazonaws.com"):
		return "", trace.AccessDenied("IAM join request uses unknown STS host %q.", request.Host)
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

// botCerts signs certificates for a bot's key, in its own or another role.
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
	_, userTLS := c.ca.tls()
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
		TLSCACerts: [][]byte{userTLS.pem()},
	}, nil
}

// GenerateUserCerts lets a bot work in one of its roles. Other users have no need
// of it here.
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
	if s.cluster.options.Legacy {
		key = request.PublicKey //nolint:staticcheck // all that those versions know
	}
	return s.cluster.botCerts(bot, request.RoleRequests[0], key, request.Expires)
}

// GetClusterCACert names the authority of the auth service's certificate.
func (s *authService) GetClusterCACert(context.Context, *emptypb.Empty) (*proto.GetClusterCACertResponse, error) {
	hostTLS, _ := s.cluster.ca.tls()
	return &proto.GetClusterCACertResponse{TLSCA: hostTLS.pem()}, nil
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

// limitBots refuses to bots in their own role all but what leads to another one.
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

// relayErrors is toStatus for streams. It hides the code in the text, as a proxy
// does that passes on what the auth service says to a join.
func relayErrors(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := interceptors.GRPCServerStreamErrorInterceptor(server, stream, info, handler); err != nil {
		return status.Error(codes.Unknown, err.Error())
	}
	return nil
}
