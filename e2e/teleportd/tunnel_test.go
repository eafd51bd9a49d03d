//go:build linux && teleport

package teleportd_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/e2e/teleportd"
)

// A machine's certificate must not let its thief pass for the machine's agent: the
// proxy would hand people's sessions to whoever opened the tunnel, from anywhere.
func TestReverseTunnel(t *testing.T) {
	cluster := start(t, "tunnel.test", "127.83.2.1")
	addSigner(t, cluster)
	name := uuid.NewString() + "." + cluster.Name()

	t.Run("ProvisionToken", func(t *testing.T) {
		err := openTunnel(t, cluster, name, signOurs(t, cluster, name))
		var refused *ssh.OpenChannelError
		if !errors.As(err, &refused) || !strings.Contains(refused.Message, "unsupported role ProvisionToken") {
			t.Errorf("got %v, want that role ProvisionToken is unsupported", err)
		}
	})
	// The same with a certificate that Teleport's own tool makes for OpenSSH servers.
	t.Run("Node", func(t *testing.T) {
		if err := openTunnel(t, cluster, name, signNode(t, cluster, name)); err != nil {
			t.Errorf("the proxy refuses it (%v): then our role protects from nothing", err)
		}
	})
}

// signOurs makes a host certificate as the signer does.
func signOurs(t *testing.T, cluster *teleportd.Cluster, principal string) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
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
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn := dialTunnel(ctx, t, cluster)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	client, _, _, err := ssh.NewClientConn(conn, cluster.Address(), &ssh.ClientConfig{
		User: name, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), // TLS has seen to that
	})
	if err != nil {
		return err
	}
	defer client.Close()
	channel, _, err := client.OpenChannel("teleport-heartbeat", nil)
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
