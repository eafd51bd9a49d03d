package teleporttest

import (
	"context"
	"fmt"
	"net"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/gravitational/teleport/api/client/proto"
	"github.com/gravitational/teleport/api/defaults"
	"github.com/gravitational/teleport/api/types"
	"github.com/gravitational/teleport/api/utils/grpc/interceptors"
	"github.com/gravitational/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/emptypb"
)

// authService is the part of Teleport's auth service that Hallmark calls. Other
// methods answer Unimplemented.
type authService struct {
	proto.UnimplementedAuthServiceServer
	cluster *Cluster
}

// toStatus turns the library's errors into gRPC errors, as Teleport's servers do.
func toStatus(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	return interceptors.GRPCServerUnaryErrorInterceptor(ctx, request, info, handler)
}

// requireLogin refuses callers whose TLS certificate the cluster did not sign. The handshake
// ensures that for the auth service; this stops a request to the proxy's name.
func requireLogin(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	caller, ok := peer.FromContext(ctx)
	if !ok {
		return nil, trace.AccessDenied("no peer")
	}
	info, ok := caller.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil, trace.AccessDenied("no client certificate of this cluster")
	}
	return handler(ctx, request)
}

// observe counts the call and calls the hook.
func (c *Cluster) observe(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := c.called(ctx, path.Base(info.FullMethod)); err != nil {
		return nil, err
	}
	return handler(ctx, request)
}

func (s *authService) Ping(context.Context, *proto.PingRequest) (*proto.PingResponse, error) {
	return &proto.PingResponse{
		ClusterName:     s.cluster.Name(),
		ServerVersion:   s.cluster.options.Generation.version(),
		ServerFeatures:  &proto.Features{},
		ProxyPublicAddr: s.cluster.PublicAddress(),
	}, nil
}

func (s *authService) GetNode(_ context.Context, request *types.ResourceInNamespaceRequest) (*types.ServerV2, error) {
	for _, node := range s.cluster.nodes.visible() {
		if node.GetName() == request.Name {
			return node, nil
		}
	}
	return nil, trace.NotFound("node %q is not found", request.Name)
}

func (s *authService) UpsertNode(ctx context.Context, node *types.ServerV2) (*types.KeepAlive, error) {
	if err := node.CheckAndSetDefaults(); err != nil {
		return nil, err
	}
	if node.GetNamespace() != defaults.Namespace {
		return nil, trace.BadParameter("invalid namespace %q", node.GetNamespace())
	}
	replaceInvalidHostname(node)
	if caller, ok := peer.FromContext(ctx); ok {
		replaceLocalhost(node, caller.Addr)
	}
	s.cluster.nodes.put(node)
	if node.Expiry().IsZero() {
		return &types.KeepAlive{}, nil
	}
	return &types.KeepAlive{Type: types.KeepAlive_NODE, Name: node.GetName(), Namespace: node.GetNamespace(), Expires: node.Expiry()}, nil
}

var validHostname = regexp.MustCompile(`^[a-zA-Z0-9]+[a-zA-Z0-9.-]*$`)

// replaceInvalidHostname handles a bad host name as Teleport 17 does: it stores another one,
// without an error, and keeps the original in a label.
func replaceInvalidHostname(node *types.ServerV2) {
	given := node.GetHostname()
	if len(given) <= 256 && validHostname.MatchString(given) {
		return
	}
	labels := node.GetStaticLabels()
	if labels == nil {
		labels = make(map[string]string)
	}
	labels["teleport.internal/invalid-hostname"] = given
	node.SetStaticLabels(labels)
	node.Spec.Hostname = node.GetName()
	if host, _, err := net.SplitHostPort(node.GetAddr()); err == nil && validHostname.MatchString(host) {
		node.Spec.Hostname = host
	}
}

// replaceLocalhost does what Teleport does for its own agents, which may not know their
// address: it replaces an address that means the host itself with the caller's.
func replaceLocalhost(node *types.ServerV2, caller net.Addr) {
	host, port, err := net.SplitHostPort(node.GetAddr())
	if err != nil {
		return
	}
	if ip := net.ParseIP(host); host != "localhost" && !ip.IsLoopback() && !ip.IsUnspecified() {
		return
	}
	if callerHost, _, err := net.SplitHostPort(caller.String()); err == nil {
		node.Spec.Addr = net.JoinHostPort(callerHost, port)
	}
}

func (s *authService) DeleteNode(_ context.Context, request *types.ResourceInNamespaceRequest) (*emptypb.Empty, error) {
	if !s.cluster.nodes.remove(request.Name) {
		return nil, trace.NotFound("node %q is not found", request.Name)
	}
	return &emptypb.Empty{}, nil
}

// parseNames reads the part of Teleport's predicate language that the client uses: `name ==
// "a" || name == "b"`. Nil is no expression.
func parseNames(expression string) ([]string, error) {
	if expression == "" {
		return nil, nil
	}
	var names []string
	for term := range strings.SplitSeq(expression, " || ") {
		quoted, ok := strings.CutPrefix(term, "name == ")
		name, err := strconv.Unquote(quoted)
		if !ok || err != nil {
			return nil, fmt.Errorf("expression %q is beyond this cluster", expression)
		}
		names = append(names, name)
	}
	return names, nil
}

func (s *authService) ListResources(_ context.Context, request *proto.ListResourcesRequest) (*proto.ListResourcesResponse, error) {
	switch {
	case request.ResourceType != types.KindNode:
		return nil, trace.NotImplemented("resource type %q", request.ResourceType)
	case request.Limit <= 0:
		return nil, trace.BadParameter("nonpositive limit value")
	}
	named, err := parseNames(request.PredicateExpression)
	if err != nil {
		return nil, trace.BadParameter("%v", err)
	}
	response := &proto.ListResourcesResponse{}
	for _, node := range s.cluster.nodes.visible() {
		if node.GetName() < request.StartKey || !node.MatchSearch(request.SearchKeywords) ||
			!types.MatchLabels(node, request.Labels) || named != nil && !slices.Contains(named, node.GetHostname()) {
			continue
		}
		if len(response.Resources) == int(request.Limit) {
			response.NextKey = node.GetName()
			break
		}
		response.Resources = append(response.Resources, &proto.PaginatedResource{
			Resource: &proto.PaginatedResource_Node{Node: node},
		})
	}
	return response, nil
}
