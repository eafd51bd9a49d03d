// Package deployment builds the signer's functions from deployment.yaml, the files it
// names, and the environment.
package deployment

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/strictyaml"
)

// deployment is the configuration that changes only by deploying: which accounts the
// signer serves, which keys and roles it trusts, and which Teleport it logs in to. The
// policy is separate, because a person who may edit it must not be able to point the
// signer elsewhere.
type deployment struct {
	Audience               string            `yaml:"audience"`
	Accounts               accounts          `yaml:"accounts"`
	Organization           *organization     `yaml:"organization"`
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
	return policy.Limits{Accounts: d.Accounts.ids(), Organization: d.Organization != nil, Regions: d.Regions, MaxLifetime: time.Duration(d.MaxCertificateLifetime)}
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

// maxFileBytes bounds deployment.yaml.
const maxFileBytes = 1 << 20

// parseDeployment decodes strictly and checks everything that needs no other file. Its
// error is a *strictyaml.Error with everything that is wrong.
func parseDeployment(data []byte) (*deployment, error) {
	d := &deployment{MaxCertificateLifetime: policy.Duration(policy.LongestLifetime), URLAuth: urlAuthNone}
	file := strictyaml.Decode(data, d, strictyaml.Options{MaxBytes: maxFileBytes})
	if file.Readable() {
		d.check(file.Top())
	}
	if err := file.Err(); err != nil {
		return nil, err
	}
	return d, nil
}

var regexpAudience = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.:/_-]*$`)

// maxAudience is checked separately: counting in a regular expression would slow down
// every cold start.
const maxAudience = 253

// check adds what is wrong with the settings, and prepares those that are used in another
// form.
func (d *deployment) check(at strictyaml.Value) {
	switch audience := at.Key("audience"); {
	case !audience.Present():
		audience.Missing("write the signer's name, such as hallmark.example.com")
	case !regexpAudience.MatchString(d.Audience) || len(d.Audience) > maxAudience:
		audience.Failf("%.300q is not a name of 1 to %d letters, digits, dots and hyphens", d.Audience, maxAudience)
	}
	d.checkRegions(at.Key("regions"))
	var first ec2ref.Region
	if len(d.Regions) > 0 {
		first = d.Regions[0]
	}
	if len(d.Accounts) > 0 || d.Organization == nil {
		d.Accounts.check(first, at.Key("accounts"))
	}
	if d.Organization != nil {
		d.Organization.check(first, at.Key("organization"))
	}
	if d.URLAuth != urlAuthNone && d.URLAuth != urlAuthIAM {
		at.Key("url_auth").Failf("%q is neither %s nor %s", d.URLAuth, urlAuthNone, urlAuthIAM)
	}
	if m := d.MaxCertificateLifetime; m < policy.Duration(policy.ShortestLifetime) || m > policy.Duration(policy.LongestLifetime) {
		at.Key("max_certificate_lifetime").Failf("%s is not in %s to %s", m, policy.Duration(policy.ShortestLifetime), policy.Duration(policy.LongestLifetime))
	}
	d.checkTeleport(at.Key("teleport"))
	d.sources, d.endpoints = parseSources(d.AllowSources, at.Key("allow_sources"))
	d.checkKeys(at)
}

func (d *deployment) checkTeleport(at strictyaml.Value) {
	if address := at.Key("address"); !address.Present() {
		address.Missing("write the proxy's host:port, such as teleport.example.com:443")
	} else if !teleport.IsAddress(d.Teleport.Address) {
		address.Failf("%.300q is not host:port, such as teleport.example.com:443", d.Teleport.Address)
	}
	if login := at.Key("login"); login.Present() {
		d.Teleport.Login.check(login)
	} else {
		login.Missing("write method and its settings")
	}
	if l := d.Teleport.FleetLogin; l != nil {
		l.check(at.Key("fleet_login"))
	}
}

// checkKeys adds the shipped keys of regions to those of the file. It checks that there is
// one for each region.
func (d *deployment) checkKeys(at strictyaml.Value) {
	d.keyring = newKeyring(d.RegionCertificates, at.Key("region_certificates"))
	for i, region := range d.Regions {
		_, own := d.RegionCertificates[string(region)] // what is wrong with it was said
		if _, err := ec2ref.ParseRegion(string(region)); err == nil && !own && d.keyring != nil && !d.keyring.Has(region) {
			at.Key("regions").Entry(i).Failf("no key is known for %s; add its certificate under region_certificates", region)
		}
	}
}

func checkList[T ~string](list []T, parse func(string) (T, error), want string, at strictyaml.Value) {
	if !at.Present() {
		at.Missing("list those that may enroll instances")
		return
	}
	if len(list) == 0 {
		at.Failf("empty; list those that may enroll instances")
	}
	seen := make(map[T]bool, len(list))
	for i, value := range list {
		if _, err := parse(string(value)); err != nil {
			at.Entry(i).Failf("%.100q is not %s", value, want)
		} else if seen[value] {
			at.Entry(i).Failf("%q is listed twice; remove one", value)
		}
		seen[value] = true
	}
}

// checkRegions keeps a signer within one partition: account numbers are unique only within
// one, and so is access to EC2.
func (d *deployment) checkRegions(at strictyaml.Value) {
	checkList(d.Regions, ec2ref.ParseRegion, "an AWS region, such as us-west-2", at)
	var first ec2ref.Partition
	for i, region := range d.Regions {
		partition, err := region.Partition()
		switch {
		case err != nil: // checkList said so
		case first == "":
			first = partition
		case partition != first:
			at.Entry(i).Failf("%s is in partition %s, others are in %s; deploy a signer for each", region, partition, first)
		}
	}
}

var regexpEndpoint = regexp.MustCompile(`^vpce-([0-9a-f]{8}|[0-9a-f]{17})$`)

// parseSources reads networks in CIDR notation and ids of VPC endpoints. An empty list is
// an error: it looks like "nobody" but would mean "everybody".
func parseSources(list []string, at strictyaml.Value) (networks []netip.Prefix, endpoints []string) {
	if list != nil && len(list) == 0 {
		at.Failf("empty; leave it out to admit every address")
	}
	for i, text := range list {
		if regexpEndpoint.MatchString(text) {
			endpoints = append(endpoints, text)
			continue
		}
		network, err := netip.ParsePrefix(text)
		switch {
		case err != nil || network.Addr().Is4In6():
			at.Entry(i).Failf("%.100q is neither a network such as 192.0.2.0/24 or 2001:db8::/32 nor a VPC endpoint such as vpce-0a1b2c3d4e5f60718", text)
		case network != network.Masked():
			at.Entry(i).Failf("%s is an address within %s; write the network", text, network.Masked())
		}
		networks = append(networks, network)
	}
	return networks, endpoints
}

// newKeyring adds regions to the shipped ones, and replaces none of them.
func newKeyring(certificates map[string]string, at strictyaml.Value) *identity.Keyring {
	keyring, err := identity.Regions()
	if err != nil {
		at.Fail(err)
		return nil
	}
	for _, region := range slices.Sorted(maps.Keys(certificates)) {
		more, err := keyring.With(ec2ref.Region(region), []byte(certificates[region]))
		if err != nil {
			at.Key(region).Fail(err)
			continue
		}
		keyring = more
	}
	return keyring
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
