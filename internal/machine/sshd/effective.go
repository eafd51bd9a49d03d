package sshd

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"
)

// Effective is the part of sshd's effective configuration that Hallmark needs.
type Effective struct {
	// Options are the command-line options of the running sshd that affect its settings.
	Options  []string
	HostKeys []string // paths of private keys, including those that do not exist
	// NotLoaded are those of the HostKeys that exist and that sshd cannot read, because their
	// files do not have the form that ssh-keygen writes.
	NotLoaded        []string
	HostCertificates []string // paths
	HostKeyAgent     string   // socket of an agent that holds private keys, or empty for none
	// HostKeyAlgorithms is empty if sshd does not print them.
	HostKeyAlgorithms []string
	TrustedUserCAKeys string // path, or empty for none
	MaxStartups       string
	// RequiredRSASize is how many bits an RSA key must have, or 0 if sshd does not say.
	RequiredRSASize int
	PIDFile         string // path, or empty for none
	// Listen are addresses at which this machine can reach its own sshd.
	Listen []netip.AddrPort
}

// parseEffective reads what "sshd -T" prints.
func parseEffective(output []byte) (*Effective, error) {
	var e Effective
	for line := range strings.Lines(string(output)) {
		keyword, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch keyword {
		case "hostkey":
			e.HostKeys = append(e.HostKeys, value)
		case "hostcertificate":
			e.HostCertificates = append(e.HostCertificates, value)
		case "hostkeyagent":
			e.HostKeyAgent = noneIsEmpty(value)
		case "hostkeyalgorithms":
			e.HostKeyAlgorithms = strings.Split(value, ",")
		case "trustedusercakeys":
			e.TrustedUserCAKeys = noneIsEmpty(value)
		case "maxstartups":
			e.MaxStartups = value
		case "requiredrsasize":
			size, err := strconv.Atoi(value)
			if err != nil {
				return nil, fmt.Errorf("read sshd -T: requiredrsasize %q: %w", value, err)
			}
			e.RequiredRSASize = size
		case "pidfile":
			e.PIDFile = noneIsEmpty(value)
		case "listenaddress":
			address, _, _ := strings.Cut(value, " ") // "… rdomain NAME" may follow
			listen, err := netip.ParseAddrPort(address)
			if err != nil {
				return nil, fmt.Errorf("read sshd -T: listenaddress %q: %w", value, err)
			}
			e.Listen = append(e.Listen, reachable(listen))
		}
	}
	if len(e.Listen) == 0 {
		return nil, errors.New("read sshd -T: it names no listenaddress")
	}
	return &e, nil
}

func noneIsEmpty(value string) string {
	if value == "none" {
		return ""
	}
	return value
}

// reachable maps unspecified addresses to loopback: a server listens on 0.0.0.0, but clients
// connect to 127.0.0.1.
func reachable(a netip.AddrPort) netip.AddrPort {
	switch a.Addr() {
	case netip.IPv4Unspecified():
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), a.Port())
	case netip.IPv6Unspecified():
		return netip.AddrPortFrom(netip.IPv6Loopback(), a.Port())
	}
	return a
}

// PresentsPlain reports whether sshd may present a key of this type without a certificate.
func (e *Effective) PresentsPlain(keyType string) bool {
	algorithms := []string{keyType}
	if keyType == ssh.KeyAlgoRSA {
		algorithms = append(algorithms, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512)
	}
	return len(e.HostKeyAlgorithms) == 0 ||
		slices.ContainsFunc(algorithms, func(a string) bool { return slices.Contains(e.HostKeyAlgorithms, a) })
}

// CertAlgorithms returns the host key algorithms with which sshd may present a certificate for
// a key of this type: those that it permits, or none if the configuration (a crypto policy,
// FIPS) rules them out.
func (e *Effective) CertAlgorithms(keyType string) []string {
	var algorithms []string
	switch keyType {
	case ssh.KeyAlgoRSA:
		algorithms = []string{ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01}
	case ssh.KeyAlgoED25519:
		algorithms = []string{ssh.CertAlgoED25519v01}
	case ssh.KeyAlgoECDSA256:
		algorithms = []string{ssh.CertAlgoECDSA256v01}
	case ssh.KeyAlgoECDSA384:
		algorithms = []string{ssh.CertAlgoECDSA384v01}
	case ssh.KeyAlgoECDSA521:
		algorithms = []string{ssh.CertAlgoECDSA521v01}
	}
	if len(e.HostKeyAlgorithms) == 0 {
		return algorithms
	}
	return slices.DeleteFunc(algorithms, func(a string) bool { return !slices.Contains(e.HostKeyAlgorithms, a) })
}
