// Package deployment builds the signer's functions from deployment.yaml, the files it
// names, and the environment.
package deployment

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
)

// deployment is the configuration that changes only by deploying: which accounts the
// signer serves, which keys and roles it trusts, and which Teleport it logs in to. The
// policy is separate, because a person who may edit it must not be able to point the
// signer elsewhere.
type deployment struct {
	Audience               string            `yaml:"audience"`
	Accounts               accounts          `yaml:"accounts"`
	Regions                []ec2ref.Region   `yaml:"regions"`
	RegionCertificates     map[string]string `yaml:"region_certificates"`
	MaxCertificateLifetime policy.Duration   `yaml:"max_certificate_lifetime"`
	Teleport               struct {
		Address   string `yaml:"address"`
		RootsFile string `yaml:"roots_file"`
		Login     login  `yaml:"login"`
		// FleetLogin is the login of the function fleet; nil means the default
		// (fleetLogin).
		FleetLogin *login `yaml:"fleet_login"`
	} `yaml:"teleport"`
	PolicyFile string `yaml:"policy_file"`
	// AllowSources are the networks and VPC endpoints that may call; nil means all. A
	// request must come from a listed network, if there are any, and through a listed
	// endpoint, if there are any.
	AllowSources []string `yaml:"allow_sources"`
	// URLAuth is the function URL's AuthType: urlAuthNone or urlAuthIAM.
	URLAuth string `yaml:"url_auth"`

	sources   []netip.Prefix // of AllowSources
	endpoints []string       // of AllowSources
	roots     []byte         // content of RootsFile
	keyring   *identity.Keyring
	policy    *policy.Policy // of PolicyFile, or the built-in one
}

// The values of url_auth.
const (
	urlAuthNone = "none"
	urlAuthIAM  = "aws_iam"
)

// limits are the limits that the deployment sets for the policy.
func (d *deployment) limits() policy.Limits {
	return policy.Limits{Accounts: d.Accounts.ids(), Regions: d.Regions, MaxLifetime: time.Duration(d.MaxCertificateLifetime)}
}

// Limits returns the limits that a deployment.yaml sets for the policy, and the names of
// its cluster. It reads no other file.
func Limits(data []byte) (policy.Limits, node.Cluster, error) {
	d, err := parseDeployment(data)
	if err != nil {
		return policy.Limits{}, node.Cluster{}, err
	}
	proxy, _, err := net.SplitHostPort(d.Teleport.Address)
	return d.limits(), node.Cluster{Signer: d.Audience, Proxy: proxy}, err
}

