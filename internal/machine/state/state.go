// Package state is what a run of Hallmark saves for the next one.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/replace"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// Dir is the folder for everything that a machine's runs save.
const Dir = "/var/lib/hallmark"

// State is what the last successful enrollment saved. It holds no secret.
type State struct {
	Version    int           `json:"version"`
	Instance   imds.Instance `json:"instance"`
	Config     string        `json:"config"` // Config.digest
	Node       protocol.Node `json:"node"`
	Principals []string      `json:"principals"`
	// Certificates has one entry for each certified host key.
	Certificates []Certificate `json:"certificates"`
	OpenSSHCAs   []string      `json:"opensshCAs"`
	HostCAs      []string      `json:"hostCAs"`
	EnrolledAt   time.Time     `json:"enrolledAt"`
	// RenewAfter already includes its random part: machines that enrolled together do not
	// renew together.
	RenewAfter time.Time `json:"renewAfter"`
	// SignedUnder is the first of the HostCAs at the enrollment.
	SignedUnder string `json:"signedUnder,omitempty"`
	// CAsETag is the entity tag of the CAs that the machine learned last.
	CAsETag string `json:"casETag,omitempty"`
	// OwnAddress reports whether the node's address was one of this machine's.
	OwnAddress bool `json:"ownAddress,omitempty"`
	// Presented reports whether the running sshd has the certificates: a run saw sshd present
	// them, or reloaded sshd after it wrote them and NotVerified says why it could not see
	// them. It is false if no sshd was running.
	Presented bool `json:"presented"`
	// NotVerified says why a run could not see a running sshd present the certificates, or is
	// empty.
	NotVerified string `json:"notVerified,omitempty"`
	// Waiting says why sshd was not reloaded for the certificates, or is nil.
	Waiting *Waiting `json:"waiting,omitempty"`
	// Rejected says why the certificates cannot be used, or is nil. The next request reports
	// it to the signer.
	Rejected *protocol.Rejection `json:"rejected,omitempty"`
	// MetadataOptions are what EC2 said at EnrolledAt, according to the signer. They may have
	// changed since.
	MetadataOptions protocol.MetadataOptions `json:"metadataOptions,omitzero"`
}

// Certificate is one certified host key.
type Certificate struct {
	Path        string    `json:"path"` // of the certificate
	Fingerprint string    `json:"fingerprint"`
	Serial      uint64    `json:"serial"`
	ValidBefore time.Time `json:"validBefore"`
}

const (
	// Version is the version of the state file's format.
	Version       = 1
	maxStateBytes = 1 << 20
)

// Path returns the state file in a folder.
func Path(dir string) string { return filepath.Join(dir, "state.json") }

// Load reads the state in a folder. If there is no file, or it cannot parse it, it returns
// nil: the machine then enrolls again, which is harmless.
func Load(dir string) (*State, error) {
	data, err := os.ReadFile(Path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Newf(fault.Failed, fault.FileHint(err), "read state: %w", err)
	}
	return parseState(data), nil
}

func parseState(data []byte) *State {
	var s State
	if len(data) > maxStateBytes || json.Unmarshal(data, &s) != nil || s.Version != Version {
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

// Learn saves the CAs, and the entity tag of a signer's answer that contains exactly these.
func (s *State) Learn(openSSH, hosts []ssh.PublicKey) {
	s.OpenSSHCAs, s.HostCAs = sshkey.Lines(openSSH), sshkey.Lines(hosts)
	s.CAsETag = ""
	if body, err := (protocol.CAs{Version: protocol.CAsVersion, OpenSSHCAs: s.OpenSSHCAs, HostCAs: s.HostCAs}).Encode(); err == nil {
		s.CAsETag = protocol.ETag(body)
	}
}

// End returns when the first of the certificates expires.
func (s *State) End() time.Time {
	var end time.Time
	for _, c := range s.Certificates {
		if end.IsZero() || c.ValidBefore.Before(end) {
			end = c.ValidBefore
		}
	}
	return end
}

// Stage prepares to write a state.
func Stage(dir string, state *State) (*replace.Change, error) {
	data, err := state.marshal()
	if err != nil {
		return nil, err
	}
	change := &replace.Change{}
	if err := change.Stage(Path(dir), data, 0o644); err != nil {
		return nil, errors.Join(err, change.Close())
	}
	return change, nil
}

// Restage prepares another state in place of one that was not committed.
func Restage(old *replace.Change, dir string, state *State) (*replace.Change, error) {
	if err := old.Close(); err != nil {
		return old, err
	}
	change, err := Stage(dir, state)
	if err != nil {
		return old, err
	}
	return change, nil
}

// Save writes the state, unless the file already has it.
func Save(dir string, state *State) error {
	data, err := state.marshal()
	if err != nil {
		return err
	}
	return replace.File(Path(dir), data)
}
