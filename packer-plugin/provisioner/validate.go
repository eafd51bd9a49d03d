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
	"strconv"
	"strings"

	"github.com/hashicorp/packer-plugin-sdk/hcl2helper"

	machineconfig "github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/packer-plugin/programs"
)

// validate returns all errors in c, so that users can fix a template in one round. Each names
// the field, quotes the value and says what to do.
func (c *Config) validate() []error {
	return slices.Concat(
		c.checkMachineKeys(),
		c.checkTrust(),
		c.checkPins(),
		oneProblem(c.checkProxyAddress()),
		oneProblem(checkCertificates("signer_ca_file", c.SignerCAFile)),
		oneProblem(checkCertificates("proxy_ca_file", c.ProxyCAFile)),
		oneProblem(c.checkOpenSSHCAFile()),
		oneProblem(c.checkRemoteFolder()),
		oneProblem(c.checkExecuteCommand()),
	)
}

func oneProblem(err error) []error {
	if err == nil {
		return nil
	}
	return []error{err}
}

// placeholder is what Packer writes for text that it does not know yet.
const placeholder = "<unknown>"

// unknown reports whether Packer has put a placeholder into value. Packer prepares a template
// before it knows the values of its other parts, and prepares it again, with the values,
// before it provisions.
func unknown(value string) bool {
	return strings.Contains(value, placeholder) || strings.Contains(value, hcl2helper.UnknownVariableValue)
}

// known returns the values that Packer already knows.
func known(values []string) []string { return slices.DeleteFunc(slices.Clone(values), unknown) }

// knownOr returns the value, or another one if Packer does not know it yet.
func knownOr(value, other string) string {
	if unknown(value) {
		return other
	}
	return value
}

// checkMachineKeys checks what goes into the machine's configuration by the machine's own
// rules. A good value replaces one that is not known yet.
func (c *Config) checkMachineKeys() (problems []error) {
	m := machineconfig.Config{
		SignerURL:       knownOr(c.SignerURL, "https://signer.example.com/"),
		SignerFunction:  knownOr(c.SignerFunction, "arn:aws:lambda:us-west-2:111122223333:function:enroll"),
		Audience:        knownOr(c.Audience, "signer.example.com"),
		SignerAuth:      knownOr(c.SignerAuth, ""),
		HostCertificate: knownOr(c.HostCertificate, ""),
		ExtraUserCAs:    known(c.ExtraUserCAs),
		MaxStartups:     knownOr(c.MaxStartups, ""),
		ProxySources:    known(c.ProxySources),
	}
	for _, p := range m.Problems() {
		problems = append(problems, fmt.Errorf("%s: %w", p.Key, p.Err))
	}
	return problems
}

// checkTrust also refuses settings without effect: a template that names a CA and pins expects
// them to be baked.
func (c *Config) checkTrust() (problems []error) {
	switch {
	case unknown(c.Trust):
	case c.Trust == trustAtBoot:
		switch {
		case c.ProxyAddress == "" && c.OpenSSHCAFile == "":
			problems = append(problems, errors.New("proxy_address: missing; write the Teleport proxy to fetch the OpenSSH CA from, "+
				"such as teleport.example.com:443, or set openssh_ca_file"))
		case c.ProxyAddress != "" && c.OpenSSHCAFile != "":
			problems = append(problems, errors.New("openssh_ca_file: it contradicts proxy_address; remove one of them"))
		}
		if c.ProxyCAFile != "" && c.ProxyAddress == "" {
			problems = append(problems, errors.New("proxy_ca_file: it has no effect without proxy_address; remove it"))
		}
	case c.Trust == trustAtEnrollment:
		if set := c.bakedTrust(); len(set) > 0 {
			problems = append(problems, fmt.Errorf("trust: %q bakes no OpenSSH CA; remove %s", trustAtEnrollment, strings.Join(set, ", ")))
		}
	default:
		problems = append(problems, fmt.Errorf("trust: %.100q is neither %s nor %s", c.Trust, trustAtBoot, trustAtEnrollment))
	}
	return problems
}

// bakedTrust returns the fields about the CA in the image that are set.
func (c *Config) bakedTrust() (set []string) {
	for _, field := range []struct {
		name string
		set  bool
	}{
		{"proxy_address", c.ProxyAddress != ""},
		{"proxy_ca_file", c.ProxyCAFile != ""},
		{"openssh_ca_file", c.OpenSSHCAFile != ""},
		{"openssh_ca_pins", len(c.OpenSSHCAPins) > 0},
		{"skip_ca_pin", c.SkipCAPin},
	} {
		if field.set {
			set = append(set, field.name)
		}
	}
	return set
}

