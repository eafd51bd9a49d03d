package teleporttest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/gravitational/teleport/api/constants"
	"github.com/gravitational/teleport/api/identityfile"
	"github.com/gravitational/teleport/api/types"
	"github.com/gravitational/teleport/api/utils"
	"golang.org/x/crypto/ssh"
)

// KeyType is the type of an SSH authority's key.
type KeyType string

// The key types of Teleport's SSH authorities: RSA in clusters made before
// version 17 and in FIPS ones, Ed25519 in others.
const (
	KeyRSA     KeyType = "rsa"
	KeyEd25519 KeyType = "ed25519"
)

// Phase is a step of the rotation of an authority by hand, as `tctl auth rotate
// --phase` takes it.
type Phase string

// The phases in the order that a rotation takes. PhaseRollback may follow each of
// the first three and goes on to PhaseStandby.
const (
	PhaseInit          Phase = "init"           // the new key is trusted, the old one signs
	PhaseUpdateClients Phase = "update_clients" // the new key signs, the old one is trusted
	PhaseUpdateServers Phase = "update_servers" // the same
	PhaseStandby       Phase = "standby"        // one key is left: the one that signs
	PhaseRollback      Phase = "rollback"       // the old key signs, the new one is trusted
)

// authorities are all the keys of a cluster.
type authorities struct {
	cluster string
	now     func() time.Time

	openssh, host, user *sshAuthority
	web                 *tlsAuthority // signs the proxy's web certificate, as a company's CA would

	mu               sync.Mutex
	hostTLS, userTLS *tlsAuthority // sign the auth service's certificate and its clients'
	auth             *tls.Config   // of the auth service, by these two
}

func newAuthorities(o Options) (*authorities, error) {
	a := &authorities{cluster: o.ClusterName, now: o.Now}
	for _, ca := range []**sshAuthority{&a.openssh, &a.host, &a.user} {
		signer, err := newSSHSigner(o.KeyType)
		if err != nil {
			return nil, err
		}
		*ca = &sshAuthority{keyType: o.KeyType, active: signer}
	}
	for _, ca := range []struct {
		at   **tlsAuthority
		name string
	}{{&a.hostTLS, o.ClusterName}, {&a.userTLS, o.ClusterName}, {&a.web, "Test web CA"}} {
		authority, err := newTLSAuthority(ca.name)
		if err != nil {
			return nil, err
		}
		*ca.at = authority
	}
	return a, a.renewAuth()
}

// ReplaceHostTLS puts another authority in the place of the one that signs the auth
// service's certificate, as a rotation of the Host authority does in the end: whoever
// knows only the old one does not believe the new certificate.
func (c *Cluster) ReplaceHostTLS() error { return c.ca.replaceTLS(&c.ca.hostTLS) }

// ReplaceUserTLS does so with the one that signs the certificates of clients: those from
// before are turned away. Connections that are open stay.
func (c *Cluster) ReplaceUserTLS() error { return c.ca.replaceTLS(&c.ca.userTLS) }

func (a *authorities) replaceTLS(at **tlsAuthority) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	authority, err := newTLSAuthority(a.cluster)
	if err != nil {
		return err
	}
	*at = authority
	return a.renewAuth()
}

// tls returns the authorities of the auth service's certificate and of its clients'.
func (a *authorities) tls() (host, user *tlsAuthority) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.hostTLS, a.userTLS
}

// RotateOpenSSH takes the OpenSSH authority to the phase.
func (c *Cluster) RotateOpenSSH(phase Phase) error { return c.ca.openssh.rotate(phase) }

// RotateHost takes the SSH key of the Host authority to the phase; its TLS key
// stays.
func (c *Cluster) RotateHost(phase Phase) error { return c.ca.host.rotate(phase) }

// sshAuthority is an authority's SSH keys: the one that signs, and while a
// rotation lasts another one that is trusted.
type sshAuthority struct {
	keyType KeyType

	mu         sync.Mutex
	active     ssh.Signer
	additional ssh.Signer // nil in standby
	newSigns   bool       // during a rotation: the active key is the new one
}

func (a *sshAuthority) signer() ssh.Signer {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.active
}

