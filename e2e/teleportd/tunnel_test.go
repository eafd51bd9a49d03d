//go:build linux && teleport

package teleportd_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gravitational/teleport/api/client"
	"github.com/gravitational/teleport/api/constants"
	trustpb "github.com/gravitational/teleport/api/gen/proto/go/teleport/trust/v1"
	"github.com/gravitational/teleport/api/types"
	"github.com/gravitational/trace"
	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/hallmark-ssh/hallmark/e2e/teleportd"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// A thief with a machine's certificate must not pass for the machine's agent: the proxy
// would send people's sessions through the thief's tunnel, opened from anywhere. So the
// tunnel refuses every role that the signer asks for. A server may not issue all of them.
func TestReverseTunnel(t *testing.T) {
	cluster := start(t, "tunnel.test", "127.83.2.1")
	addSigner(t, cluster)
	name := uuid.NewString() + "." + cluster.Name()
	issuer := newIssuer(t, cluster)

	for _, role := range teleport.HostRoles() {
		if role == "Password" {
			continue // a name that some versions give Signup, and no role to ask for
		}
		t.Run(role, func(t *testing.T) {
			signer, err := issuer.sign(t, types.SystemRole(role), name)
			written := cluster.Behavior().Roles[role]
			if written == "" {
				if err == nil || !strings.Contains(err.Error(), "not registered") {
					t.Errorf("got %v, want that the role is not registered", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := signer.PublicKey().(*ssh.Certificate).Extensions[teleporttest.ExtensionRole]; got != written {
				t.Errorf("the certificate names role %q, want %q", got, written)
			}
			refused(t, openTunnel(t, cluster, name, signer), written)
		})
	}
	t.Run("as the signer issues it", func(t *testing.T) {
		signer := signAsSigner(t, cluster, name)
		refused(t, openTunnel(t, cluster, name, signer), signer.PublicKey().(*ssh.Certificate).Extensions[teleporttest.ExtensionRole])
	})
	// The same with a certificate that Teleport's own tool makes for OpenSSH servers.
	t.Run("Node", func(t *testing.T) {
		if err := openTunnel(t, cluster, name, signNode(t, cluster, name)); err != nil {
			t.Errorf("the proxy refuses it (%v): then the other roles protect from nothing", err)
		}
	})
}

// refused checks that the proxy refused a tunnel because of the role.
func refused(t *testing.T, err error, role string) {
	t.Helper()
	refusal, ok := errors.AsType[*ssh.OpenChannelError](err)
	if want := "unsupported role " + role; !ok || !strings.Contains(refusal.Message, want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

// issuer asks for host certificates of any role, by the signer's login.
type issuer struct {
	cluster string
	api     *client.Client
	http    *http.Client
}

func newIssuer(t *testing.T, cluster *teleportd.Cluster) issuer {
	t.Helper()
	identity, err := cluster.SignIdentity(t.Context(), "hallmark-enroll", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	credentials := client.LoadIdentityFile(identity)
	api, err := client.New(t.Context(), client.Config{Addrs: []string{cluster.AuthAddress()}, Credentials: []client.Credentials{credentials}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = api.Close() })
	config, err := credentials.TLSConfig()
	if err != nil {
		t.Fatal(err)
	}
	config.ServerName, config.NextProtos = constants.APIDomain, []string{"http/1.1"}
	transport := &http.Transport{DialTLSContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&tls.Dialer{Config: config}).DialContext(ctx, network, cluster.AuthAddress())
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return issuer{cluster: cluster.Name(), api: api, http: &http.Client{Transport: transport}}
}

// sign makes a host certificate of the role: over gRPC, or over HTTP on servers that do
// not sign host keys over gRPC.
func (i issuer) sign(t *testing.T, role types.SystemRole, principal string) (ssh.Signer, error) {
	t.Helper()
	key := sshkeytest.NewSigner(t)
	public := ssh.MarshalAuthorizedKey(key.PublicKey())
	response, err := i.api.TrustClient().GenerateHostCert(t.Context(), &trustpb.GenerateHostCertRequest{
		Key: public, Principals: []string{principal}, ClusterName: i.cluster, Role: string(role), Ttl: durationpb.New(time.Hour),
	})
	var line []byte
	switch {
	case trace.IsNotImplemented(err) || status.Code(err) == codes.Unimplemented:
		if line, err = i.post(t.Context(), public, role, principal); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	default:
		line = response.SshCertificate
	}
	certificate, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		return nil, err
	}
	return certSigner(t, certificate.(*ssh.Certificate), key), nil
}

func (i issuer) post(ctx context.Context, key []byte, role types.SystemRole, principal string) ([]byte, error) {
	body, err := json.Marshal(map[string]any{
		"key": key, "hostname": "", "node_name": "", "principals": []string{principal},
		"auth_domain": i.cluster, "roles": []types.SystemRole{role}, "ttl": time.Hour,
	})
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+constants.APIDomain+"/v2/ca/host/certs", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := i.http.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", response.Status, data)
	}
	var line string
	err = json.Unmarshal(data, &line)
	return []byte(line), err
}

// signAsSigner makes a host certificate as the signer does.
func signAsSigner(t *testing.T, cluster *teleportd.Cluster, principal string) ssh.Signer {
	t.Helper()
	key := sshkeytest.NewSigner(t)
	certificate, err := target(cluster, cluster.Address()).Connect(t).SignHostKey(t.Context(), key.PublicKey(), []string{principal}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return certSigner(t, certificate, key)
}

func signNode(t *testing.T, cluster *teleportd.Cluster, principal string) ssh.Signer {
	t.Helper()
	out := filepath.Join(t.TempDir(), "host")
	if _, err := cluster.Tctl(t.Context(), "auth", "sign", "--format=openssh", "--host="+principal, "--out="+out); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.ParsePrivateKey(data)
	if err != nil {
		t.Fatal(err)
	}
	if data, err = os.ReadFile(out + "-cert.pub"); err != nil {
		t.Fatal(err)
	}
	certificate, _, _, _, err := ssh.ParseAuthorizedKey(data)
	if err != nil {
		t.Fatal(err)
	}
	return certSigner(t, certificate.(*ssh.Certificate), key)
}

func certSigner(t *testing.T, certificate *ssh.Certificate, key ssh.Signer) ssh.Signer {
	t.Helper()
	signer, err := ssh.NewCertSigner(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// openTunnel does what an agent does to register its tunnel with the proxy.
func openTunnel(t *testing.T, cluster *teleportd.Cluster, name string, signer ssh.Signer) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn := dialTunnel(ctx, t, cluster)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	connection, _, _, err := ssh.NewClientConn(conn, cluster.Address(), &ssh.ClientConfig{
		User: name, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), // TLS has seen to that
	})
	if err != nil {
		return err
	}
	defer connection.Close()
	channel, _, err := connection.OpenChannel("teleport-heartbeat", nil)
	if err != nil {
		return err
	}
	_, err = channel.SendRequest("ping", false, nil)
	return err
}

func dialTunnel(ctx context.Context, t *testing.T, cluster *teleportd.Cluster) net.Conn {
	t.Helper()
	config := &tls.Config{NextProtos: []string{"teleport-reversetunnel"}, RootCAs: x509.NewCertPool()}
	config.RootCAs.AppendCertsFromPEM(cluster.RootsPEM())
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", cluster.Address())
	if err != nil {
		t.Fatal(err)
	}
	return conn
}