// checkPins requires a pin because the CA decides who logs in to every machine with the image:
// TLS alone would trust any of a hundred CAs with that, and anyone who can write the file.
func (c *Config) checkPins() (problems []error) {
	if c.Trust == trustAtEnrollment {
		return nil // checkTrust refuses them
	}
	if c.SkipCAPin && len(c.OpenSSHCAPins) > 0 {
		problems = append(problems, errors.New("skip_ca_pin: it contradicts openssh_ca_pins; remove one of them"))
	}
	// A list that is not known yet arrives empty; a list that was left out arrives as nil.
	// Provision checks the keys against the final list in either case.
	if c.Trust == trustAtBoot && !c.SkipCAPin && c.OpenSSHCAPins == nil {
		problems = append(problems, errors.New("openssh_ca_pins: missing; list the fingerprint of each key of "+
			`"tctl auth export --type=openssh", as ssh-keygen -l prints it, or set skip_ca_pin = true`))
	}
	for _, pin := range known(c.OpenSSHCAPins) {
		if !sshkey.IsFingerprint(pin) {
			problems = append(problems, fmt.Errorf("openssh_ca_pins: %.100q is not \"SHA256:\" and 43 characters of base64, as ssh-keygen -l prints it", pin))
		}
	}
	return problems
}

// maxAddress is the length of the longest domain name (RFC 1035) and a port.
const maxAddress = 253 + len(":65535")

func (c *Config) checkProxyAddress() error {
	if c.ProxyAddress == "" || unknown(c.ProxyAddress) {
		return nil
	}
	u, err := url.Parse("https://" + c.ProxyAddress)
	host := regexp.MustCompile(`^[A-Za-z0-9._:%-]+$`)
	if err != nil || !host.MatchString(u.Hostname()) || u.Host != c.ProxyAddress || !isPort(u) || len(c.ProxyAddress) > maxAddress {
		return fmt.Errorf("proxy_address: %.300q is not HOST or HOST:PORT; write neither https:// nor a path", c.ProxyAddress)
	}
	return nil
}

// isPort reports whether a URL has a port that exists, or none at all.
func isPort(u *url.URL) bool {
	if u.Port() == "" {
		return !strings.HasSuffix(u.Host, ":")
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	return err == nil && port != 0
}

func checkCertificates(field, file string) error {
	if file == "" || unknown(file) {
		return nil
	}
	data, err := readFile(field, file)
	if err != nil {
		return err
	}
	certificates := 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		// A private key next to its certificate would end up in the image.
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("%s: %.300q contains a block %.40q; give a file with certificates only", field, file, block.Type)
		}
		certificates++
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("%s: certificate %d in %.300q is damaged; export it again", field, certificates, file)
		}
	}
	if certificates == 0 {
		return fmt.Errorf("%s: %.300q has no certificate in PEM form (-----BEGIN CERTIFICATE-----)", field, file)
	}
	return nil
}

func (c *Config) checkOpenSSHCAFile() error {
	if c.OpenSSHCAFile == "" || unknown(c.OpenSSHCAFile) {
		return nil
	}
	_, err := c.readCAFile()
	return err
}

// maxFile bounds the files that a block names. Keys and certificates have a few KiB.
const maxFile = 1 << 20

// readFile reads a file that a field names.
func readFile(field, file string) (data []byte, err error) {
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: there is no file %.300q; a relative path begins at the folder that Packer runs in", field, file)
	case err == nil && info.IsDir():
		return nil, fmt.Errorf("%s: %.300q is a folder; give a file", field, file)
	case err == nil && !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: %.300q is not a regular file; give one", field, file)
	case err == nil && info.Size() > maxFile:
		return nil, fmt.Errorf("%s: %.300q has %d bytes, more than %d; give a file with keys or certificates only", field, file, info.Size(), maxFile)
	case err == nil:
		data, err = os.ReadFile(file)
	}
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err // the message quotes the path
	}
	if err != nil {
		return nil, fmt.Errorf("%s: cannot read %.300q: %w", field, file, err)
	}
	return data, nil
}

// checkRemoteFolder allows only characters without a meaning to a shell, however the path is
// quoted: communicators pass on paths without quotes, and a custom execute_command may put its
// own quotes around {{.Path}}.
func (c *Config) checkRemoteFolder() error {
	form := regexp.MustCompile(`^(/[A-Za-z0-9_.+-]+)+$`)
	if unknown(c.RemoteFolder) || form.MatchString(c.RemoteFolder) && path.Clean(c.RemoteFolder) == c.RemoteFolder {
		return nil
	}
	return fmt.Errorf("remote_folder: %.300q is not an absolute path of letters, digits and ._+- only; write one such as /var/tmp", c.RemoteFolder)
}

func (c *Config) checkExecuteCommand() error {
	const script = "/folder/script.sh"
	command, err := c.renderExecuteCommand(nil, script)
	if err != nil {
		return err
	}
	if !strings.Contains(command, script) {
		return errors.New("execute_command: it does not contain {{.Path}}; write a command that runs {{.Path}} as root, such as sudo sh {{.Path}}")
	}
	return nil
}

// checkPrograms detects early that the plugin was built without the programs that it has to
// upload.
func checkPrograms(files fs.FS) error {
	built, err := fs.Glob(files, programs.Name("*"))
	if err != nil {
		return fmt.Errorf("list the programs of the plugin: %w", err)
	}
	if len(built) == 0 {
		return errNoProgram("any architecture")
	}
	return nil
}

// errNoProgram returns the error of a plugin that does not carry the program for a machine.
func errNoProgram(arch string) error {
	return fmt.Errorf("this build of the plugin has no hallmark program for %s: "+
		"use a release, or build it with \"make build\"", arch)
}
