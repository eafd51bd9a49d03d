package teleporttest

import (
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

	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// KeyType is the type of an SSH CA's key.
type KeyType string

// The key types of Teleport's SSH CAs: RSA in clusters that were created before version 17 and
// in FIPS clusters, Ed25519 in others.
const (
	KeyRSA     KeyType = "rsa"
	KeyEd25519 KeyType = "ed25519"
)

// Phase is a step of a manual CA rotation, as `tctl auth rotate --phase` names it.
type Phase string

// The phases in the order of a rotation. PhaseRollback may follow each of the first three and
// continues to PhaseStandby.
const (
	PhaseInit          Phase = "init"           // the new key is trusted, the old one signs
	PhaseUpdateClients Phase = "update_clients" // the new key signs, the old one is trusted
	PhaseUpdateServers Phase = "update_servers" // the same
	PhaseStandby       Phase = "standby"        // one key is left: the one that signs
	PhaseRollback      Phase = "rollback"       // the old key signs, the new one is trusted
)

// caSet are all keys of a cluster.
type caSet struct {
	cluster string
	now     func() time.Time

	openssh, host, user *rotatingCA
	web                 *tlsCA // signs the proxy's web certificate, as a company's CA would

	mu   sync.Mutex
	auth *tls.Config // of the auth service, by the Host and User CAs
}

func newCASet(o Options) (*caSet, error) {
	a := &caSet{cluster: o.ClusterName, now: o.Now}
	var err error
	if a.openssh, err = newRotatingCA(o, false); err != nil {
		return nil, err
	}
	if a.host, err = newRotatingCA(o, true); err != nil {
		return nil, err
	}
	if a.user, err = newRotatingCA(o, true); err != nil {
		return nil, err
	}
	if a.web, err = newTLSCA("Test web CA"); err != nil {
		return nil, err
	}
	return a, a.renewAuth()
}

// RotateOpenSSH moves the OpenSSH CA to the phase.
func (c *Cluster) RotateOpenSSH(phase Phase) error { return c.ca.openssh.rotate(phase) }

// RotateHost moves the Host CA to the phase. It signs host certificates, and the auth
// service's own.
func (c *Cluster) RotateHost(phase Phase) error {
	if err := c.ca.host.rotate(phase); err != nil {
		return err
	}
	if err := c.ca.renewAuth(); err != nil {
		return err
	}
	if c.options.Generation == Generation13 && phase != PhaseInit {
		c.conns.closeAll() // it restarts
	}
	return nil
}

// RotateUser moves the User CA to the phase. It signs logins, including those of bots.
func (c *Cluster) RotateUser(phase Phase) error {
	if err := c.ca.user.rotate(phase); err != nil {
		return err
	}
	return c.ca.renewAuth()
}

// rotatingCA is the key that signs and, during a rotation, another trusted key.
type rotatingCA struct {
	cluster string
	keyType KeyType

	mu         sync.Mutex
	active     *caKey
	additional *caKey // nil in standby
	newSigns   bool   // during a rotation: the active key is the new one
	serving    *caKey // signs the servers' certificates
}

// caKey is a key of a CA, in two kinds that rotate together.
type caKey struct {
	ssh ssh.Signer
	tls *tlsCA // nil if it has none
}

func newRotatingCA(o Options, withTLS bool) (*rotatingCA, error) {
	a := &rotatingCA{keyType: o.KeyType}
	if withTLS {
		a.cluster = o.ClusterName
	}
	var err error
	a.active, err = a.newKey()
	a.serving = a.active
	return a, err
}

func (a *rotatingCA) newKey() (*caKey, error) {
	signer, err := newSSHSigner(a.keyType)
	if err != nil || a.cluster == "" {
		return &caKey{ssh: signer}, err
	}
	ca, err := newTLSCA(a.cluster)
	return &caKey{signer, ca}, err
}

func (a *rotatingCA) signer() ssh.Signer {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.active.ssh
}

func (a *rotatingCA) signerTLS() *tlsCA {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.active.tls
}

// servingTLS signs the servers' certificates: with the new key from update_servers on.
func (a *rotatingCA) servingTLS() *tlsCA {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.serving.tls
}

// keys returns all trusted keys, the signing one first.
func (a *rotatingCA) keys() []*caKey {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.additional == nil {
		return []*caKey{a.active}
	}
	return []*caKey{a.active, a.additional}
}

// trusted returns the public SSH keys, the signing one first.
func (a *rotatingCA) trusted() []ssh.PublicKey {
	var trusted []ssh.PublicKey
	for _, key := range a.keys() {
		trusted = append(trusted, key.ssh.PublicKey())
	}
	return trusted
}

// trustedTLS returns the trusted certificates, the signing key's first.
func (a *rotatingCA) trustedTLS() [][]byte {
	var trusted [][]byte
	for _, key := range a.keys() {
		trusted = append(trusted, key.tls.pem())
	}
	return trusted
}

func (a *rotatingCA) rotate(phase Phase) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if rotating := a.additional != nil; rotating == (phase == PhaseInit) {
		return fmt.Errorf("rotate to phase %s: a rotation is under way: %t", phase, rotating)
	}
	switch phase {
	case PhaseInit:
		key, err := a.newKey()
		if err != nil {
			return err
		}
		a.additional, a.newSigns = key, false
	case PhaseUpdateClients:
		a.sign(true)
		return nil
	case PhaseUpdateServers:
		a.sign(true)
	case PhaseRollback:
		a.sign(false)
	case PhaseStandby:
		a.additional, a.newSigns = nil, false
	default:
		return fmt.Errorf("rotate: unknown phase %q", phase)
	}
	if phase != PhaseInit {
		a.serving = a.active
	}
	return nil
}

