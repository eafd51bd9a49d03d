package teleporttest_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gravitational/teleport/api/client"
	"github.com/gravitational/teleport/api/client/proto"
	trustpb "github.com/gravitational/teleport/api/gen/proto/go/teleport/trust/v1"
	"github.com/gravitational/teleport/api/types"
	"github.com/gravitational/trace"
	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/hallmark-ssh/hallmark/internal/caexport"
	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

func start(t *testing.T, options teleporttest.Options) *teleporttest.Cluster {
	t.Helper()
	if options.KeyType == "" {
		options.KeyType = teleporttest.KeyEd25519
	}
	cluster, err := teleporttest.Start(options)
	check(t, err)
	t.Cleanup(func() { check(t, cluster.Close()) })
	return cluster
}

// connect logs in with nothing of Hallmark's between: as the library alone does.
func connect(t *testing.T, cluster *teleporttest.Cluster) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := client.New(ctx, client.Config{
		Addrs:       []string{cluster.Address()},
		Credentials: []client.Credentials{client.LoadIdentityFileFromString(string(cluster.IdentityFile()))},
	})
	check(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The awkward things that Teleport does with a request for a host certificate,
// which its callers have to avoid.
func TestGenerateHostCert(t *testing.T) {
	cluster := start(t, teleporttest.Options{})
	trust := connect(t, cluster).TrustClient()
	base := func() *trustpb.GenerateHostCertRequest {
		return &trustpb.GenerateHostCertRequest{
			Key: ssh.MarshalAuthorizedKey(sshkeytest.NewSigner(t).PublicKey()), Principals: []string{"web-1"},
			ClusterName: cluster.Name(), Role: "Node", Ttl: durationpb.New(time.Hour),
		}
	}
	tests := []struct {
		name   string
		change func(*trustpb.GenerateHostCertRequest)
		check  func(t *testing.T, cert *ssh.Certificate) // nil if it is refused
	}{
		{name: "extensions", check: func(t *testing.T, cert *ssh.Certificate) {
			if cert.Extensions[teleporttest.ExtensionRole] != "Node" || cert.Extensions[teleporttest.ExtensionAuthority] != cluster.Name() {
				t.Errorf("extensions %v", cert.Extensions)
			}
		}},
		{name: "a minute back", check: func(t *testing.T, cert *ssh.Certificate) {
			if life := cert.ValidBefore - cert.ValidAfter; life != 3660 {
				t.Errorf("it lives %d s, want an hour and a minute", life)
			}
		}},
		{
			name:   "no lifetime is for ever",
			change: func(r *trustpb.GenerateHostCertRequest) { r.Ttl = nil },
			check: func(t *testing.T, cert *ssh.Certificate) {
				if cert.ValidBefore != ssh.CertTimeInfinity {
					t.Errorf("it ends at %d", cert.ValidBefore)
				}
			},
		}, {
			name:   "a host ID brings loopback",
			change: func(r *trustpb.GenerateHostCertRequest) { r.HostId = "id" },
			check: func(t *testing.T, cert *ssh.Certificate) {
				want := []string{"id." + cluster.Name(), "id", "localhost", "127.0.0.1", "::1", "web-1"}
				if !slices.Equal(cert.ValidPrincipals, want) {
					t.Errorf("principals %q, want %q", cert.ValidPrincipals, want)
				}
			},
		},
		{"any role", func(r *trustpb.GenerateHostCertRequest) { r.Role = "Admin" }, func(*testing.T, *ssh.Certificate) {}},
		{"no such role", func(r *trustpb.GenerateHostCertRequest) { r.Role = "King" }, nil},
		{"no principals", func(r *trustpb.GenerateHostCertRequest) { r.Principals = nil }, nil},
		{"no cluster", func(r *trustpb.GenerateHostCertRequest) { r.ClusterName = "" }, nil},
		{"no key", func(r *trustpb.GenerateHostCertRequest) { r.Key = nil }, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			request := base()
			if tt.change != nil {
				tt.change(request)
			}
			response, err := trust.GenerateHostCert(t.Context(), request)
			if tt.check == nil {
				if !trace.IsBadParameter(err) {
					t.Errorf("got %v, want a bad parameter", err)
				}
				return
			}
			check(t, err)
			cert, err := hostcert.Parse(string(response.SshCertificate))
			check(t, err)
			tt.check(t, cert)
		})
	}
}

func TestPrivateKeysStayInside(t *testing.T) {
	cluster := start(t, teleporttest.Options{})
	c := connect(t, cluster)
	id := types.CertAuthID{Type: types.HostCA, DomainName: cluster.Name()}
	if _, err := c.GetCertAuthority(t.Context(), id, true); err == nil {
		t.Error("private keys of the Host CA were handed out")
	}
	ca, err := c.GetCertAuthority(t.Context(), id, false)
	check(t, err)
	for _, pair := range ca.GetTrustedSSHKeyPairs() {
		if len(pair.PrivateKey) != 0 {
			t.Error("a private key without asking")
		}
	}
}

