package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// maxLifetime is the longest lifetime of a host certificate: nothing revokes one.
const maxLifetime = 30 * 24 * time.Hour

var dnsSyntax = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)

// isDNSName bounds the length itself: a regular expression that counts to 253 takes a
// millisecond of each start of the program to compile.
func isDNSName(name string) bool { return len(name) <= 253 && dnsSyntax.MatchString(name) }

// grant is an answer that has been checked.
type grant struct {
	authorities
	certificates []*ssh.Certificate // in the order of the host keys
	renewAfter   time.Time
}

// checkAnswer decides whether an answer is what was asked for, before anything is
// written. The signer is trusted, but an answer to another machine, or by a signer
// that went wrong, must not lock people out.
//
// own are the further names that are provably this machine's: see furtherPrincipals.
func checkAnswer(r *protocol.Response, keys []hostKey, i Instance, own map[string]bool, now time.Time) (*grant, error) {
	if err := checkNode(r, i, own); err != nil {
		return nil, err
	}
	authorities, err := readAuthorities(r.OpenSSHCAs, r.HostCAs)
	if err != nil {
		return nil, err
	}
	certificates, err := checkCertificates(r, keys, authorities.hosts, now)
	if err != nil {
		return nil, err
	}
	return &grant{authorities, certificates, clampRenewal(r.RenewAfter, certificates, now)}, nil
}

// nodeNames are the four principals of every certificate (security rule 3).
func nodeNames(n protocol.Node) []string {
	return []string{n.Hostname, n.Hostname + "." + n.Cluster, n.ID, n.ID + "." + n.Cluster}
}

// furtherPrincipals returns those beside the four, which a rule of the signer's
// policy may add.
func furtherPrincipals(r *protocol.Response) []string {
	four := nodeNames(r.Node)
	return slices.DeleteFunc(slices.Clone(r.Principals), func(p string) bool { return slices.Contains(four, p) })
}

// checkNode refuses an answer about another instance, and principals that are
// neither the four names of this node nor this machine's own: a certificate for
// anything else would let this machine pass for another one.
func checkNode(r *protocol.Response, i Instance, own map[string]bool) error {
	if want := protocol.NodeID(i.AccountID, i.Region, i.InstanceID); r.Node.ID != want {
		return fmt.Errorf("it is about node %.64q, but this instance is %s", r.Node.ID, want)
	}
	if !isDNSName(r.Node.Hostname) {
		return fmt.Errorf("host name %.64q is not a DNS name in lower case", r.Node.Hostname)
	}
	if r.Node.Cluster == "" {
		return errors.New("it names no cluster")
	}
	for n, principal := range r.Principals {
		if slices.Contains(r.Principals[:n], principal) {
			return fmt.Errorf("principal %.64q comes twice", principal)
		}
	}
	for _, name := range nodeNames(r.Node) {
		if !slices.Contains(r.Principals, name) {
			return fmt.Errorf("principals %.200q lack %q", r.Principals, name)
		}
	}
	for _, principal := range furtherPrincipals(r) {
		if !own[principal] && isPublicAddress(principal) {
			return fmt.Errorf("%w: %s", errNewAddress, principal)
		}
		if !own[principal] {
			return fmt.Errorf("principal %.64q is not provably this machine's", principal)
		}
	}
	return nil
}

// errNewAddress says that an answer names a public address that the metadata service does
// not: an Elastic IP that was associated a moment ago, which EC2's API knows first.
var errNewAddress = errors.New("the metadata service does not show this machine's public address yet")

func isPublicAddress(principal string) bool {
	a, err := netip.ParseAddr(principal)
	return err == nil && a.Is4() && a.String() == principal && a.IsGlobalUnicast() && !a.IsPrivate()
}

func checkCertificates(r *protocol.Response, keys []hostKey, authorities []ssh.PublicKey, now time.Time) ([]*ssh.Certificate, error) {
	if len(r.Certificates) != len(keys) {
		return nil, fmt.Errorf("%d certificates for %d host keys", len(r.Certificates), len(keys))
	}
	var certificates []*ssh.Certificate
	for n, key := range keys {
		cert, err := hostcert.Parse(r.Certificates[n])
		if err != nil {
			return nil, fmt.Errorf("certificate for %s: %w", key.path, err)
		}
		want := hostcert.Want{Key: key.public, Principals: r.Principals, Authorities: authorities, MaxLifetime: maxLifetime}
		if err := hostcert.Check(cert, want, now); err != nil {
			return nil, fmt.Errorf("certificate for %s: %w", key.path, err)
		}
		certificates = append(certificates, cert)
	}
	return certificates, nil
}

// clampRenewal keeps the renewal between a tenth and two thirds of what is left of
// the certificates' life. Sooner would be a flood of requests, later a lock-out.
func clampRenewal(asked time.Time, certificates []*ssh.Certificate, now time.Time) time.Time {
	left := firstEnd(certificates).Sub(now)
	earliest, latest := now.Add(left/10), now.Add(left*2/3)
	switch {
	case asked.Before(earliest):
		return earliest
	case asked.After(latest):
		return latest
	}
	return asked
}

// spread moves a time by up to a tenth of how far off it is, either way, so that
// machines that enrolled at the same moment do not renew at the same moment.
func spread(at, now time.Time, random float64) time.Time {
	return at.Add(time.Duration((random - 0.5) / 5 * float64(at.Sub(now))))
}

// firstEnd returns when the first of the certificates ends.
func firstEnd(certificates []*ssh.Certificate) time.Time {
	var end uint64 = ssh.CertTimeInfinity
	for _, cert := range certificates {
		end = min(end, cert.ValidBefore)
	}
	return time.Unix(int64(end), 0) //nolint:gosec // hostcert.Check has bounded it
}
