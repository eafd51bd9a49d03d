package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// State is what the last successful enrollment left behind. It holds no secret.
type State struct {
	Version    int           `json:"version"`
	Instance   Instance      `json:"instance"`
	Config     string        `json:"config"` // Config.digest
	Node       protocol.Node `json:"node"`
	Principals []string      `json:"principals"`
	// Certificates has one entry per certified host key.
	Certificates []CertificateState `json:"certificates"`
	OpenSSHCAs   []string           `json:"opensshCAs"`
	HostCAs      []string           `json:"hostCAs"`
	EnrolledAt   time.Time          `json:"enrolledAt"`
	// RenewAfter has its share of chance already: machines that enrolled together do
	// not renew together.
	RenewAfter time.Time `json:"renewAfter"`
	// SignedUnder is the first of the HostCAs at the enrollment.
	SignedUnder string `json:"signedUnder,omitempty"`
	// CAsETag is the entity tag of the authorities that were last learned.
	CAsETag string `json:"casETag,omitempty"`
	// OwnAddress tells whether the node's address was one of this machine's.
	OwnAddress bool `json:"ownAddress,omitempty"`
	// Presented tells whether the running sshd has the certificates: it was seen to
	// present them, or was reloaded after they were written and NotVerified says why it
	// could not be seen. It is false if no sshd was running.
	Presented bool `json:"presented"`
	// NotVerified says why a running sshd could not be seen to present the certificates,
	// or is empty.
	NotVerified string `json:"notVerified,omitempty"`
	// Waiting says why the running sshd was not reloaded for the certificates, or is nil.
	Waiting *Waiting `json:"waiting,omitempty"`
	// Rejected says why the certificates cannot be used, for the next request to
	// tell the signer, or nil.
	Rejected *protocol.Rejection `json:"rejected,omitempty"`
}

// CertificateState is one certified host key.
type CertificateState struct {
	Path        string    `json:"path"` // of the certificate
	Fingerprint string    `json:"fingerprint"`
	Serial      uint64    `json:"serial"`
	ValidBefore time.Time `json:"validBefore"`
}

const (
	stateVersion  = 1
	maxStateBytes = 1 << 20
)

func statePath(dir string) string { return filepath.Join(dir, "state.json") }

// LoadState reads the state in a folder. Without a file, or with one that cannot
// be understood, it returns nil: the machine then enrolls again, which is harmless.
func LoadState(dir string) (*State, error) {
	data, err := os.ReadFile(statePath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, failf(Failed, hintFile(err), "read state: %w", err)
	}
	return parseState(data), nil
}

func parseState(data []byte) *State {
	var s State
	if len(data) > maxStateBytes || json.Unmarshal(data, &s) != nil || s.Version != stateVersion {
		return nil
	}
	return &s
}

func (s *State) marshal() ([]byte, error) {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	return append(data, '\n'), nil
}

func newState(r *protocol.Response, g *grant, keys []hostKey, i Instance, configDigest string, now time.Time) *State {
	s := &State{
		Version: stateVersion, Instance: i, Config: configDigest, Node: r.Node, Principals: r.Principals,
		EnrolledAt: now.UTC().Truncate(time.Second), RenewAfter: g.renewAfter.UTC().Truncate(time.Second),
	}
	s.learn(authorities{g.openSSH, g.hosts})
	s.SignedUnder = s.HostCAs[0]
	for n, cert := range g.certificates {
		s.Certificates = append(s.Certificates, certificateState(keys[n], cert))
	}
	return s
}

func certificateState(key hostKey, cert *ssh.Certificate) CertificateState {
	return CertificateState{
		Path: key.certificatePath(), Fingerprint: ssh.FingerprintSHA256(key.public),
		Serial: cert.Serial, ValidBefore: firstEnd([]*ssh.Certificate{cert}).UTC(),
	}
}

// learn takes the authorities over, and knows the entity tag of a signer's answer
// that names just these.
func (s *State) learn(a authorities) {
	s.OpenSSHCAs, s.HostCAs = authorizedLines(a.openSSH), authorizedLines(a.hosts)
	s.CAsETag = ""
	if body, err := (protocol.CAs{Version: protocol.CAsVersion, OpenSSHCAs: s.OpenSSHCAs, HostCAs: s.HostCAs}).Encode(); err == nil {
		s.CAsETag = protocol.ETag(body)
	}
}