func TestInvalidHostnameIsReplaced(t *testing.T) {
	cluster := start(t, teleporttest.Options{})
	node, err := types.NewNode("some-id", types.SubKindOpenSSHNode,
		types.ServerSpecV2{Addr: "192.0.2.1:22", Hostname: "web_1"}, nil)
	check(t, err)
	_, err = connect(t, cluster).UpsertNode(t.Context(), node)
	check(t, err)
	stored := cluster.Nodes()[0]
	if stored.GetHostname() != "192.0.2.1" || stored.GetAllLabels()["teleport.internal/invalid-hostname"] != "web_1" {
		t.Errorf("stored host name %q, labels %v", stored.GetHostname(), stored.GetAllLabels())
	}
}

func TestReadLag(t *testing.T) {
	clock := time.Now()
	cluster := start(t, teleporttest.Options{ReadLag: time.Minute, Now: func() time.Time { return clock }})
	c := connect(t, cluster)
	node, err := types.NewNode("some-id", types.SubKindOpenSSHNode, types.ServerSpecV2{Addr: "192.0.2.1:22", Hostname: "web-1"}, nil)
	check(t, err)
	node.SetExpiry(clock.Add(time.Hour))
	_, err = c.UpsertNode(t.Context(), node)
	check(t, err)

	seen := func() bool {
		_, err := c.GetNode(t.Context(), "default", "some-id")
		return err == nil
	}
	if seen() || len(cluster.Nodes()) != 1 {
		t.Errorf("at once: reads see it: %t, %d nodes", seen(), len(cluster.Nodes()))
	}
	clock = clock.Add(time.Minute)
	if !seen() {
		t.Error("a minute later reads do not see it")
	}
	clock = clock.Add(time.Hour)
	if seen() || len(cluster.Nodes()) != 0 {
		t.Errorf("after its lease: reads see it: %t, %d nodes", seen(), len(cluster.Nodes()))
	}
}

func TestPages(t *testing.T) {
	cluster := start(t, teleporttest.Options{})
	c := connect(t, cluster)
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		node, err := types.NewNode(name, types.SubKindOpenSSHNode, types.ServerSpecV2{Addr: "192.0.2.1:22", Hostname: "web-" + name}, nil)
		check(t, err)
		_, err = c.UpsertNode(t.Context(), node)
		check(t, err)
	}
	var names []string
	request := &proto.ListResourcesRequest{ResourceType: types.KindNode, Namespace: "default", Limit: 2}
	for {
		page, err := c.GetResources(t.Context(), request)
		check(t, err)
		for _, resource := range page.Resources {
			names = append(names, resource.GetNode().GetName())
		}
		if request.StartKey = page.NextKey; page.NextKey == "" {
			break
		}
	}
	if strings.Join(names, "") != "abcde" {
		t.Errorf("pages hold %q", names)
	}
}

// Only the auth service's own name takes a login; at the proxy's name, and
// without a certificate of this cluster, nobody gets further than a bot's join.
func TestCallsNeedLogin(t *testing.T) {
	cluster := start(t, teleporttest.Options{})
	ping := func(config *tls.Config) error {
		conn, err := grpc.NewClient(cluster.Address(), grpc.WithTransportCredentials(credentials.NewTLS(config)))
		check(t, err)
		defer conn.Close()
		_, err = proto.NewAuthServiceClient(conn).Ping(t.Context(), &proto.PingRequest{})
		return err
	}
	login, err := client.LoadIdentityFileFromString(string(cluster.IdentityFile())).TLSConfig()
	check(t, err)
	check(t, ping(login))

	anonymous := login.Clone()
	anonymous.GetClientCertificate = nil
	if err := ping(anonymous); status.Code(err) != codes.PermissionDenied {
		t.Errorf("without a certificate: got %v", err)
	}
	proxy := login.Clone()
	proxy.ServerName, proxy.RootCAs = "localhost", x509.NewCertPool()
	proxy.RootCAs.AppendCertsFromPEM(cluster.RootsPEM())
	if err := ping(proxy); status.Code(err) != codes.PermissionDenied {
		t.Errorf("at the proxy's name: got %v", err)
	}
	if calls := cluster.Calls()["Ping"]; calls != 1 {
		t.Errorf("%d pings came through, want 1", calls)
	}
}