// sign makes the new or the old key the active one.
func (a *rotatingCA) sign(withNew bool) {
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

// signUser issues a user certificate with the permissions of an interactive login.
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

// tlsCA signs X.509 certificates.
type tlsCA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newTLSCA(name string) (*tlsCA, error) {
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
func (a *tlsCA) issue(template *x509.Certificate) (*tlsCA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return signTLS(template, key, a.cert, a.key)
}

func signTLS(template *x509.Certificate, key crypto.Signer, parent *x509.Certificate, parentKey crypto.Signer) (*tlsCA, error) {
	cert, err := certify(template, key.Public(), parent, parentKey)
	if err != nil {
		return nil, err
	}
	return &tlsCA{cert: cert, key: key}, nil
}

// certify signs a certificate for a key, which may belong to somebody else.
func certify(template *x509.Certificate, key crypto.PublicKey, parent *x509.Certificate, parentKey crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	// This is an hour before now, and before the expiry of a certificate made to have expired.
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

func (a *tlsCA) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (a *tlsCA) certificate() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{a.cert.Raw}, PrivateKey: a.key, Leaf: a.cert}
}

// isAuthName recognizes the names of auth services, which every Teleport client sends, as
// opposed to those of proxies.
func isAuthName(serverName string) bool {
	return serverName == constants.APIDomain || strings.HasSuffix(serverName, "."+constants.APIDomain)
}

// renewAuth creates what the auth service needs for TLS.
func (a *caSet) renewAuth() error {
	certificate, err := a.host.servingTLS().issue(serverTemplate([]string{constants.APIDomain, utils.EncodeClusterName(a.cluster)}))
	if err != nil {
		return err
	}
	clients := x509.NewCertPool()
	for _, ca := range a.user.trustedTLS() {
		clients.AppendCertsFromPEM(ca)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.auth = &tls.Config{
		Certificates: []tls.Certificate{certificate.certificate()},
		ClientAuth:   tls.VerifyClientCertIfGiven, // bots that join have none
		ClientCAs:    clients,
		NextProtos:   []string{"h2", "http/1.1"}, // gRPC, and Teleport's older API
	}
	return nil
}

func (a *caSet) authConfig() *tls.Config {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.auth
}

// webConfig returns what the proxy's web server needs for TLS.
func (a *caSet) webConfig(hosts []string) (*tls.Config, error) {
	certificate, err := a.web.issue(serverTemplate(hosts))
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{certificate.certificate()},
		// The last two are how clients of the join service and of the tunnel service recognize
		// a proxy with TLS routing. Like Teleport's, this proxy prefers the plain names.
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

// identityFile creates a login in the form of `tctl auth sign`: one key with an SSH and a TLS
// certificate, and the cluster's CAs.
func (a *caSet) identityFile(user string, ttl time.Duration) ([]byte, error) {
	leaf, err := a.user.signerTLS().issue(&x509.Certificate{
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
			TLS: a.host.trustedTLS(),
		},
	})
}

// knownHostsLines are the Host CA in the form of a known_hosts file.
func knownHostsLines(cluster string, keys []ssh.PublicKey) [][]byte {
	var lines [][]byte
	for _, key := range keys {
		line := fmt.Appendf(nil, "@cert-authority %s,*.%s %s type=host\n", cluster, cluster, sshkey.Line(key))
		lines = append(lines, line)
	}
	return lines
}

// resource is the CA as the auth service returns it: public keys only.
func (a *rotatingCA) resource(cluster string, kind types.CertAuthType) (*types.CertAuthorityV2, error) {
	keys := a.keys()
	ca := &types.CertAuthorityV2{Spec: types.CertAuthoritySpecV2{
		Type:                  kind,
		ClusterName:           cluster,
		ActiveKeys:            keySet(keys[:1]),
		AdditionalTrustedKeys: keySet(keys[1:]),
	}}
	return ca, ca.CheckAndSetDefaults()
}

func keySet(keys []*caKey) types.CAKeySet {
	var set types.CAKeySet
	for _, key := range keys {
		set.SSH = append(set.SSH, &types.SSHKeyPair{PublicKey: ssh.MarshalAuthorizedKey(key.ssh.PublicKey())})
		if key.tls != nil {
			set.TLS = append(set.TLS, &types.TLSKeyPair{Cert: key.tls.pem()})
		}
	}
	return set
}
