// Package config is the configuration of a machine. It builds wherever the Packer plugin
// does.
package config

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v4"
	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/strictyaml"
)

// Files of a machine's configuration.
const (
	File         = "/etc/hallmark/config.yaml"
	SignerCAFile = "/etc/hallmark/signer_ca.pem"
)

// Config is the machine's configuration. It holds no secret.
type Config struct {
	// SignerURL is the https URL to enroll at. With SignerFunction it is optional, and is
	// Lambda's endpoint.
	SignerURL string `yaml:"signer_url,omitempty"`
	// SignerFunction is the ARN of the signer's function, for machines that invoke it with
	// the credentials of the instance profile instead of calling a URL. Optional.
	SignerFunction string `yaml:"signer_function,omitempty"`
	// Audience is the name of the signer that requests are made for.
	Audience string `yaml:"audience"`
	// SignerCAFile is the absolute path of PEM certificates to trust for SignerURL, in
	// addition to the system's. Optional.
	SignerCAFile string `yaml:"signer_ca_file,omitempty"`
	// SignerAuth says how requests to the signer are authenticated on the way: none, the
	// default, or aws_iam for a function URL or a private API that requires it.
	SignerAuth string `yaml:"signer_auth,omitempty"`
	// FIPS makes the machine prove itself to the FIPS endpoint of STS, which some regions
	// have (ec2ref.STSHost).
	FIPS bool `yaml:"fips,omitempty"`
	// MaxStartups is sshd's MaxStartups, which hallmark install sets. Empty means
	// sshd.DefaultMaxStartups.
	MaxStartups string `yaml:"max_startups,omitempty"`
	// HostCertificate says what to do about a host key that another CA has certified: keep,
	// the default, certifies other host keys; replace overwrites that certificate.
	HostCertificate string `yaml:"host_certificate,omitempty"`
	// ExtraUserCAs are public keys of CAs that sshd trusts for people in addition to the
	// cluster's, for example during a migration. They stay when the cluster's CAs change.
	ExtraUserCAs []string `yaml:"extra_user_cas,omitempty"`
	// ProxySources are the IP addresses and networks (CIDR) that Teleport's proxies connect
	// from. hallmark install exempts them from sshd's penalties by source address: to sshd,
	// everybody who logs in through a proxy has the proxy's address. Optional.
	ProxySources []string `yaml:"proxy_sources,omitempty"`
}

// Values of SignerAuth.
const (
	AuthNone = "none"
	AuthIAM  = "aws_iam"
)

// Values of HostCertificate: what to do about a host key that another CA has certified.
const (
	// KeepCertificate leaves that certificate alone, and certifies other host keys.
	KeepCertificate = "keep"
	// ReplaceCertificate overwrites that certificate.
	ReplaceCertificate = "replace"
)

// maxBytes bounds a configuration, which has a few short lines.
const maxBytes = 64 << 10

// maxAudience bounds an audience, which is often a DNS name.
const maxAudience = 253

// maxURL bounds signer_url.
const maxURL = 2 << 10

