// Package sshdconf reads the language of sshd's configuration, and renders what Hallmark writes
// in it. It builds wherever the Packer plugin does.
package sshdconf

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Files that Hallmark keeps on a machine.
const (
	// CAFile holds the keys whose user certificates sshd accepts.
	CAFile = "/etc/ssh/hallmark/openssh_ca.pub"
	// MainConfig is OpenSSH's own configuration file.
	MainConfig = "/etc/ssh/sshd_config"
	// VendorConfig is SUSE's configuration file, which its sshd reads if there is no
	// MainConfig.
	VendorConfig = "/usr/etc/ssh/sshd_config"
	// DropIn sorts before cloud-init's 50-cloud-init.conf, because the first value of a
	// keyword wins (sshd_config(5)).
	DropIn = "/etc/ssh/sshd_config.d/00-hallmark.conf"

	// DefaultMaxStartups is higher than OpenSSH's 10:30:100, with which sshd drops connections
	// of a Teleport proxy that opens many sessions at once.
	DefaultMaxStartups = "100:30:200"
)

// Options are what Hallmark sets in sshd's configuration.
type Options struct {
	// TrustedUserCAKeys is the path of the CA file.
	TrustedUserCAKeys string
	// HostCertificates are paths of certificates; they need not exist yet.
	HostCertificates []string
	// MaxStartups is "start:rate:full" or "start"; empty leaves sshd's default.
	MaxStartups string
	// ProxySources are the addresses and networks that Teleport's proxies connect from. Render
	// does not write them; they go into PenaltyExempt.
	ProxySources []string
	// PenaltyExempt is the value of PerSourcePenaltyExemptList; empty leaves sshd's default.
	PenaltyExempt string
}

// DefaultOptions returns the options with the files that Hallmark writes.
func DefaultOptions() Options {
	return Options{
		TrustedUserCAKeys: CAFile,
		HostCertificates: []string{
			"/etc/ssh/ssh_host_rsa_key-cert.pub",
			"/etc/ssh/ssh_host_ecdsa_key-cert.pub",
			"/etc/ssh/ssh_host_ed25519_key-cert.pub",
		},
		MaxStartups: DefaultMaxStartups,
	}
}

// Render returns the options as sshd_config(5) lines, with a comment that says
// where they come from.
func (o Options) Render() []byte {
	var b strings.Builder
	b.WriteString("# Written by hallmark install: logins by certificates of a Teleport cluster.\n")
	b.WriteString("# Changes made here are lost when it runs again.\n")
	fmt.Fprintf(&b, "TrustedUserCAKeys %s\n", quote(o.TrustedUserCAKeys))
	for _, path := range o.HostCertificates {
		fmt.Fprintf(&b, "HostCertificate %s\n", quote(path))
	}
	if o.MaxStartups != "" {
		fmt.Fprintf(&b, "MaxStartups %s\n", o.MaxStartups)
	}
	if o.PenaltyExempt != "" {
		fmt.Fprintf(&b, "PerSourcePenaltyExemptList %s\n", o.PenaltyExempt)
	}
	return []byte(b.String())
}

// quote puts a path into double quotes, which all versions know, if it has a blank.
func quote(path string) string {
	if strings.ContainsAny(path, " \t") {
		return `"` + path + `"`
	}
	return path
}

var maxStartups = regexp.MustCompile(`^([1-9][0-9]{0,5})(?::([1-9][0-9]{0,2}):([1-9][0-9]{0,5}))?$`)

// CheckMaxStartups returns an error unless s is a valid MaxStartups (sshd_config(5)). This
// check keeps a line break, and so another directive, out of the rendered file.
func CheckMaxStartups(s string) error {
	m := maxStartups.FindStringSubmatch(s)
	if m == nil {
		return fmt.Errorf("%.100q is not of the form start:rate:full, for example %s", s, DefaultMaxStartups)
	}
	if m[2] == "" {
		return nil
	}
	start, rate, full := number(m[1]), number(m[2]), number(m[3])
	if rate > 100 {
		return fmt.Errorf("%q: the rate %d is not a percentage", s, rate)
	}
	if full < start {
		return fmt.Errorf("%q: full (%d) is less than start (%d)", s, full, start)
	}
	return nil
}

// number converts digits. The caller has bounded how many there are.
func number(digits string) int {
	n, _ := strconv.Atoi(digits)
	return n
}
