package teleport

import (
	"bytes"
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
	"github.com/gravitational/teleport/api/client/proto"
	"github.com/gravitational/trace"
	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

const (
	// botLifetime is the lifetime to request for a bot's certificates. They are replaced,
	// never renewed: the shorter they live, the less a leaked one is worth.
	botLifetime = time.Hour

	// newKeyFields is the first major version that takes separate SSH and TLS keys. Older
	// versions take one key for both.
	newKeyFields = 17
)

// Bot is a Machine ID bot that joins with the AWS role it runs in (Teleport's join method
// "iam"), so nothing secret is stored. It works with a certificate for Role and renews it
// when two thirds of its lifetime are over.
type Bot struct {
	// Token is the name of the join token; it is no secret.
	Token string
	// Role is the bot's working role, one of those it may use.
	Role string
	// Credentials are the credentials of the AWS role.
	Credentials aws.CredentialsProvider
	// Region is the region whose STS confirms the role. Teleport only knows regions from before
	// its release.
	Region ec2ref.Region
	// STSHost is the host name of that STS.
	STSHost string
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

// botKey is the one key of a login.
type botKey struct {
	private crypto.Signer
	ssh     ssh.PublicKey
	pkix    []byte // DER
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
	pkix, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		return nil, err
	}
	return &botKey{private: private, ssh: public, pkix: pkix}, nil
}

// sshLine returns the public key as a line of authorized_keys.
func (k *botKey) sshLine() []byte { return sshkey.File(k.ssh) }

func (k *botKey) pkixPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.pkix})
}

// identity combines the key with what Teleport certified.
func (k *botKey) identity(c *certified, now time.Time) (*identity, error) {
	id, err := newIdentity(tls.Certificate{Certificate: [][]byte{c.certificate}, PrivateKey: k.private}, c.roots, now)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(id.leaf.RawSubjectPublicKeyInfo, k.pkix) {
		return nil, errors.New("the TLS certificate in the answer is for another key")
	}
	return id, nil
}

// certified is the part of Teleport's answer to a certificate request that the client
// uses.
type certified struct {
	certificate []byte         // of TLS, DER
	roots       *x509.CertPool // of the auth service's certificate
}

// certifiedPEM reads an answer to Teleport's older calls.
func certifiedPEM(certs *proto.Certs, moreRoots ...[]byte) (*certified, error) {
	block, _ := pem.Decode(certs.TLS)
	if block == nil {
		return nil, errors.New("no TLS certificate in the answer")
	}
	roots := x509.NewCertPool()
	for _, ca := range append(certs.TLSCACerts, moreRoots...) {
		roots.AppendCertsFromPEM(ca)
	}
	return &certified{block.Bytes, roots}, nil
}

// becomeRole requests a certificate for the bot's working role.
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
	warnOutdated(ctx, config, pong.ServerVersion)
	doing := "become role " + b.Role + " in Teleport"
	certs, err := conn.api.GenerateUserCerts(ctx, b.roleRequest(joined, key, pong, now))
	if trace.IsNotFound(err) {
		return nil, fmt.Errorf("%s: %w: %w (create the role from templates/teleport/role.yaml, or correct teleport.login.role)", doing, ErrDenied, err)
	}
	if err != nil {
		return nil, failed(doing, err)
	}
	// What comes with the certificate does not name the CA of the auth
	// service's own certificate.
	ca, err := conn.api.GetClusterCACert(ctx)
	if err != nil {
		return nil, failed("read Teleport's TLS CA", err)
	}
	answer, err := certifiedPEM(certs, ca.TLSCA)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	id, err := key.identity(answer, now)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	return id, nil
}

func (b Bot) roleRequest(joined *identity, key *botKey, pong proto.PingResponse, now time.Time) proto.UserCertsRequest {
	request := proto.UserCertsRequest{
		Username:        joined.leaf.Subject.CommonName,
		Expires:         now.Add(botLifetime),
		RouteToCluster:  pong.ClusterName,
		UseRoleRequests: true,
		RoleRequests:    []string{b.Role},
	}
	if major := majorOf(pong.ServerVersion); major != 0 && major < newKeyFields {
		request.PublicKey = key.sshLine() //nolint:staticcheck // all that those versions know
	} else {
		request.SSHPublicKey, request.TLSPublicKey = key.sshLine(), key.pkixPEM()
	}
	return request
}
