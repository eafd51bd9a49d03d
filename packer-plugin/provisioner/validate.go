package provisioner

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/packer-plugin-sdk/hcl2helper"

	machineconfig "github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/packer-plugin/programs"
)

// validate returns all errors in c, so that users can fix a template in one round.
func (c *Config) validate() []error {
	problems := append(c.checkMachineKeys(),
		c.checkTrust(),
		c.checkPins(),
		c.checkProxyAddress(),
		checkCertificates("signer_ca_file", c.SignerCAFile),
		checkCertificates("proxy_ca_file", c.ProxyCAFile),
		checkFile("openssh_ca_file", c.OpenSSHCAFile),
		c.checkRemoteFolder(),
		c.checkExecuteCommand(),
	)
	return slices.DeleteFunc(problems, func(err error) bool { return err == nil })
}

// unknown reports whether Packer has put a placeholder into value. Packer prepares a template
// before it knows the values of its other parts, and prepares it again, with the values,
// before it provisions.
func unknown(value string) bool {
	return strings.Contains(value, "<unknown>") || strings.Contains(value, hcl2helper.UnknownVariableValue)
}

// known returns the values that Packer already knows.
func known(values []string) []string { return slices.DeleteFunc(slices.Clone(values), unknown) }

// checkMachineKeys checks what goes into the machine's configuration by the machine's own
// rules, one value at a time next to good ones.
func (c *Config) checkMachineKeys() []error {
	check := func(value string, set func(*machineconfig.Config)) error {
		if unknown(value) {
			return nil
		}
		m := machineconfig.Config{SignerURL: "https://signer.example.com/", Audience: "signer.example.com"}
		set(&m)
		_, err := m.Marshal()
		return err
	}
	return []error{
		c.checkSigner(),
		check(c.Audience, func(m *machineconfig.Config) { m.Audience = c.Audience }),
		check(c.HostCertificate, func(m *machineconfig.Config) { m.HostCertificate = c.HostCertificate }),
		check("", func(m *machineconfig.Config) { m.ExtraUserCAs = known(c.ExtraUserCAs) }),
		check(c.MaxStartups, func(m *machineconfig.Config) { m.MaxStartups = c.MaxStartups }),
		check("", func(m *machineconfig.Config) { m.ProxySources = known(c.ProxySources) }),
	}
}

// checkSigner checks the settings that say how to reach the signer, together.
func (c *Config) checkSigner() error {
	m := machineconfig.Config{SignerURL: c.SignerURL, SignerFunction: c.SignerFunction, SignerAuth: c.SignerAuth, Audience: "signer.example.com"}
	// A good value replaces one that is not known yet.
	if unknown(m.SignerURL) {
		m.SignerURL = "https://signer.example.com/"
	}
	if unknown(m.SignerFunction) {
		m.SignerFunction = "arn:aws:lambda:us-west-2:111122223333:function:enroll"
	}
	if unknown(m.SignerAuth) {
		m.SignerAuth = ""
	}
	_, err := m.Marshal()
	return err
}

// checkTrust also refuses settings without effect: a template that names a CA and pins expects
// them to be baked.
func (c *Config) checkTrust() error {
	switch c.Trust {
	case trustAtBoot:
		if (c.ProxyAddress == "") == (c.OpenSSHCAFile == "") {
			return errors.New("exactly one of proxy_address and openssh_ca_file is required: where the OpenSSH CA comes from")
		}
		if c.ProxyCAFile != "" && c.ProxyAddress == "" {
			return errors.New("proxy_ca_file has no effect without proxy_address")
		}
	case trustAtEnrollment:
		if c.ProxyAddress != "" || c.ProxyCAFile != "" || c.OpenSSHCAFile != "" || len(c.OpenSSHCAPins) > 0 || c.SkipCAPin {
			return fmt.Errorf("trust = %q bakes no OpenSSH CA: "+
				"remove proxy_address, proxy_ca_file, openssh_ca_file, openssh_ca_pins and skip_ca_pin", trustAtEnrollment)
		}
	default:
		if !unknown(c.Trust) {
			return fmt.Errorf("trust is %q, not %q or %q", c.Trust, trustAtBoot, trustAtEnrollment)
		}
	}
	return nil
}

