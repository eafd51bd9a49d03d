package signerclient

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// MaxLifetime is the longest lifetime of a host certificate, which cannot be revoked.
const MaxLifetime = 30 * 24 * time.Hour

// CAs are the cluster's CAs. Those that Teleport signs with come first.
type CAs struct {
	OpenSSH []ssh.PublicKey // of people's certificates
	Hosts   []ssh.PublicKey
}

// readCAKeys reads both lists in a signer's answer.
func readCAKeys(openSSH, hosts []string) (a CAs, err error) {
	if a.OpenSSH, err = cafile.ParseKeys(openSSH); err != nil {
		return a, fmt.Errorf("OpenSSH CAs: %w", err)
	}
	if a.Hosts, err = cafile.ParseKeys(hosts); err != nil {
		return a, fmt.Errorf("host CAs: %w", err)
	}
	return a, nil
}

// Grant is an answer that has been checked.
type Grant struct {
	CAs
	Certificates []*ssh.Certificate // in the order of the host keys
	RenewAfter   time.Time
}

// Check decides whether an answer matches the request, before anything is written. The machine
// trusts the signer, but an answer for another machine, or from a faulty signer, must not lock
// people out.
//
// own are the further names that are provably this machine's: see furtherPrincipals.
func Check(r *protocol.Response, keys []hostkey.Key, i imds.Instance, own map[string]bool, now time.Time) (*Grant, error) {
	if err := checkNode(r, i, own); err != nil {
		return nil, err
	}
	cas, err := readCAKeys(r.OpenSSHCAs, r.HostCAs)
	if err != nil {
		return nil, err
	}
	certificates, err := checkCertificates(r, keys, cas.Hosts, now)
	if err != nil {
		return nil, err
	}
	return &Grant{cas, certificates, clampRenewal(r.RenewAfter, certificates, now)}, nil
}

// nodeNames are the four principals of every certificate (security rule 3).
func nodeNames(n protocol.Node) []string {
	return []string{n.Hostname, n.Hostname + "." + n.Cluster, n.ID, n.ID + "." + n.Cluster}
}

// FurtherPrincipals returns the principals other than those four, which a rule of the signer's
// policy may add.
func FurtherPrincipals(r *protocol.Response) []string {
	four := nodeNames(r.Node)
	return slices.DeleteFunc(slices.Clone(r.Principals), func(p string) bool { return slices.Contains(four, p) })
}

// checkNode refuses an answer about another instance, and principals that are neither this
// node's four names nor this machine's own: with a certificate for any other name, this
// machine could pass for another.
func checkNode(r *protocol.Response, i imds.Instance, own map[string]bool) error {
	if want := i.Ref().NodeID(); r.Node.ID != want {
		return fmt.Errorf("it is about node %.64q, but this instance is %s", r.Node.ID, want)
	}
	if !imds.IsDNSName(r.Node.Hostname) {
		return fmt.Errorf("host name %.64q is not a DNS name in lower case", r.Node.Hostname)
	}
	if r.Node.Cluster == "" {
		return errors.New("it names no cluster")
	}
	for n, principal := range r.Principals {
		if slices.Contains(r.Principals[:n], principal) {
			return fmt.Errorf("principal %.64q is listed twice", principal)
		}
	}
	for _, name := range nodeNames(r.Node) {
		if !slices.Contains(r.Principals, name) {
			return fmt.Errorf("principals %.200q do not include %q", r.Principals, name)
		}
	}
	for _, principal := range FurtherPrincipals(r) {
		if !own[principal] && isPublicAddress(principal) {
			return fmt.Errorf("%w: %s", ErrNewAddress, principal)
		}
		if !own[principal] {
			return fmt.Errorf("principal %.64q is not provably this machine's", principal)
		}
	}
	return nil
}

// ErrNewAddress says that an answer names a public address that the metadata service does not
// show: an Elastic IP that was just associated, which EC2's API shows sooner.
var ErrNewAddress = errors.New("the metadata service does not show this machine's public address yet")

func isPublicAddress(principal string) bool {
	a, err := netip.ParseAddr(principal)
	return err == nil && a.Is4() && a.String() == principal && a.IsGlobalUnicast() && !a.IsPrivate()
}

func checkCertificates(r *protocol.Response, keys []hostkey.Key, hostCAs []ssh.PublicKey, now time.Time) ([]*ssh.Certificate, error) {
	if len(r.Certificates) != len(keys) {
		return nil, fmt.Errorf("%d certificates for %d host keys", len(r.Certificates), len(keys))
	}
	var certificates []*ssh.Certificate
	for n, key := range keys {
		cert, err := hostcert.Parse(r.Certificates[n])
		if err != nil {
			return nil, fmt.Errorf("certificate for %s: %w", key.Path, err)
		}
		want := hostcert.Want{Key: key.Public, Principals: r.Principals, CAs: hostCAs, MaxLifetime: MaxLifetime}
		if err := hostcert.Check(cert, want, now); err != nil {
			return nil, fmt.Errorf("certificate for %s: %w", key.Path, err)
		}
		certificates = append(certificates, cert)
	}
	return certificates, nil
}

// clampRenewal keeps the renewal between a tenth and two thirds of the certificates' remaining
// life. An earlier time would cause a flood of requests, a later one a lock-out.
func clampRenewal(asked time.Time, certificates []*ssh.Certificate, now time.Time) time.Time {
	left := hostkey.FirstEnd(certificates).Sub(now)
	earliest, latest := now.Add(left/10), now.Add(left*2/3)
	switch {
	case asked.Before(earliest):
		return earliest
	case asked.After(latest):
		return latest
	}
	return asked
}
