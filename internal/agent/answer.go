package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// maxLifetime is the longest lifetime of a host certificate: nothing revokes one.
const maxLifetime = 30 * 24 * time.Hour

var dnsName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)

// grant is an answer that has been checked.
type grant struct {
	certificates []*ssh.Certificate // in the order of the host keys
	openSSH      []ssh.PublicKey
	hosts        []ssh.PublicKey
	renewAfter   time.Time
}

// checkAnswer decides whether an answer is what was asked for, before anything is
// written. The signer is trusted, but an answer to another machine, or by a signer
// that went wrong, must not lock people out.
func checkAnswer(r *protocol.Response, keys []hostKey, i Instance, now time.Time) (*grant, error) {
	if err := checkNode(r, i); err != nil {
		return nil, err
	}
	openSSH, err := parseAuthorities(r.OpenSSHCAs)
	if err != nil {
		return nil, fmt.Errorf("OpenSSH CAs: %w", err)
	}
	hosts, err := parseAuthorities(r.HostCAs)
	if err != nil {
		return nil, fmt.Errorf("host CAs: %w", err)
	}
	certificates, err := checkCertificates(r, keys, hosts, now)
	if err != nil {
		return nil, err
	}
	return &grant{certificates, openSSH, hosts, clampRenewal(r.RenewAfter, certificates, now)}, nil
}

// maxAddresses bounds the principals beside the node's own four names.
const maxAddresses = 8

// checkNode refuses an answer about another instance, and principals that are not
// the four names of this node and what a rule of the signer's policy may add:
// addresses, and a DNS name as EC2 gives it. Which of them are the instance's own,
// the signer knows; here it is enough that none is a plain host name, nor a pattern.
func checkNode(r *protocol.Response, i Instance) error {
	if want := protocol.NodeID(i.AccountID, i.Region, i.InstanceID); r.Node.ID != want {
		return fmt.Errorf("it is about node %.64q, but this instance is %s", r.Node.ID, want)
	}
	if !dnsName.MatchString(r.Node.Hostname) {
		return fmt.Errorf("host name %.64q is not a DNS name in lower case", r.Node.Hostname)
	}
	if r.Node.Cluster == "" {
		return errors.New("it names no cluster")
	}
	own := []string{
		r.Node.Hostname, r.Node.Hostname + "." + r.Node.Cluster,
		r.Node.ID, r.Node.ID + "." + r.Node.Cluster,
	}
	for _, name := range own {
		if !slices.Contains(r.Principals, name) {
			return fmt.Errorf("principals %.200q lack %q", r.Principals, name)
		}
	}
	if n := len(r.Principals) - len(own); n > maxAddresses {
		return fmt.Errorf("principals: %d beside the node's own, more than %d", n, maxAddresses)
	}
	for i, name := range r.Principals {
		if slices.Contains(r.Principals[:i], name) {
			return fmt.Errorf("principals: %.64q is there twice", name)
		}
		if !slices.Contains(own, name) && !isAddress(name) {
			return fmt.Errorf("principals: %.64q is neither the node's own nor an address", name)
		}
	}
	return nil
}

// isAddress reports whether a principal is an IP address, in the one form in which
// clients write it, or a DNS name of more than one label.
func isAddress(name string) bool {
	if address, err := netip.ParseAddr(name); err == nil {
		return address.IsGlobalUnicast() && address.Zone() == "" && !address.Is4In6() && address.String() == name
	}
	return dnsName.MatchString(name) && strings.Contains(name, ".")
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

// firstEnd returns when the first of the certificates ends.
func firstEnd(certificates []*ssh.Certificate) time.Time {
	var end uint64 = ssh.CertTimeInfinity
	for _, cert := range certificates {
		end = min(end, cert.ValidBefore)
	}
	return time.Unix(int64(end), 0) //nolint:gosec // hostcert.Check has bounded it
}
