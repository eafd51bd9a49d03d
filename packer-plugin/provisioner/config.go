package provisioner

import (
	"github.com/hashicorp/packer-plugin-sdk/common"
	"github.com/hashicorp/packer-plugin-sdk/template/interpolate"
)

//go:generate go tool packer-sdc mapstructure-to-hcl2 -type Config

// Config is what a template says in a provisioner "hallmark" block.
type Config struct {
	common.PackerConfig `mapstructure:",squash"`

	// The https address of the signer: its function URL or private API. Required without
	// signer_function. With it, the address of Lambda's VPC endpoint, if the endpoint has no
	// private DNS name.
	SignerURL string `mapstructure:"signer_url"`
	// The ARN of the signer's function, for machines that invoke it through a VPC endpoint
	// for Lambda. The instances need a profile whose role may invoke it.
	SignerFunction string `mapstructure:"signer_function"`
	// The signer's audience, the name that was chosen when the signer was deployed.
	Audience string `mapstructure:"audience" required:"true"`
	// A PEM file with certificates that the machine trusts for the signer, in addition to its
	// system's.
	SignerCAFile string `mapstructure:"signer_ca_file"`
	// How the machine's requests to the signer are authenticated: "none", the default,
	// or "aws_iam" for a function URL or a private API that requires it. The instances then
	// need a profile whose role may call it.
	SignerAuth string `mapstructure:"signer_auth"`
	// Whether the machine proves itself to the FIPS endpoint of AWS STS. us-east-1,
	// us-east-2, us-west-1, us-west-2 and GovCloud have one; instances in other regions
	// cannot enroll with this setting. Default false.
	FIPS bool `mapstructure:"fips"`

	// When the machine starts to trust the cluster's OpenSSH CA: "at_boot", the
	// default, bakes the CA into the image; "at_enrollment" leaves it to the
	// signer's first answer.
	Trust string `mapstructure:"trust"`
	// The Teleport proxy to fetch the OpenSSH CA from, as host or host:port.
	ProxyAddress string `mapstructure:"proxy_address"`
	// A PEM file with certificates to trust for the proxy, in addition to those of the system
	// that Packer runs on.
	ProxyCAFile string `mapstructure:"proxy_ca_file"`
	// A file with the OpenSSH CA, instead of proxy_address: one public key per line, as the
	// proxy exports it.
	OpenSSHCAFile string `mapstructure:"openssh_ca_file"`
	// The fingerprints, as ssh-keygen -l prints them ("SHA256:…"), that the
	// OpenSSH CA may have. During a rotation the CA has two keys.
	OpenSSHCAPins []string `mapstructure:"openssh_ca_pins"`
	// Bake any CA that is found, without pins. Anyone who can answer in the proxy's place
	// during the bake can then log in to every machine with the image.
	SkipCAPin bool `mapstructure:"skip_ca_pin"`

	// What to do about a host key that another CA has certified: "keep", the default,
	// certifies other host keys; "replace" overwrites that certificate.
	HostCertificate string `mapstructure:"host_certificate"`
	// Public keys of CAs whose user certificates sshd accepts in addition to the cluster's,
	// for example during a migration, each as a line of a .pub file. They stay when the
	// cluster's CA changes.
	ExtraUserCAs []string `mapstructure:"extra_user_cas"`

	// sshd's MaxStartups on the machine, as start:rate:full.
	MaxStartups string `mapstructure:"max_startups"`
	// The IP addresses and networks (CIDR) that Teleport's proxies connect from, as the
	// machine sees them. sshd of OpenSSH 9.8 and later penalizes source addresses with failed
	// logins, and everybody who comes through a proxy shares the proxy's address. The
	// addresses listed here are exempt.
	ProxySources []string `mapstructure:"proxy_sources"`

	// An existing folder on the machine in which to create a temporary folder. Default /tmp.
	// It may be mounted noexec.
	RemoteFolder string `mapstructure:"remote_folder"`
	// The command that runs the script {{.Path}} as root, as in Packer's shell provisioner.
	// Change it if sudo asks for a password. Default: sudo -n, or nothing if the login user is
	// root.
	ExecuteCommand string `mapstructure:"execute_command"`

	ctx interpolate.Context
}

// The values of Config.Trust.
const (
	trustAtBoot       = "at_boot"
	trustAtEnrollment = "at_enrollment"
)

const (
	defaultRemoteFolder = "/tmp"
	// The login user's shell may be fish or tcsh. They too pass on what is in single quotes.
	defaultExecuteCommand = `sh -c 'if [ "$(id -u)" = 0 ]; then exec sh "$0"; else exec sudo -n sh "$0"; fi' {{.Path}}`
)

func (c *Config) setDefaults() {
	setDefault(&c.Trust, trustAtBoot)
	setDefault(&c.RemoteFolder, defaultRemoteFolder)
	setDefault(&c.ExecuteCommand, defaultExecuteCommand)
}

func setDefault(field *string, value string) {
	if *field == "" {
		*field = value
	}
}