func TestExport(t *testing.T) {
	cluster := start(t, teleporttest.Options{})
	web, err := caexport.NewHTTPClient(cluster.RootsPEM())
	check(t, err)
	fetch := func(kind caexport.Kind) []string {
		t.Helper()
		keys, err := caexport.Fetch(t.Context(), web, cluster.Address(), kind)
		check(t, err)
		var prints []string
		for _, key := range keys {
			prints = append(prints, ssh.FingerprintSHA256(key))
		}
		return prints
	}
	if got := fetch(caexport.Host); !slices.Equal(got, []string{ssh.FingerprintSHA256(cluster.HostCA())}) {
		t.Errorf("host export %v", got)
	}
	old := ssh.FingerprintSHA256(cluster.OpenSSHCA())
	check(t, cluster.RotateOpenSSH(teleporttest.PhaseInit))
	if got := fetch(caexport.OpenSSH); len(got) != 2 || got[0] != old {
		t.Errorf("in phase init: %v, want two and %s first", got, old)
	}
	check(t, cluster.RotateOpenSSH(teleporttest.PhaseUpdateClients))
	if got := fetch(caexport.OpenSSH); len(got) != 2 || got[1] != old {
		t.Errorf("in phase update_clients: %v, want two and %s second", got, old)
	}
	if err := cluster.RotateOpenSSH(teleporttest.PhaseInit); err == nil {
		t.Error("a second rotation began within the first")
	}
}

func TestFind(t *testing.T) {
	cluster := start(t, teleporttest.Options{ClusterName: "c.example"})
	web, err := caexport.NewHTTPClient(cluster.RootsPEM())
	check(t, err)
	for _, path := range []string{"/webapi/find", "/webapi/ping"} {
		response, err := web.Get("https://" + cluster.Address() + path)
		check(t, err)
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		check(t, err)
		if response.StatusCode != http.StatusOK || !strings.Contains(string(body), `"cluster_name":"c.example"`) {
			t.Errorf("%s: %s %s", path, response.Status, body)
		}
	}
}

func TestInterceptTheProxy(t *testing.T) {
	cluster := start(t, teleporttest.Options{})
	web, err := caexport.NewHTTPClient(cluster.RootsPEM())
	check(t, err)
	for want, answer := range map[string]error{"429": trace.LimitExceeded("slow down"), "500": errors.New("out of order")} {
		cluster.Intercept(func(_ context.Context, method string) error {
			if method == "/webapi/auth/export" {
				return answer
			}
			return nil
		})
		if _, err := caexport.Fetch(t.Context(), web, cluster.Address(), caexport.Host); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// RSA CAs sign with SHA-512, never with SHA-1.
func TestRSACAs(t *testing.T) {
	cluster := start(t, teleporttest.Options{KeyType: teleporttest.KeyRSA})
	cert, err := cluster.IssueUserCertificate(sshkeytest.NewSigner(t).PublicKey(), []string{"admin"}, time.Hour)
	check(t, err)
	if cert.Signature.Format != ssh.KeyAlgoRSASHA512 || cert.SignatureKey.Type() != ssh.KeyAlgoRSA {
		t.Errorf("signed by %s with %s", cert.SignatureKey.Type(), cert.Signature.Format)
	}
}

// Teleport 19 limits the export for each source address; 13 does not.
func TestExportLimit(t *testing.T) {
	for generation, limited := range map[teleporttest.Generation]bool{teleporttest.Generation13: false, teleporttest.Generation19: true} {
		clock := time.Now()
		cluster := start(t, teleporttest.Options{Generation: generation, Now: func() time.Time { return clock }})
		web, err := caexport.NewHTTPClient(cluster.RootsPEM())
		check(t, err)
		fetch := func() error {
			_, err := caexport.Fetch(t.Context(), web, cluster.Address(), caexport.Host)
			return err
		}
		for range 40 {
			check(t, fetch())
		}
		if err := fetch(); limited != (err != nil && strings.Contains(err.Error(), "429")) {
			t.Errorf("%d: the 41st at once: %v", generation, err)
		}
		clock = clock.Add(3 * time.Second)
		check(t, fetch())
	}
}

// Teleport 13 restarts in a rotation of the Host CA. In 19 connections stay, even
// those of logins whose CA is gone.
func TestRotationAndConnections(t *testing.T) {
	for generation, stays := range map[teleporttest.Generation]bool{teleporttest.Generation13: false, teleporttest.Generation19: true} {
		cluster := start(t, teleporttest.Options{Generation: generation})
		c := connect(t, cluster)
		_, err := c.Ping(t.Context())
		check(t, err)
		for _, phase := range []teleporttest.Phase{
			teleporttest.PhaseInit, teleporttest.PhaseUpdateClients, teleporttest.PhaseUpdateServers, teleporttest.PhaseStandby,
		} {
			check(t, cluster.RotateHost(phase))
			check(t, cluster.RotateUser(phase))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := c.Ping(ctx); (err == nil) != stays {
			t.Errorf("%d: after the rotations: %v", generation, err)
		}
	}
}
