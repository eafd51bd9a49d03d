// Package config is the configuration of a machine. It builds wherever the Packer plugin
// does.
package config

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
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

// maxConfigBytes bounds a configuration, which has a few short lines.
const maxConfigBytes = 64 << 10

// maxAudience bounds an audience, which is often a DNS name.
const maxAudience = 253

var (
	audience = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/-]*$`)
	yamlType = regexp.MustCompile(` in type \S+$`)
)

// Parse reads a configuration strictly: an unknown key or a second document is an error.
// Errors name the line.
func Parse(data []byte) (Config, error) {
	if len(data) > maxConfigBytes {
		return Config{}, fmt.Errorf("%d bytes, more than %d", len(data), maxConfigBytes)
	}
	var c Config
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	if err := decoder.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, yamlError(err)
	}
	if err := decoder.Decode(new(any)); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("more than one YAML document")
	}
	if key, err := c.check(); err != nil {
		return Config{}, fmt.Errorf("%s%s: %w", lineOf(data, key), key, err)
	}
	return c, nil
}

// check returns the first key whose value is wrong, and why.
func (c Config) check() (key string, err error) {
	if key, err := c.checkSigner(); err != nil {
		return key, err
	}
	if len(c.Audience) > maxAudience || !audience.MatchString(c.Audience) {
		return "audience", fmt.Errorf("%q is not a name such as hallmark.example.com", c.Audience)
	}
	if c.SignerCAFile != "" && (!path.IsAbs(c.SignerCAFile) || path.Clean(c.SignerCAFile) != c.SignerCAFile) {
		return "signer_ca_file", fmt.Errorf("%q is not an absolute path", c.SignerCAFile)
	}
	switch c.SignerAuth {
	case "", AuthNone, AuthIAM:
	default:
		return "signer_auth", fmt.Errorf("%q is neither %s nor %s", c.SignerAuth, AuthNone, AuthIAM)
	}
	if c.MaxStartups != "" {
		if err := sshdconf.CheckMaxStartups(c.MaxStartups); err != nil {
			return "max_startups", err
		}
	}
	switch c.HostCertificate {
	case "", KeepCertificate, ReplaceCertificate:
	default:
		return "host_certificate", fmt.Errorf("%q is neither %s nor %s", c.HostCertificate, KeepCertificate, ReplaceCertificate)
	}
	if _, err := c.ExtraCAs(); err != nil {
		return "extra_user_cas", err
	}
	if err := sshdconf.CheckSources(c.ProxySources); err != nil {
		return "proxy_sources", err
	}
	return "", nil
}

// checkSigner returns the key that is wrong about how to reach the signer, and why.
func (c Config) checkSigner() (key string, err error) {
	if c.SignerFunction == "" {
		return "signer_url", checkSignerURL(c.SignerURL)
	}
	if _, err := FunctionRegion(c.SignerFunction); err != nil {
		return "signer_function", err
	}
	if c.SignerURL != "" {
		if err := checkSignerURL(c.SignerURL); err != nil {
			return "signer_url", err
		}
	}
	if c.SignerAuth == AuthNone {
		return "signer_auth", errors.New("invocations of signer_function are always signed: remove signer_auth")
	}
	return "", nil
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

// ExtraCAs returns the keys of ExtraUserCAs.
func (c Config) ExtraCAs() ([]ssh.PublicKey, error) {
	if len(c.ExtraUserCAs) == 0 {
		return nil, nil
	}
	keys, err := cafile.ParseKeys(c.ExtraUserCAs)
	if err != nil {
		return nil, fmt.Errorf("%w: give public keys of CAs, as in ssh-ed25519 AAAA…", err)
	}
	return keys, nil
}

// checkSignerURL accepts only https: an attacker who reads the answer on its way learns
// little, but one who changes it chooses the CA that sshd trusts.
func checkSignerURL(s string) error {
	if s == "" {
		return errors.New("missing: give the https URL of the signer, or signer_function")
	}
	u, err := url.Parse(s)
	if err != nil {
		return err
	}
	if u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return fmt.Errorf("%q is not of the form https://HOST/", s)
	}
	return nil
}

// yamlError returns the first line of a YAML error, without the name of a Go type.
func yamlError(err error) error {
	message := err.Error()
	if e, ok := errors.AsType[*yaml.TypeError](err); ok && len(e.Errors) > 0 {
		message = e.Errors[0]
	}
	return errors.New(yamlType.ReplaceAllString(strings.TrimPrefix(message, "yaml: "), ""))
}

// lineOf returns "line N: " for a key at the top level, or "" if it is not there.
func lineOf(data []byte, key string) string {
	var document yaml.Node
	if err := yaml.Unmarshal(data, &document); err != nil || len(document.Content) == 0 {
		return ""
	}
	pairs := document.Content[0].Content
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i].Value == key {
			return fmt.Sprintf("line %d: ", pairs[i].Line)
		}
	}
	return ""
}

// Marshal returns the configuration in the form that Parse reads.
func (c Config) Marshal() ([]byte, error) {
	if key, err := c.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
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