// readDeployment reads the file and all files it names; relative paths start from its
// folder. Errors name the setting.
func readDeployment(path string) (*deployment, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	d, err := parseDeployment(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := d.readFiles(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}

// parseDeployment decodes strictly and checks everything that needs no other file.
func parseDeployment(data []byte) (*deployment, error) {
	d := &deployment{MaxCertificateLifetime: policy.Duration(policy.LongestLifetime), URLAuth: urlAuthNone}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	if err := decoder.Decode(d); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the file is empty")
		}
		return nil, err
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("the file holds more than one YAML document")
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	var err error
	if d.sources, d.endpoints, err = parseSources(d.AllowSources); err != nil {
		return nil, fmt.Errorf("allow_sources: %w", err)
	}
	if d.keyring, err = newKeyring(d.RegionCertificates); err != nil {
		return nil, err
	}
	for _, region := range d.Regions {
		if !d.keyring.Has(region) {
			return nil, fmt.Errorf("regions: no key is known for %s; add its certificate under region_certificates", region)
		}
	}
	return d, nil
}

var regexpAudience = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.:/_-]*$`)

// maxAudience is checked separately: counting in a regular expression would slow down
// every cold start.
const maxAudience = 253

func (d *deployment) check() error {
	if !regexpAudience.MatchString(d.Audience) || len(d.Audience) > maxAudience {
		return fmt.Errorf("audience: %q is not a name of 1 to 253 letters, digits, dots and hyphens", d.Audience)
	}
	if err := checkList("regions", d.Regions, ec2ref.ParseRegion, "an AWS region"); err != nil {
		return err
	}
	if err := checkPartition(d.Regions); err != nil {
		return fmt.Errorf("regions: %w", err)
	}
	if err := d.Accounts.check(d.Regions[0]); err != nil {
		return err
	}
	if d.URLAuth != urlAuthNone && d.URLAuth != urlAuthIAM {
		return fmt.Errorf("url_auth: %q is neither %s nor %s", d.URLAuth, urlAuthNone, urlAuthIAM)
	}
	if m := time.Duration(d.MaxCertificateLifetime); m < policy.ShortestLifetime || m > policy.LongestLifetime {
		return fmt.Errorf("max_certificate_lifetime: %s is not in %s to %s", m, policy.ShortestLifetime, policy.LongestLifetime)
	}
	if _, _, err := net.SplitHostPort(d.Teleport.Address); err != nil {
		return fmt.Errorf("teleport.address: want host:port: %w", err)
	}
	if err := d.Teleport.Login.check(); err != nil {
		return fmt.Errorf("teleport.login.%w", err)
	}
	if l := d.Teleport.FleetLogin; l != nil {
		if err := l.check(); err != nil {
			return fmt.Errorf("teleport.fleet_login.%w", err)
		}
	}
	return nil
}

func checkList[T ~string](name string, list []T, parse func(string) (T, error), want string) error {
	if len(list) == 0 {
		return fmt.Errorf("%s: empty; list those that may enroll instances", name)
	}
	for i, value := range list {
		if _, err := parse(string(value)); err != nil {
			return fmt.Errorf("%s: %q is not %s", name, value, want)
		}
		if slices.Contains(list[:i], value) {
			return fmt.Errorf("%s: %q is listed twice", name, value)
		}
	}
	return nil
}

var regexpEndpoint = regexp.MustCompile(`^vpce-([0-9a-f]{8}|[0-9a-f]{17})$`)

// parseSources reads networks in CIDR notation and ids of VPC endpoints. An empty list is
// an error: it looks like "nobody" but would mean "everybody".
func parseSources(list []string) (networks []netip.Prefix, endpoints []string, err error) {
	if list != nil && len(list) == 0 {
		return nil, nil, errors.New("empty; leave it out to admit every address")
	}
	for _, text := range list {
		if regexpEndpoint.MatchString(text) {
			endpoints = append(endpoints, text)
			continue
		}
		network, err := netip.ParsePrefix(text)
		switch {
		case err != nil || network.Addr().Is4In6():
			return nil, nil, fmt.Errorf("%q is neither a network such as 192.0.2.0/24 or 2001:db8::/32 nor a VPC endpoint such as vpce-0a1b2c3d4e5f60718", text)
		case network != network.Masked():
			return nil, nil, fmt.Errorf("%s is an address within %s; write the network", text, network.Masked())
		}
		networks = append(networks, network)
	}
	return networks, endpoints, nil
}

// checkPartition keeps a signer within one partition: account numbers are unique only
// within one, and so is access to EC2.
func checkPartition(regions []ec2ref.Region) error {
	first, err := regions[0].Partition()
	if err != nil {
		return err
	}
	for _, region := range regions[1:] {
		partition, err := region.Partition()
		if err != nil {
			return err
		}
		if partition != first {
			return fmt.Errorf("%s is in partition %s and %s in %s; deploy a signer for each", regions[0], first, region, partition)
		}
	}
	return nil
}

// newKeyring adds regions to the shipped ones, and replaces none of them.
func newKeyring(certificates map[string]string) (*identity.Keyring, error) {
	keyring, err := identity.Regions()
	if err != nil {
		return nil, err
	}
	for _, region := range slices.Sorted(maps.Keys(certificates)) {
		if keyring, err = keyring.With(ec2ref.Region(region), []byte(certificates[region])); err != nil {
			return nil, fmt.Errorf("region_certificates: %w", err)
		}
	}
	return keyring, nil
}

func (d *deployment) readFiles(folder string) error {
	if d.Teleport.RootsFile != "" {
		var err error
		if d.roots, err = os.ReadFile(within(folder, d.Teleport.RootsFile)); err != nil {
			return fmt.Errorf("teleport.roots_file: %w", err)
		}
	}
	if err := d.Teleport.Login.find(folder); err != nil {
		return fmt.Errorf("teleport.login.file: %w", err)
	}
	if l := d.Teleport.FleetLogin; l != nil {
		if err := l.find(folder); err != nil {
			return fmt.Errorf("teleport.fleet_login.file: %w", err)
		}
	}
	return d.readPolicy(folder)
}

// find checks that the file of method identity-file exists. Teleport's client reads it at
// each call; a missing file should show at the start.
func (l *login) find(folder string) error {
	if l.Method != loginFile {
		return nil
	}
	l.File = within(folder, l.File)
	_, err := os.Stat(l.File)
	return err
}

func (d *deployment) readPolicy(folder string) (err error) {
	if d.PolicyFile == "" {
		d.policy, err = policy.Default(d.limits())
		return err
	}
	data, err := os.ReadFile(within(folder, d.PolicyFile))
	if err != nil {
		return fmt.Errorf("policy_file: %w", err)
	}
	if d.policy, err = policy.Parse(data, d.limits()); err != nil {
		return fmt.Errorf("policy_file: %s: %w", d.PolicyFile, err)
	}
	return nil
}

func within(folder, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(folder, path)
}
