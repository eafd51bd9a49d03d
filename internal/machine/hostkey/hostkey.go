// Package hostkey reads sshd's host keys and selects those to certify.
package hostkey

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// Key is one of sshd's host keys that can have a certificate.
type Key struct {
	Path        string // of the private key
	Public      ssh.PublicKey
	Certificate *ssh.Certificate // of this key, in its certificate file, or nil
	Algorithms  []string         // with which sshd would present a certificate
}

// Line returns the public key in authorized_keys form, without comment.
func (k Key) Line() string {
	return sshkey.Line(k.Public)
}

// CertificatePath depends only on the key's own path: nothing in an answer chooses where
// Hallmark writes.
func (k Key) CertificatePath() string { return k.Path + CertificateSuffix }

// CertificateSuffix is what ssh-keygen appends to a key's path for its certificate.
const CertificateSuffix = "-cert.pub"

// Selection decides which host keys to certify.
type Selection struct {
	Conf  *sshd.Effective
	State *state.State // nil if the machine never enrolled
	// Replace says whether to overwrite certificates of other CAs.
	Replace bool
}

// Find returns the keys that sshd presents, that have a HostCertificate line, and for which a
// certificate is useful. passed has one line for each other key that exists.
func (s Selection) Find() (keys []Key, passed []string, err error) {
	taken := s.taken()
	types := map[string]string{}
	var plain []string          // keys that clients may have pinned and that get no certificate
	certified := len(taken) > 0 // some key already has a certificate
	for _, path := range s.Conf.HostKeys {
		key, why, err := s.read(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // one of OpenSSH's default paths; not every machine has all of them
		case err != nil:
			return nil, nil, err
		case key.Public == nil: // sshd does not present it
		case types[key.Public.Type()] != "":
			why = "sshd presents " + types[key.Public.Type()] + ", which has the same type"
		default:
			types[key.Public.Type()] = path
			if why == "" {
				why = taken.keeps(key)
			}
			if why != "" && preferred(key.Public.Type()) {
				plain = append(plain, path+": "+why)
			}
		}
		certified = certified || key.Certificate != nil
		if why != "" {
			passed = append(passed, path+": "+why)
			continue
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, passed, noHostKeys(taken, passed)
	}
	if len(plain) > 0 && !certified {
		return nil, passed, hidesKeys(plain)
	}
	return keys[:min(len(keys), protocol.MaxHostKeys)], passed, nil
}

// preferred reports whether some version of OpenSSH's client asks for a type of host key
// first: Ed25519 since 8.5, ECDSA P-256 before.
//
// A client that has pinned a key of its first type sends its usual list, in which all types of
// certificates come before all plain keys (order_hostkeyalgs in OpenSSH's sshconnect2.c). If
// sshd has a certificate only for another key, it presents that one, and the client refuses
// the host. A client that has pinned other types asks for those first.
func preferred(keyType string) bool {
	return keyType == ssh.KeyAlgoED25519 || keyType == ssh.KeyAlgoECDSA256
}

// hidesKeys refuses a machine's first certificate if it would hide plain keys. Once a machine
// presents certificates, those keys are hidden already, and renewing changes nothing.
func hidesKeys(plain []string) error {
	return fault.Newf(fault.Misconfigured,
		"nothing was changed; run 'hallmark install', which writes a HostCertificate line for each host key, and let HostKeyAlgorithms permit certificates of every type of key that it permits",
		"certificates for the other host keys would lock out people whose known_hosts has this one only, because OpenSSH's client asks for certificates first: %s",
		strings.Join(plain, "; "))
}

// ErrTaken says that there is no host key for Hallmark, because another CA has certified some.
var ErrTaken = errors.New(noKeys)

const noKeys = "none of sshd's host keys can be certified"

func noHostKeys(taken takenKeys, passed []string) error {
	reasons := strings.Join(passed, "; ")
	switch {
	case len(taken) > 0:
		return fault.Newf(fault.Misconfigured, "nothing was changed; add a host key of another type for hallmark, or set host_certificate: "+config.ReplaceCertificate,
			"%w (%s)", ErrTaken, reasons)
	case len(passed) > 0:
		return fault.Newf(fault.Temporary, "fix the problem that the message names, and check that 'hallmark install' has run", "%s (%s)", noKeys, reasons)
	}
	return fault.Newf(fault.Temporary, "check that 'ssh-keygen -A' or cloud-init generated host keys, and that 'hallmark install' has run",
		"%s: none of them exists", noKeys)
}

// takenKeys are host keys with a certificate from another CA, by their wire form.
type takenKeys map[string]takenKey

type takenKey struct {
	file   string // of the certificate
	public ssh.PublicKey
	signer ssh.PublicKey
}

// taken returns the keys that others have certified. sshd presents one certificate for each
// key, the last that it loads.
func (s Selection) taken() takenKeys {
	taken := takenKeys{}
	for _, file := range s.Conf.HostCertificates {
		cert := ReadCertificate(file)
		if cert == nil || s.isHallmarks(file, cert) || len(s.Conf.CertAlgorithms(cert.Key.Type())) == 0 {
			continue
		}
		if s.Replace && slices.Contains(s.Conf.HostKeys, strings.TrimSuffix(file, CertificateSuffix)) {
			continue
		}
		taken[string(cert.Key.Marshal())] = takenKey{file, cert.Key, cert.SignatureKey}
	}
	return taken
}

// keeps returns why Hallmark leaves a key alone, or "".
//
// A client asks for certificates of one type before those of another. Teleport's proxy asks
// for RSA first and Ed25519 last; OpenSSH's client asks in the opposite order. If the proxy
// prefers Hallmark's certificate to the other CA's, neither the proxy nor people who trust the
// other CA are affected. If it does not, the proxy would never see Hallmark's certificate, and
// those people would see it in place of theirs.
func (t takenKeys) keeps(key Key) string {
	if other, ok := t[string(key.Public.Marshal())]; ok {
		return other.String()
	}
	for _, other := range t {
		if ProxyRank(key.Public) >= ProxyRank(other.public) {
			return "Teleport's proxy would ask for the key with " + other.String()
		}
	}
	return ""
}

func (k takenKey) String() string {
	return fmt.Sprintf("HostCertificate %s is another CA's (%s)", k.file, ssh.FingerprintSHA256(k.signer))
}

// ProxyRank orders key types as Go's SSH client, and so Teleport's proxy, prefers them.
func ProxyRank(key ssh.PublicKey) int {
	return slices.Index([]string{ssh.KeyAlgoRSA, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoED25519}, key.Type())
}

// isHallmarks reports whether Hallmark wrote a certificate: the certificate is next to its
// key, and either the state lists it or its CA, or it has the form of Teleport's. If the state
// is lost, the form is all that is left to check.
func (s Selection) isHallmarks(file string, cert *ssh.Certificate) bool {
	path, beside := strings.CutSuffix(file, CertificateSuffix)
	return beside && slices.Contains(s.Conf.HostKeys, path) && s.wrote(path, cert)
}

// wrote reports whether Hallmark wrote the certificate of the host key at path.
func (s Selection) wrote(path string, cert *ssh.Certificate) bool {
	if s.State != nil {
		if slices.Contains(s.State.HostCAs, sshkey.Line(cert.SignatureKey)) {
			return true
		}
		for _, c := range s.State.Certificates {
			if c == StateOf(Key{Path: path, Public: cert.Key}, cert) {
				return true
			}
		}
	}
	return hasNodeNames(cert.ValidPrincipals)
}

// Wrote reports whether Hallmark wrote the certificate in the certificate file of a host key.
func (s Selection) Wrote(key Key) bool {
	cert := ReadCertificate(key.CertificatePath())
	return cert != nil && s.wrote(key.Path, cert)
}

// Written returns the host keys whose certificate files Hallmark wrote. sshd's configuration
// need not name the certificates anymore.
func (s Selection) Written() (keys []Key) {
	for _, path := range s.paths() {
		if key := (Key{Path: path}); s.Wrote(key) {
			keys = append(keys, key)
		}
	}
	return keys
}

// Signing returns the host keys that can prove a request other than an enrollment, with or
// without a certificate. Those that the signer has recorded come first.
func (s Selection) Signing() (keys []Key) {
	for _, path := range s.paths() {
		public, why, err := ReadPublic(path)
		if key := (Key{Path: path, Public: public}); err == nil && why == "" && unacceptable(key) == "" {
			keys = append(keys, key)
		}
	}
	return keys[:min(len(keys), protocol.MaxHostKeys)]
}

// paths returns the host keys of the state, then the others of sshd's configuration.
func (s Selection) paths() (paths []string) {
	if s.State != nil {
		for _, c := range s.State.Certificates {
			paths = append(paths, strings.TrimSuffix(c.Path, CertificateSuffix))
		}
	}
	for _, path := range s.Conf.HostKeys {
		if !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	return paths
}

// hasNodeNames reports whether principals have the four names of a node: two names, one of
// them a UUID, each alone and with the cluster's name (security rule 3).
func hasNodeNames(principals []string) bool {
	for _, id := range principals {
		if !nodeID.MatchString(id) {
			continue
		}
		for _, full := range principals {
			if cluster, ok := strings.CutPrefix(full, id+"."); ok && cluster != "" {
				return true
			}
		}
	}
	return false
}

var nodeID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// read reads a host key and its certificate. why says what keeps the key from being certified;
// the key is empty if sshd does not present it. The error is fs.ErrNotExist if the key does
// not exist.
func (s Selection) read(path string) (key Key, why string, err error) {
	public, why, err := ReadPublic(path)
	if err != nil || why != "" {
		return Key{Path: path, Public: s.inAgent(path)}, why, err
	}
	if slices.Contains(s.Conf.NotLoaded, path) {
		return Key{}, "sshd cannot read the form of its file; ssh-keygen's begins with -----BEGIN, has no carriage returns and ends with a newline", nil
	}
	if bits := sshkey.RSABits(public); bits > 0 && bits < s.Conf.RequiredRSASize {
		return Key{}, fmt.Sprintf("sshd does not present an RSA key of %d bits: its RequiredRSASize is %d", bits, s.Conf.RequiredRSASize), nil
	}
	key = Key{Path: path, Public: public}
	if why := unacceptable(key); why != "" {
		return key, why, nil
	}
	if key.Algorithms = s.Conf.CertAlgorithms(public.Type()); len(key.Algorithms) == 0 {
		if !s.Conf.PresentsPlain(public.Type()) {
			key = Key{}
		}
		return key, "sshd's HostKeyAlgorithms rule out its certificates", nil
	}
	if !slices.Contains(s.Conf.HostCertificates, key.CertificatePath()) {
		return key, "sshd's configuration has no line HostCertificate " + key.CertificatePath(), nil
	}
	// sshd matches certificates by the key in them, not by the file's name. If this file
	// certifies another key, sshd presents it with that key, and this key has no certificate.
	if cert := ReadCertificate(key.CertificatePath()); cert != nil && bytes.Equal(cert.Key.Marshal(), public.Marshal()) {
		key.Certificate = cert
	}
	return key, "", nil
}

// inAgent returns the public half of a key whose private half sshd may have in an agent
// (HostKeyAgent), or nil.
func (s Selection) inAgent(path string) ssh.PublicKey {
	if s.Conf.HostKeyAgent == "" {
		return nil
	}
	for _, file := range []string{path + ".pub", path} {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if public := firstKey(data); public != nil && s.Conf.PresentsPlain(public.Type()) {
			return public
		}
	}
	return nil
}

// firstKey returns the key in a .pub file, or nil. Like sshd, it skips lines without a key.
func firstKey(data []byte) ssh.PublicKey {
	for line := range strings.Lines(string(data)) {
		if key, err := sshkey.Parse(line); err == nil {
			return key
		}
	}
	return nil
}

// ReadPublic returns the public key of a host key that sshd loads. why says why sshd skips it.
// Like sshd, it reads the private half, and ignores what the .pub file says.
func ReadPublic(path string) (public ssh.PublicKey, why string, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(path + ".pub"); err == nil {
			return nil, "the private key is missing", nil
		}
	}
	if err != nil {
		return nil, "", fmt.Errorf("read host key: %w", err)
	}
	if why := badMode(info); why != "" {
		return nil, why, nil
	}
	signer, err := Load(path)
	switch _, encrypted := errors.AsType[*ssh.PassphraseMissingError](err); {
	case encrypted:
		return nil, "it is protected by a passphrase", nil
	case err != nil:
		return nil, fmt.Sprintf("it cannot be read: %v", err), nil
	}
	return signer.PublicKey(), "", nil
}

// Load reads a private key. It clears the data that it read; only the signer holds the key.
func Load(path string) (ssh.Signer, error) {
	const most = 64 << 10
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, fmt.Errorf("not a file of at most %d bytes", most)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	return ssh.ParsePrivateKey(privateBlock(data))
}

// privateBlock returns the data from the first private key on: openssl writes the parameters of
// an elliptic curve before the key. sshd skips them too.
func privateBlock(data []byte) []byte {
	for rest := data; ; {
		block, after := pem.Decode(rest)
		if block == nil {
			return data // the parser says what is wrong
		}
		if strings.HasSuffix(block.Type, "PRIVATE KEY") {
			return rest
		}
		rest = after
	}
}

// badMode returns why sshd refuses a private key that others can read. sshd only cares if its
// own user owns the key. On Red Hat, the group ssh_keys may read it.
func badMode(info fs.FileInfo) string {
	stat, ok := info.Sys().(*syscall.Stat_t)
	others := info.Mode().Perm() & 0o077
	if !ok || others == 0 || int(stat.Uid) != os.Geteuid() {
		return ""
	}
	if others == 0o040 {
		group, err := user.LookupGroupId(strconv.Itoa(int(stat.Gid)))
		if err == nil && group.Name == "ssh_keys" {
			return ""
		}
	}
	return fmt.Sprintf("its mode %04o lets others read it, so sshd refuses it", info.Mode().Perm())
}

// unacceptable returns why the signer would refuse a key, for example DSA.
func unacceptable(key Key) string {
	if _, err := identity.ParseHostKeys([]string{key.Line()}); err != nil {
		return err.Error()
	}
	return ""
}

// ReadCertificate returns the certificate in a file, or nil if it cannot read one: either way,
// the key needs a new one.
func ReadCertificate(path string) *ssh.Certificate {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return ParseCertificate(data)
}

// ParseCertificate returns the certificate in the content of a file, or nil. Like sshd
// (sshkey_try_load_public), it takes the first line with a key: other CAs' tools write comments
// and several certificates.
func ParseCertificate(data []byte) *ssh.Certificate {
	if len(data) > state.MaxOriginalBytes {
		return nil
	}
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "-----BEGIN") {
			return nil
		}
		if key, err := sshkey.Parse(line); err == nil {
			cert, _ := key.(*ssh.Certificate)
			return cert
		}
	}
	return nil
}

