// Package provisioner is Packer's provisioner "hallmark". It uploads the hallmark program, its
// configuration and the cluster's OpenSSH CA to the machine being baked, installs them there,
// and seals the machine: after that its image contains no host key, and each instance
// generates and certifies its own.
package provisioner

import (
	"context"
	"crypto/rand"
	_ "embed" // for the script
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2/hcldec"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
	"github.com/hashicorp/packer-plugin-sdk/template/interpolate"
	"golang.org/x/crypto/ssh"

	machineconfig "github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/packer-plugin/programs"
)

//go:embed bake.sh
var bakeScript []byte

// The files of an upload. hallmark install reads all except the first two.
const (
	scriptFile    = "bake.sh"
	programFile   = "hallmark"
	configFile    = "config.yaml"
	openSSHCAFile = "openssh_ca.pub"
	signerCAFile  = "signer_ca.pem"
)

// Provisioner implements Packer's interface of that name.
type Provisioner struct {
	programs   fs.FS
	config     Config
	retryDelay time.Duration
}

// New returns a provisioner that uploads the programs in files, under the names that
// programs.Name returns.
func New(files fs.FS) *Provisioner {
	return &Provisioner{programs: files, retryDelay: 2 * time.Second}
}

// ConfigSpec returns the fields of the provisioner's block in a template.
func (p *Provisioner) ConfigSpec() hcldec.ObjectSpec {
	return p.config.FlatMapstructure().HCL2Spec()
}

// Prepare reads and checks the block. Packer calls it when it validates a template, and again
// just before Provision.
func (p *Provisioner) Prepare(raws ...any) error {
	p.config = Config{}
	problems := p.config.decode(raws...)
	p.config.setDefaults()
	problems = append(problems, p.config.validate()...)
	if err := checkPrograms(p.programs); err != nil {
		problems = append(problems, err)
	}
	if len(problems) > 0 {
		return packersdk.MultiErrorAppend(nil, problems...)
	}
	return nil
}

// Provision installs hallmark on the machine and seals it.
func (p *Provisioner) Provision(ctx context.Context, ui packersdk.Ui, comm packersdk.Communicator, data map[string]any) (err error) {
	m := machine{comm, p.retryDelay}
	arch, err := m.architecture(ctx)
	if err != nil {
		return err
	}
	files, err := p.files(ctx, ui, arch)
	if err != nil {
		return err
	}
	stage := path.Join(p.config.RemoteFolder, "hallmark-"+strings.ToLower(rand.Text()))
	command, err := p.config.renderExecuteCommand(data, path.Join(stage, scriptFile))
	if err != nil {
		return err
	}

	defer func() {
		// A script that ran to its end has removed the folder itself, and sealing must be the
		// last thing that happens on the machine.
		if err == nil {
			return
		}
		if cleanupErr := m.removeFolder(ctx, stage); cleanupErr != nil {
			ui.Error(cleanupErr.Error())
		}
	}()
	ui.Say(fmt.Sprintf("Uploading hallmark for linux/%s to %s", arch, stage))
	if err := m.makeFolder(ctx, stage); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := m.upload(ctx, path.Join(stage, name), files[name]); err != nil {
			return err
		}
	}
	ui.Say("Installing hallmark and sealing the machine")
	printed, err := m.run(ctx, command)
	if err != nil {
		// The command itself may contain a password for sudo.
		return hinted(fmt.Errorf("run %s on the machine by execute_command: %w", path.Join(stage, scriptFile), err), "")
	}
	done := printed == "" // a command may discard all output
	for line := range strings.Lines(printed) {
		if line = strings.TrimSpace(line); line == finished {
			done = true
			continue
		}
		ui.Say("  " + line)
	}
	if !done {
		return hinted(fmt.Errorf("execute_command succeeded, but %s did not finish; it printed: %s", scriptFile, quoted(printed)),
			"set execute_command to a command that fails if {{.Path}} fails, and not to a pipeline")
	}
	return nil
}

// finished is the last line that the script prints. The exit status of execute_command may
// hide a failure: that of a pipeline is the last command's.
const finished = "hallmark: finished"

// files returns the content of each file to upload.
func (p *Provisioner) files(ctx context.Context, ui packersdk.Ui, arch string) (map[string][]byte, error) {
	files := map[string][]byte{scriptFile: bakeScript}
	var err error
	files[programFile], err = fs.ReadFile(p.programs, programs.Name(arch))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoProgram("linux/" + arch)
	}
	if err != nil {
		return nil, fmt.Errorf("read the program of the plugin: %w", err)
	}
	if files[configFile], err = p.config.machineConfig(); err != nil {
		return nil, err
	}
	if p.config.SignerCAFile != "" {
		if files[signerCAFile], err = readFile("signer_ca_file", p.config.SignerCAFile); err != nil {
			return nil, err
		}
	}
	if p.config.Trust == trustAtEnrollment {
		return files, nil
	}
	keys, err := p.config.trustedCAs(ctx)
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		ui.Say(fmt.Sprintf("The image will trust OpenSSH CA %s (%s)", ssh.FingerprintSHA256(key), key.Type()))
	}
	files[openSSHCAFile] = sshkey.File(keys...)
	return files, nil
}

// machineConfig renders the machine's configuration.
func (c *Config) machineConfig() ([]byte, error) {
	m := machineconfig.Config{
		SignerURL: c.SignerURL, SignerFunction: c.SignerFunction, Audience: c.Audience, SignerAuth: c.SignerAuth, FIPS: c.FIPS,
		HostCertificate: c.HostCertificate, ExtraUserCAs: c.ExtraUserCAs,
		MaxStartups: c.MaxStartups, ProxySources: c.ProxySources,
	}
	if c.SignerCAFile != "" {
		m.SignerCAFile = machineconfig.SignerCAFile
	}
	data, err := m.Marshal()
	if err != nil {
		return nil, fmt.Errorf("render the machine's %s: %w", configFile, err)
	}
	return data, nil
}

// renderExecuteCommand fills in the same values as Packer's shell provisioner, so that
// commands written for it work here.
func (c *Config) renderExecuteCommand(data map[string]any, script string) (string, error) {
	values := maps.Clone(data)
	if values == nil {
		values = map[string]any{}
	}
	values["Path"] = script
	values["Vars"] = ""
	ctx := c.ctx
	ctx.Data = values
	command, err := interpolate.Render(c.ExecuteCommand, &ctx)
	if err != nil {
		return "", fmt.Errorf("execute_command: it is not a valid template: %w", templateError(err))
	}
	return command, nil
}