// trusted returns the public keys, the signing one first.
func (a *sshAuthority) trusted() []ssh.PublicKey {
	a.mu.Lock()
	defer a.mu.Unlock()
	trusted := []ssh.PublicKey{a.active.PublicKey()}
	if a.additional != nil {
		trusted = append(trusted, a.additional.PublicKey())
	}
	return trusted
}

func (a *sshAuthority) rotate(phase Phase) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if rotating := a.additional != nil; rotating == (phase == PhaseInit) {
		return fmt.Errorf("rotate to phase %s: a rotation is under way: %t", phase, rotating)
	}
	switch phase {
	case PhaseInit:
		signer, err := newSSHSigner(a.keyType)
		if err != nil {
			return err
		}
		a.additional, a.newSigns = signer, false
	case PhaseUpdateClients, PhaseUpdateServers:
		a.sign(true)
	case PhaseRollback:
		a.sign(false)
	case PhaseStandby:
		a.additional, a.newSigns = nil, false
	default:
		return fmt.Errorf("rotate: unknown phase %q", phase)
	}
	return nil
}

// sign makes the new or the old key the active one.
func (a *sshAuthority) sign(withNew bool) {
	if a.newSigns != withNew {
		a.active, a.additional, a.newSigns = a.additional, a.active, withNew
	}
}

func newSSHSigner(kind KeyType) (ssh.Signer, error) {
	switch kind {
	case KeyEd25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		return ssh.NewSignerFromKey(key)
	case KeyRSA:
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return nil, err
		}
		signer, err := ssh.NewSignerFromKey(key)
		if err != nil {
			return nil, err
		}
		return ssh.NewSignerWithAlgorithms(signer.(ssh.AlgorithmSigner), []string{ssh.KeyAlgoRSASHA512})
	}
	return nil, fmt.Errorf("unknown key type %q", kind)
}

// signUser makes a user certificate with the permissions of an interactive login.
func signUser(ca ssh.Signer, key ssh.PublicKey, user string, logins []string, now time.Time, ttl time.Duration) (*ssh.Certificate, error) {
	cert := &ssh.Certificate{
		Key:             key,
		CertType:        ssh.UserCert,
		KeyId:           user,
		ValidPrincipals: logins,
		ValidAfter:      uint64(now.Add(-time.Minute).Unix()),
		ValidBefore:     uint64(now.Add(ttl).Unix()),
		Permissions: ssh.Permissions{Extensions: map[string]string{
			"permit-pty": "", "permit-port-forwarding": "", "permit-agent-forwarding": "",
		}},
	}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		return nil, err
	}
	return cert, nil
}

