package agent

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/signerclient"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// plan is what a run does.
type plan struct {
	// wait says why this run does nothing: an earlier one failed too recently.
	wait error
	// reason is why to ask for certificates. Without a reason, the run only updates the
	// cluster's CAs.
	reason string
	// need identifies what the run asks for, and why. Consecutive failures are counted for
	// each need.
	need string
	// confirm says that a run without a reason must check what sshd presents: the last
	// enrollment could not.
	confirm bool
	// askForCAs says that a run without a reason asks the signer for the cluster's CAs.
	askForCAs bool
	// futile identifies an sshd that must not be reloaded again, or is empty.
	futile string
	// rejected is what the next request reports to the signer, or nil.
	rejected *protocol.Rejection
}

// freshAnswer is how long after an enrollment a run does not ask for CAs.
const freshAnswer = 10 * time.Minute

// decide returns what to do about what a run found. A run for the timer backs off after
// failures.
func decide(seen *observed, forTimer bool, now time.Time) plan {
	p := plan{reason: stale(seen, now), rejected: toReport(seen.failure, seen.state)}
	p.need = needOf(seen, p.reason)
	if p.reason == "" {
		p.confirm = !seen.state.Presented || seen.state.NotVerified != ""
		// The signer's list may be some minutes old, and older than its last answer.
		since := now.Sub(seen.state.EnrolledAt)
		p.askForCAs = since < 0 || since >= freshAnswer
	}
	if forTimer {
		p.wait = seen.failure.backOff(p.need, now)
		p.futile = seen.failure.futile()
	}
	return p
}

// stale returns why the machine has to enroll, or "" if there is nothing to do. It looks at
// what is on the machine, never at whether Hallmark has run: a disk may have moved to another
// instance, and cloud-init removes host keys along with their certificates.
func stale(seen *observed, now time.Time) string {
	s := seen.state
	switch {
	case s == nil:
		return "not enrolled yet"
	case s.Instance.InstanceID == seen.instance.InstanceID && s.Instance.Started != seen.instance.Started:
		// Then its public address has changed, and a policy may have removed its node.
		return "the instance was stopped and started"
	case s.Instance != seen.instance:
		return fmt.Sprintf("enrolled as instance %s, but this is %s", s.Instance.InstanceID, seen.instance.InstanceID)
	case s.Config != seen.config:
		return "signer_url, signer_function or audience changed"
	case !now.Before(s.RenewAfter):
		return "certificates are due for renewal"
	case now.Before(s.EnrolledAt.Add(-time.Hour)):
		return "the clock was set back to before the enrollment"
	case s.RenewAfter.Sub(s.EnrolledAt) > signerclient.MaxLifetime:
		return "the renewal time is later than any certificate can expire"
	case seen.moved:
		return fmt.Sprintf("the node's address %.64q no longer belongs to this machine", s.Node.Address)
	}
	return staleFiles(seen, now)
}

// hostCAChanged returns why the certificates must be renewed although nothing on the machine has
// changed, or "". During a rotation the cluster has two Host CAs. A change to that set is the
// wrong moment to renew: Teleport still signs with the old key, and clients that do not know
// the new key yet would reject its certificates. The right moment is when the key that
// Teleport signs with, the first in the list, differs from the one that signed these
// certificates.
//
// A cluster may sign with several keys at once. If a renewal for a new first key brought a
// certificate from another key, the machine does not renew again for the same first key.
func hostCAChanged(s *state.State, keys []hostkey.Key) string {
	hosts, err := cafile.ParseKeys(s.HostCAs)
	if err != nil {
		return "" // an old state without them
	}
	for _, key := range keys {
		if key.Certificate == nil {
			continue
		}
		signer := sshkey.Line(key.Certificate.SignatureKey)
		switch {
		case !slices.Contains(sshkey.Lines(hosts), signer):
			return "the CA that signed " + key.CertificatePath() + " is no longer the cluster's"
		case signer != s.HostCAs[0] && s.SignedUnder != s.HostCAs[0]:
			return "Teleport now signs host certificates with another key"
		}
	}
	return ""
}

// Found is what a run would find on the machine.
type Found struct {
	State    *state.State
	Instance imds.Instance // zero if it is not known
	Config   config.Config
	Keys     []hostkey.Key
	CAFile   []byte
}

// Due returns why a run would ask for certificates, or "". Without the instance it goes by
// everything else.
func Due(f Found, now time.Time) (string, error) {
	extra, err := f.Config.ExtraCAs()
	if err != nil {
		return "", err
	}
	if f.State != nil && f.Instance == (imds.Instance{}) {
		f.Instance = f.State.Instance
	}
	return stale(&observed{
		state: f.State, config: f.Config.Digest(), instance: f.Instance, keys: f.Keys, caFile: f.CAFile, extra: extra,
	}, now), nil
}

func staleFiles(seen *observed, now time.Time) string {
	s := seen.state
	if len(seen.keys) != len(s.Certificates) {
		return "the set of host keys changed"
	}
	for n, key := range seen.keys {
		switch {
		case s.Certificates[n].Fingerprint != ssh.FingerprintSHA256(key.Public):
			return "host key " + key.Path + " changed"
		case key.Certificate == nil:
			return "certificate " + key.CertificatePath() + " is missing, damaged or for another key"
		case hostkey.StateOf(key, key.Certificate) != s.Certificates[n]:
			return "certificate " + key.CertificatePath() + " is not the one that was installed"
		case !now.Before(s.Certificates[n].ValidBefore):
			return "certificate " + key.CertificatePath() + " has expired"
		}
	}
	cas, err := cafile.ParseKeys(s.OpenSSHCAs)
	if err != nil || !bytes.Equal(seen.caFile, cafile.Render(cas, seen.extra...)) {
		return "the file of trusted CAs changed"
	}
	return ""
}

// newState returns the state after an enrollment.
func newState(r *protocol.Response, g *signerclient.Grant, keys []hostkey.Key, i imds.Instance, configDigest string, now time.Time) *state.State {
	s := &state.State{
		Version: state.Version, Instance: i, Config: configDigest, Node: r.Node, Principals: r.Principals,
		EnrolledAt: now.UTC().Truncate(time.Second), RenewAfter: g.RenewAfter.UTC().Truncate(time.Second),
		MetadataOptions: r.MetadataOptions,
	}
	s.Learn(g.OpenSSH, g.Hosts)
	s.SignedUnder = s.HostCAs[0]
	for n, cert := range g.Certificates {
		s.Certificates = append(s.Certificates, hostkey.StateOf(keys[n], cert))
	}
	return s
}

// spread moves a time by up to a tenth of its distance, earlier or later, so that machines
// that enrolled at the same moment do not renew at the same moment.
func spread(at, now time.Time, random float64) time.Time {
	return at.Add(time.Duration((random - 0.5) / 5 * float64(at.Sub(now))))
}