// checkPins requires a pin because the CA decides who logs in to every machine with the image:
// TLS alone would trust any of a hundred CAs with that, and anyone who can write the file.
func (c *Config) checkPins() error {
	if c.Trust != trustAtBoot {
		return nil
	}
	if c.SkipCAPin && len(c.OpenSSHCAPins) > 0 {
		return errors.New("skip_ca_pin contradicts openssh_ca_pins: remove one")
	}
	// A list that is not known yet arrives empty; a list that was left out arrives as nil.
	// Provision checks the keys against the final list in either case.
	if !c.SkipCAPin && c.OpenSSHCAPins == nil {
		return errors.New(`openssh_ca_pins is required: "SHA256:…" as ssh-keygen -l prints it ` +
			"for the key of \"tctl auth export --type=openssh\"; or set skip_ca_pin = true")
	}
	for _, pin := range c.OpenSSHCAPins {
		if !sshkey.IsFingerprint(pin) && !unknown(pin) {
			return fmt.Errorf("openssh_ca_pins: %q is not \"SHA256:\" and 43 characters of base64, as ssh-keygen -l prints it", pin)
		}
	}
	return nil
}

func (c *Config) checkProxyAddress() error {
	if c.ProxyAddress == "" || unknown(c.ProxyAddress) {
		return nil
	}
	u, err := url.Parse("https://" + c.ProxyAddress)
	if err != nil || u.Hostname() == "" || u.Host != c.ProxyAddress {
		return fmt.Errorf("proxy_address %q is not HOST or HOST:PORT", c.ProxyAddress)
	}
	return nil
}

func checkCertificates(field, file string) error {
	if file == "" || unknown(file) {
		return nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	certificates := 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		// A private key next to its certificate would end up in the image.
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("%s: %s holds a %s: give a file with certificates only", field, file, block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("%s: %s: %w", field, file, err)
		}
		certificates++
	}
	if certificates == 0 {
		return fmt.Errorf("%s: %s has no certificate in PEM form", field, file)
	}
	return nil
}

func checkFile(field, file string) error {
	if file == "" || unknown(file) {
		return nil
	}
	if _, err := os.Stat(file); err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	return nil
}

// checkRemoteFolder allows only characters without a meaning to a shell, however the path is
// quoted: communicators pass on paths without quotes, and a custom execute_command may put its
// own quotes around {{.Path}}.
func (c *Config) checkRemoteFolder() error {
	form := regexp.MustCompile(`^(/[A-Za-z0-9_.+-]+)+$`)
	if unknown(c.RemoteFolder) || form.MatchString(c.RemoteFolder) && path.Clean(c.RemoteFolder) == c.RemoteFolder {
		return nil
	}
	return fmt.Errorf("remote_folder %q is not an absolute path of letters, digits and ._+- only", c.RemoteFolder)
}

func (c *Config) checkExecuteCommand() error {
	const script = "/folder/script.sh"
	command, err := c.renderExecuteCommand(nil, script)
	if err != nil {
		return err
	}
	if !strings.Contains(command, script) {
		return errors.New("execute_command does not contain {{.Path}}, the script that it has to run as root")
	}
	return nil
}

// checkPrograms detects early that the plugin was built without the programs that it has to
// upload.
func checkPrograms(files fs.FS) error {
	for _, arch := range []string{"amd64", "arm64"} {
		if _, err := fs.Stat(files, programs.Name(arch)); err != nil {
			return fmt.Errorf("this build of the plugin has no hallmark program for %s: "+
				"use a release, or build it with \"make build\"", arch)
		}
	}
	return nil
}
