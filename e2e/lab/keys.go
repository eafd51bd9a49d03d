//go:build linux

package lab

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/e2e/machine"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
)

// User is the user that cloud-init creates on the machines.
const User = "debian"

// keys are the lab's files that ssh, Packer and the machines read.
type keys struct {
	web      tls.Certificate // of the signer's URL
	otherWeb tls.Certificate // of a server that nobody trusts

	webCA    string // file that the web certificate is verified with
	keyPair  string // private key of the EC2 key pair
	stranger string // private key, with a user certificate of another cluster next to it
}

func (l *Lab) makeKeys(context.Context) error {
	k := &keys{
		webCA: filepath.Join(l.dir, "signer_ca.pem"), keyPair: filepath.Join(l.dir, "key-pair"), stranger: filepath.Join(l.dir, "stranger"),
	}
	l.keys = k
	web, err := newWebCertificate()
	if err != nil {
		return err
	}
	k.web = web
	if k.otherWeb, err = newWebCertificate(); err != nil {
		return err
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate[0]})
	if err := os.WriteFile(k.webCA, ca, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(l.knownHosts(), l.Cluster.KnownHosts(), 0o600); err != nil {
		return err
	}
	if _, err := writeKey(k.keyPair); err != nil {
		return err
	}
	other, err := teleporttest.Start(teleporttest.Options{ClusterName: l.Cluster.Name()})
	if err != nil {
		return err
	}
	defer other.Close()
	return writeLogin(k.stranger, other)
}

// knownHosts is a file with the cluster's @cert-authority line, and nothing else.
func (l *Lab) knownHosts() string { return filepath.Join(l.dir, "known_hosts") }

// writeLogin writes a key, and a certificate from the cluster where ssh looks for it.
func writeLogin(path string, c *teleporttest.Cluster) error {
	key, err := writeKey(path)
	if err != nil {
		return err
	}
	certificate, err := c.IssueUserCertificate(key, []string{User}, time.Hour)
	if err != nil {
		return err
	}
	return os.WriteFile(path+"-cert.pub", ssh.MarshalAuthorizedKey(certificate), 0o600)
}

// writeKey creates a key, and writes it to path and its public half to path.pub.
func writeKey(path string) (ssh.PublicKey, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		return nil, err
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return nil, err
	}
	return key, os.WriteFile(path+".pub", ssh.MarshalAuthorizedKey(key), 0o600)
}

// newWebCertificate creates a self-signed certificate for the hub's address.
func newWebCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(now.UnixNano()),
		Subject:               pkix.Name{CommonName: "Hallmark lab"},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(24 * time.Hour),
		IPAddresses:           []net.IP{net.ParseIP(machine.Hub)},
		DNSNames:              []string{APIHost, lambdaHost},
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{certificate}, PrivateKey: key}, err
}