func authorizedLines(keys []ssh.PublicKey) (lines []string) {
	for _, key := range keys {
		lines = append(lines, authorizedLine(key))
	}
	return lines
}

func authorizedLine(key ssh.PublicKey) string {
	return string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(key)))
}

// observed is what the machine looks like now.
type observed struct {
	instance Instance
	config   string
	keys     []hostKey
	caFile   []byte          // content, nil if there is none
	extra    []ssh.PublicKey // CAs that the configuration trusts beside the cluster's
	moved    bool            // the node's address was this machine's, and no longer is
}

// certified tells whether every key has a certificate that has not ended.
func (o observed) certified(now time.Time) bool {
	for _, key := range o.keys {
		if key.certificate == nil || !now.Before(firstEnd([]*ssh.Certificate{key.certificate})) {
			return false
		}
	}
	return len(o.keys) > 0
}

// stale returns why the machine has to enroll, or "" if there is nothing to do. It
// goes by what is there, never by "has it run": a disk may have been moved to
// another instance, and cloud-init removes host keys with their certificates.
func (s *State) stale(now time.Time, seen observed) string {
	switch {
	case s == nil:
		return "not enrolled yet"
	case s.Instance.InstanceID == seen.instance.InstanceID && s.Instance.Started != seen.instance.Started:
		// Its public address is another then, and a policy may have removed its node.
		return "the instance was stopped and started"
	case s.Instance != seen.instance:
		return fmt.Sprintf("enrolled as instance %s, but this is %s", s.Instance.InstanceID, seen.instance.InstanceID)
	case s.Config != seen.config:
		return "signer_url or audience changed"
	case !now.Before(s.RenewAfter):
		return "certificates are due for renewal"
	case now.Before(s.EnrolledAt.Add(-time.Hour)):
		return "the clock was set back to before the enrollment"
	case s.RenewAfter.Sub(s.EnrolledAt) > maxLifetime:
		return "the time of renewal is further off than any certificate lasts"
	case seen.moved:
		return fmt.Sprintf("the node's address %.64q is no longer this machine's", s.Node.Address)
	}
	return s.staleFiles(now, seen)
}

// resigned returns why the certificates have to be made anew although nothing on
// the machine changed, or "". During a rotation the cluster has two Host CAs. That the
// set changed is the wrong moment: Teleport still signs with the old key, and a
// certificate of the new one would be refused by those who do not know it yet. The
// right one is when the key that Teleport signs with, the first, is another than the
// one that signed here.
//
// A cluster may sign with several keys at once. If the renewal for a first key brought a
// certificate of another one, it is not repeated for the same first key.
func (s *State) resigned(keys []hostKey) string {
	hosts, err := parseAuthorities(s.HostCAs)
	if err != nil {
		return "" // an old state without them
	}
	for _, key := range keys {
		if key.certificate == nil {
			continue
		}
		signer := authorizedLine(key.certificate.SignatureKey)
		switch {
		case !slices.Contains(authorizedLines(hosts), signer):
			return "the authority that signed " + key.certificatePath() + " is no longer the cluster's"
		case signer != s.HostCAs[0] && s.SignedUnder != s.HostCAs[0]:
			return "Teleport signs host certificates with another key now"
		}
	}
	return ""
}

func (s *State) staleFiles(now time.Time, seen observed) string {
	if len(seen.keys) != len(s.Certificates) {
		return "the set of host keys changed"
	}
	for n, key := range seen.keys {
		switch {
		case s.Certificates[n].Fingerprint != ssh.FingerprintSHA256(key.public):
			return "host key " + key.path + " changed"
		case key.certificate == nil:
			return "certificate " + key.certificatePath() + " is missing, damaged or of another key"
		case certificateState(key, key.certificate) != s.Certificates[n]:
			return "certificate " + key.certificatePath() + " is not the one that was installed"
		case !now.Before(s.Certificates[n].ValidBefore):
			return "certificate " + key.certificatePath() + " has ended"
		}
	}
	authorities, err := parseAuthorities(s.OpenSSHCAs)
	if err != nil || !bytes.Equal(seen.caFile, renderAuthorities(authorities, seen.extra...)) {
		return "the file of trusted CAs changed"
	}
	return ""
}

// End returns when the first of the certificates ends.
func (s *State) End() time.Time {
	var end time.Time
	for _, c := range s.Certificates {
		if end.IsZero() || c.ValidBefore.Before(end) {
			end = c.ValidBefore
		}
	}
	return end
}