// Sign proves that this machine holds the host keys.
func Sign(keys []Key, b protocol.Binding) ([]string, error) {
	signatures := make([]string, 0, len(keys))
	for _, key := range keys {
		signature, err := key.sign(b, identity.SignBinding)
		if err != nil {
			return nil, err
		}
		signatures = append(signatures, signature)
	}
	return signatures, nil
}

// SignHealth proves that this machine made a health report.
func SignHealth(key Key, b protocol.Binding) (string, error) { return key.sign(b, identity.SignHealth) }

func (k Key) sign(b protocol.Binding, sign func(ssh.Signer, protocol.Binding) (string, error)) (string, error) {
	signer, err := Load(k.Path)
	if err != nil {
		return "", fmt.Errorf("read host key %s: %w", k.Path, err)
	}
	if !bytes.Equal(signer.PublicKey().Marshal(), k.Public.Marshal()) { // replaced meanwhile
		return "", fault.Newf(fault.Temporary, "run hallmark again", "host key %s changed during the run", k.Path)
	}
	signature, err := sign(signer, b)
	if err != nil {
		return "", fmt.Errorf("sign with %s: %w", k.Path, err)
	}
	return signature, nil
}

// FirstEnd returns when the first of the certificates ends.
func FirstEnd(certificates []*ssh.Certificate) time.Time {
	var end uint64 = ssh.CertTimeInfinity
	for _, cert := range certificates {
		end = min(end, cert.ValidBefore)
	}
	return timeOf(end)
}

// Start returns from when a certificate is valid.
func Start(cert *ssh.Certificate) time.Time { return timeOf(cert.ValidAfter) }

// timeOf returns a time in a certificate (PROTOCOL.certkeys). A certificate of another CA may
// be valid forever. The latest time is the last that RFC 3339, and so JSON, can write.
func timeOf(seconds uint64) time.Time {
	last := time.Date(9999, time.December, 31, 23, 59, 59, 0, time.UTC)
	if seconds > uint64(last.Unix()) { //nolint:gosec // it is positive
		return last
	}
	return time.Unix(int64(seconds), 0) //nolint:gosec // it is bounded
}

// StateOf returns the state's entry for a key and its certificate.
func StateOf(key Key, cert *ssh.Certificate) state.Certificate {
	return state.Certificate{
		Path: key.CertificatePath(), Fingerprint: ssh.FingerprintSHA256(key.Public),
		Serial: cert.Serial, ValidBefore: FirstEnd([]*ssh.Certificate{cert}).UTC(),
	}
}