// tlsAuthority signs X.509 certificates.
type tlsAuthority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newTLSAuthority(name string) (*tlsAuthority, error) {
	template := &x509.Certificate{
		// Teleport reads the cluster's name from the organization.
		Subject:               pkix.Name{CommonName: name, Organization: []string{name}},
		NotAfter:              time.Now().AddDate(10, 0, 0),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return signTLS(template, key, template, key)
}

// issue signs a certificate for a new key.
func (a *tlsAuthority) issue(template *x509.Certificate) (*tlsAuthority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return signTLS(template, key, a.cert, a.key)
}

func signTLS(template *x509.Certificate, key crypto.Signer, parent *x509.Certificate, parentKey crypto.Signer) (*tlsAuthority, error) {
	cert, err := certify(template, key.Public(), parent, parentKey)
	if err != nil {
		return nil, err
	}
	return &tlsAuthority{cert: cert, key: key}, nil
}

// certify signs a certificate for a key, which may be somebody else's.
func certify(template *x509.Certificate, key crypto.PublicKey, parent *x509.Certificate, parentKey crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	// An hour before now, and before the end of a certificate made to have expired.
	template.NotBefore = time.Now().Add(-time.Hour)
	if !template.NotBefore.Before(template.NotAfter) {
		template.NotBefore = template.NotAfter.Add(-time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, parentKey)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func (a *tlsAuthority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (a *tlsAuthority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func (a *tlsAuthority) certificate() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{a.cert.Raw}, PrivateKey: a.key, Leaf: a.cert}
}

// isAuthName tells the names of auth services, which every Teleport client sends,
// from those of proxies.
func isAuthName(serverName string) bool {
	return serverName == constants.APIDomain || strings.HasSuffix(serverName, "."+constants.APIDomain)
}

// renewAuth makes what the auth service needs for TLS.
func (a *authorities) renewAuth() error {
	certificate, err := a.hostTLS.issue(serverTemplate([]string{constants.APIDomain, utils.EncodeClusterName(a.cluster)}))
	if err != nil {
		return err
	}
	a.auth = &tls.Config{
		Certificates: []tls.Certificate{certificate.certificate()},
		ClientAuth:   tls.VerifyClientCertIfGiven, // bots that join have none
		ClientCAs:    a.userTLS.pool(),
		NextProtos:   []string{"h2", "http/1.1"}, // gRPC, and Teleport's older API
	}
	return nil
}

func (a *authorities) authConfig() *tls.Config {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.auth
}

// webConfig returns what the proxy's web server needs for TLS.
func (a *authorities) webConfig(hosts []string) (*tls.Config, error) {
	certificate, err := a.web.issue(serverTemplate(hosts))
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{certificate.certificate()},
		// The last two are how clients of the join service and of the tunnel service know
		// a proxy with TLS routing; like Teleport's it prefers the plain names.
		NextProtos: []string{"h2", "http/1.1", "teleport-proxy-grpc", "teleport-reversetunnel"},
	}, nil
}

func serverTemplate(hosts []string) *x509.Certificate {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: hosts[0]},
		NotAfter:    time.Now().AddDate(1, 0, 0),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
			continue
		}
		template.DNSNames = append(template.DNSNames, host)
	}
	return template
}

// identityFile makes a login in the form of `tctl auth sign`: one key with an SSH
// and a TLS certificate, and the cluster's authorities.
func (a *authorities) identityFile(user string, ttl time.Duration) ([]byte, error) {
	hostTLS, userTLS := a.tls()
	leaf, err := userTLS.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: []string{user}}, // the roles
		NotAfter:    time.Now().Add(ttl),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(leaf.key)
	if err != nil {
		return nil, err
	}
	sshKey, err := ssh.NewPublicKey(leaf.key.Public())
	if err != nil {
		return nil, err
	}
	sshCert, err := signUser(a.user.signer(), sshKey, user, []string{"-teleport-internal-join"}, time.Now(), max(ttl, 0))
	if err != nil {
		return nil, err
	}
	return identityfile.Encode(&identityfile.IdentityFile{
		PrivateKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		Certs:      identityfile.Certs{SSH: ssh.MarshalAuthorizedKey(sshCert), TLS: leaf.pem()},
		CACerts: identityfile.CACerts{
			SSH: knownHostsLines(a.cluster, a.host.trusted()),
			TLS: [][]byte{hostTLS.pem()},
		},
	})
}

// knownHostsLines are the host authority as a known_hosts file has it.
func knownHostsLines(cluster string, keys []ssh.PublicKey) [][]byte {
	var lines [][]byte
	for _, key := range keys {
		line := fmt.Appendf(nil, "@cert-authority %s,*.%s %s type=host\n", cluster, cluster, authorizedKey(key))
		lines = append(lines, line)
	}
	return lines
}

func authorizedKey(key ssh.PublicKey) string {
	return string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(key)))
}

// resource is the authority as the auth service shows it: public keys only.
func (a *sshAuthority) resource(cluster string, kind types.CertAuthType) (*types.CertAuthorityV2, error) {
	keys := a.trusted()
	ca := &types.CertAuthorityV2{Spec: types.CertAuthoritySpecV2{
		Type:                  kind,
		ClusterName:           cluster,
		ActiveKeys:            keySet(keys[:1]),
		AdditionalTrustedKeys: keySet(keys[1:]),
	}}
	return ca, ca.CheckAndSetDefaults()
}

func keySet(keys []ssh.PublicKey) types.CAKeySet {
	var set types.CAKeySet
	for _, key := range keys {
		set.SSH = append(set.SSH, &types.SSHKeyPair{PublicKey: ssh.MarshalAuthorizedKey(key)})
	}
	return set
}
