package teleporttest

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"time"

	trustpb "github.com/gravitational/teleport/api/gen/proto/go/teleport/trust/v1"
	"github.com/gravitational/teleport/api/types"
	"github.com/gravitational/trace"
	"golang.org/x/crypto/ssh"
	protobuf "google.golang.org/protobuf/proto"
)

// Names of the extensions that Teleport writes into host certificates.
const (
	ExtensionRole      = "x-teleport-role"
	ExtensionAuthority = "x-teleport-authority"
)

// trustService is the part of Teleport's trust service that Hallmark calls.
type trustService struct {
	trustpb.UnimplementedTrustServiceServer
	cluster *Cluster
}

func (s *trustService) GetCertAuthority(_ context.Context, request *trustpb.GetCertAuthorityRequest) (*types.CertAuthorityV2, error) {
	if request.IncludeKey {
		return nil, trace.AccessDenied("access denied to perform action \"read\" on \"cert_authority\"")
	}
	kind := types.CertAuthType(request.Type)
	ca := s.cluster.ca.byType(kind)
	if ca == nil || request.Domain != s.cluster.Name() {
		return nil, trace.NotFound("cert authority %q of %q is not found", request.Type, request.Domain)
	}
	return ca.resource(s.cluster.Name(), kind)
}

func (s *trustService) GetCertAuthorities(ctx context.Context, request *trustpb.GetCertAuthoritiesRequest) (*trustpb.GetCertAuthoritiesResponse, error) {
	ca, err := s.GetCertAuthority(ctx, &trustpb.GetCertAuthorityRequest{
		Type: request.Type, Domain: s.cluster.Name(), IncludeKey: request.IncludeKey,
	})
	if err != nil {
		return nil, err
	}
	return &trustpb.GetCertAuthoritiesResponse{CertAuthoritiesV2: []*types.CertAuthorityV2{ca}}, nil
}

func (a *caSet) byType(kind types.CertAuthType) *rotatingCA {
	switch kind {
	case types.OpenSSHCA:
		return a.openssh
	case types.HostCA:
		return a.host
	case types.UserCA:
		return a.user
	default:
		return nil
	}
}

func (s *trustService) GenerateHostCert(ctx context.Context, request *trustpb.GenerateHostCertRequest) (*trustpb.GenerateHostCertResponse, error) {
	if s.cluster.options.Generation == Generation13 {
		return s.UnimplementedTrustServiceServer.GenerateHostCert(ctx, request)
	}
	cert, err := s.cluster.generateHostCert(request)
	if err != nil {
		return nil, err
	}
	return &trustpb.GenerateHostCertResponse{SshCertificate: cert}, nil
}

// generateHostCert signs what it is asked to, as Teleport does: any system role, and without
// an expiry if no lifetime is given.
func (c *Cluster) generateHostCert(request *trustpb.GenerateHostCertRequest) ([]byte, error) {
	c.record(request)
	role := types.SystemRole(request.Role)
	if err := c.checkRole(role); err != nil {
		return nil, err
	}
	switch {
	case request.ClusterName == "":
		return nil, trace.BadParameter("ClusterName is required")
	case request.HostId == "" && len(request.Principals) == 0:
		return nil, trace.BadParameter("HostID or Principals are required")
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(request.Key)
	if err != nil {
		return nil, trace.BadParameter("public key: %v", err)
	}
	cert := &ssh.Certificate{
		Key:             key,
		CertType:        ssh.HostCert,
		ValidPrincipals: principals(request),
		ValidAfter:      uint64(c.options.Now().Add(-time.Minute).Unix()),
		ValidBefore:     ssh.CertTimeInfinity,
		Permissions: ssh.Permissions{Extensions: map[string]string{
			ExtensionRole:      c.writtenRole(role),
			ExtensionAuthority: request.ClusterName,
		}},
	}
	if ttl := request.Ttl.AsDuration(); ttl != 0 {
		cert.ValidBefore = uint64(c.options.Now().Add(ttl).Unix())
	}
	if err := cert.SignCert(rand.Reader, c.ca.host.signer()); err != nil {
		return nil, err
	}
	return ssh.MarshalAuthorizedKey(cert), nil
}

// checkRole refuses unknown roles with the message of all Teleport versions.
func (c *Cluster) checkRole(role types.SystemRole) error {
	dropped := role == types.RoleNop && c.options.Generation >= Generation19
	if dropped || slices.Contains(c.options.UnknownRoles, role) {
		return trace.BadParameter("role %v is not registered", role)
	}
	return role.Check()
}

// writtenRole is the role as written into the certificate.
func (c *Cluster) writtenRole(role types.SystemRole) string {
	if c.options.Generation == Generation13 && role == types.RoleSignup {
		return "Password" // its name there
	}
	return role.String()
}

// principals are the requested ones and, with a host ID, those that Teleport adds.
func principals(request *trustpb.GenerateHostCertRequest) []string {
	var names []string
	if request.HostId != "" {
		names = append(names, fmt.Sprintf("%s.%s", request.HostId, request.ClusterName), request.HostId)
		if request.NodeName != "" && request.NodeName != request.HostId {
			names = append(names, fmt.Sprintf("%s.%s", request.NodeName, request.ClusterName), request.NodeName)
		}
		names = append(names, "localhost", "127.0.0.1", "::1")
	}
	var distinct []string
	for _, name := range append(names, request.Principals...) {
		if !slices.Contains(distinct, name) {
			distinct = append(distinct, name)
		}
	}
	return distinct
}

func (c *Cluster) record(request *trustpb.GenerateHostCertRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hostCerts = append(c.hostCerts, protobuf.Clone(request).(*trustpb.GenerateHostCertRequest))
}