var audience = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/-]*$`)

// Parse reads a configuration strictly: an unknown key or a second document is an error. If the
// file is wrong, the error is a *strictyaml.Error that lists everything that is wrong.
func Parse(data []byte) (Config, error) {
	var c Config
	file := strictyaml.Decode(data, &c, strictyaml.Options{MaxBytes: maxBytes, EmptyIsUnset: true})
	if file.Readable() {
		for _, w := range c.Problems() {
			switch key := file.Top().Key(w.Key); {
			case !key.Present():
				key.Missing(w.fix())
			case w.entry > 0:
				key.Entry(w.entry - 1).Fail(w.Err)
			default:
				key.Fail(w.Err)
			}
		}
	}
	if err := file.Err(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// Problem is a key whose value is wrong, and why.
type Problem struct {
	Key   string
	Err   error
	entry int // of a list, from 1; 0 means all of it
}

// fix is what to do if the key is missing.
func (p Problem) fix() string {
	if m, ok := errors.AsType[*missingError](p.Err); ok {
		return m.fix
	}
	return p.Err.Error()
}

// missingError is a value that must be there.
type missingError struct{ fix string }

func (e *missingError) Error() string { return "missing; " + e.fix }

// Problems returns everything that is wrong. Each message quotes the value.
func (c Config) Problems() []Problem {
	all := c.checkSigner()
	add := func(key string, err error) {
		if err != nil {
			all = append(all, Problem{Key: key, Err: err})
		}
	}
	add("audience", checkAudience(c.Audience))
	if c.SignerCAFile != "" && (!path.IsAbs(c.SignerCAFile) || path.Clean(c.SignerCAFile) != c.SignerCAFile) {
		add("signer_ca_file", fmt.Errorf("%q is not an absolute path", c.SignerCAFile))
	}
	add("signer_auth", oneOf(c.SignerAuth, AuthNone, AuthIAM))
	if c.MaxStartups != "" {
		add("max_startups", sshdconf.CheckMaxStartups(c.MaxStartups))
	}
	add("host_certificate", oneOf(c.HostCertificate, KeepCertificate, ReplaceCertificate))
	all = append(all, checkEach("extra_user_cas", c.ExtraUserCAs, checkExtraCAs)...)
	return append(all, checkEach("proxy_sources", c.ProxySources, sshdconf.CheckSources)...)
}

// checkExtraCAs quotes only the beginning of an entry: somebody may have given a private key.
func checkExtraCAs(lines []string) error {
	for _, line := range lines {
		if _, err := cafile.ParseKey(line); err != nil {
			return fmt.Errorf("%.40q: %w; give the public key of a CA, as in ssh-ed25519 AAAA…", line, err)
		}
	}
	_, err := cafile.ParseKeys(lines)
	return err
}

// checkEach checks the entries of a list one by one, and if all are good, the list.
func checkEach(key string, list []string, check func([]string) error) []Problem {
	var all []Problem
	for i, entry := range list {
		if err := check([]string{entry}); err != nil {
			all = append(all, Problem{key, err, i + 1})
		}
	}
	if len(list) > 0 && all == nil {
		if err := check(list); err != nil {
			return []Problem{{Key: key, Err: err}}
		}
	}
	return all
}

func checkAudience(name string) error {
	switch {
	case name == "":
		return &missingError{"write the signer's name, such as hallmark.example.com"}
	case len(name) > maxAudience || !audience.MatchString(name):
		return fmt.Errorf("%.300q is not a name such as hallmark.example.com", name)
	}
	return nil
}

// oneOf admits two values, and none.
func oneOf(value, first, second string) error {
	switch value {
	case "", first, second:
		return nil
	}
	return fmt.Errorf("%.100q is neither %s nor %s", value, first, second)
}

// checkSigner returns what is wrong with the keys that say how to reach the signer.
func (c Config) checkSigner() []Problem {
	var all []Problem
	if c.SignerFunction != "" {
		if _, err := FunctionRegion(c.SignerFunction); err != nil {
			all = append(all, Problem{Key: "signer_function", Err: err})
		}
		if c.SignerAuth == AuthNone {
			all = append(all, Problem{Key: "signer_auth", Err: errors.New("invocations of signer_function are always signed: remove signer_auth")})
		}
	}
	if c.SignerFunction == "" || c.SignerURL != "" {
		if err := checkSignerURL(c.SignerURL); err != nil {
			all = append(all, Problem{Key: "signer_url", Err: err})
		}
	}
	return all
}

// function matches the ARN of a function, or of one of its versions or aliases.
var function = regexp.MustCompile(`^arn:aws[a-z-]*:lambda:([a-z0-9-]+):[0-9]{12}:function:[A-Za-z0-9_-]{1,64}(:[A-Za-z0-9_$-]{1,128})?$`)

// FunctionRegion returns the region in a function's ARN (Service Authorization Reference,
// "Resource types defined by AWS Lambda").
func FunctionRegion(arn string) (ec2ref.Region, error) {
	parts := function.FindStringSubmatch(arn)
	if parts == nil {
		return "", fmt.Errorf("%.200q is not the ARN of a function, as in arn:aws:lambda:us-west-2:111122223333:function:NAME", arn)
	}
	return ec2ref.ParseRegion(parts[1])
}

// SignerAddress returns the URL of the host that requests to the signer go to.
func (c Config) SignerAddress() (string, error) {
	if c.SignerURL != "" || c.SignerFunction == "" {
		return c.SignerURL, nil
	}
	region, err := FunctionRegion(c.SignerFunction)
	if err != nil {
		return "", err
	}
	host, err := ec2ref.Lambda.Host(region)
	if err != nil {
		return "", err
	}
	return "https://" + host + "/", nil
}

// SignsRequests reports whether requests to the signer are signed with the credentials of the
// instance profile.
func (c Config) SignsRequests() bool { return c.SignerAuth == AuthIAM || c.SignerFunction != "" }

// ExtraCAs returns the keys of ExtraUserCAs.
func (c Config) ExtraCAs() ([]ssh.PublicKey, error) {
	if len(c.ExtraUserCAs) == 0 {
		return nil, nil
	}
	keys, err := cafile.ParseKeys(c.ExtraUserCAs)
	if err != nil {
		return nil, fmt.Errorf("%w; give public keys of CAs, as in ssh-ed25519 AAAA…", err)
	}
	return keys, nil
}

// checkSignerURL accepts only https: an attacker who reads the answer on its way learns
// little, but one who changes it chooses the CA that sshd trusts.
func checkSignerURL(s string) error {
	if s == "" {
		return &missingError{"write the https URL of the signer, or signer_function"}
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Fragment != "" || strings.ContainsFunc(s, unicode.IsSpace) || len(s) > maxURL {
		return fmt.Errorf("%.300q is not of the form https://HOST/", s)
	}
	return nil
}

// Marshal returns the configuration in the form that Parse reads.
func (c Config) Marshal() ([]byte, error) {
	var all []error
	for _, p := range c.Problems() {
		all = append(all, fmt.Errorf("%s: %w", p.Key, p.Err))
	}
	if all != nil {
		return nil, errors.Join(all...)
	}
	return yaml.Marshal(c)
}

// Digest identifies the part of the configuration that the signer's answer depends on.
func (c Config) Digest() string {
	text := c.SignerURL + "\x00" + c.Audience
	if c.SignerFunction != "" {
		text += "\x00" + c.SignerFunction
	}
	if c.FIPS {
		text += "\x00fips"
	}
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// SSHDOptions returns what hallmark install sets in sshd's configuration.
func (c Config) SSHDOptions() sshdconf.Options {
	o := sshdconf.DefaultOptions()
	if c.MaxStartups != "" {
		o.MaxStartups = c.MaxStartups
	}
	o.ProxySources = c.ProxySources
	return o
}
