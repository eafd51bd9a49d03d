//go:build linux

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/fake/imds"
	"github.com/hallmark-ssh/hallmark/e2e/machine"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// VirtualInstance is an EC2 instance whose machine has its own kernel.
type VirtualInstance struct {
	*machine.VM
	ID       string
	Metadata *imds.Server

	lab *Lab
}

// BakeVM makes a golden image as Bake does, in a virtual machine that enforces SELinux.
func (l *Lab) BakeVM(ctx context.Context, w io.Writer) (Image, error) {
	base, err := l.BaseImage(ctx, machine.Debian12SELinux)
	if err != nil {
		return Image{}, err
	}
	builder, err := l.LaunchVM(ctx, Template{
		Name: "builder", Image: base, Tags: map[string]string{"Name": "Packer Builder"}, Prepare: l.addUser,
	})
	if err != nil {
		return Image{}, err
	}
	err = builder.WaitForSSH(ctx)
	if err == nil {
		// Without cloud-init, there is nothing to clean.
		err = l.provision(ctx, provisioning{address: builder.Address, clean: []string{"true"}}, w)
	}
	if err == nil {
		err = builder.PowerOff(ctx)
	}
	if err != nil {
		return Image{}, fmt.Errorf("%w\n--- console\n%s", err, builder.Console())
	}
	disk, err := builder.Snapshot()
	if err != nil {
		return Image{}, err
	}
	return l.createImage(ctx, builder.ID, builder.Name, disk)
}

// LaunchVM runs an instance in EC2, and boots its virtual machine.
func (l *Lab) LaunchVM(ctx context.Context, t Template) (*VirtualInstance, error) {
	address := l.nextAddress()
	id, err := l.runInstance(ctx, t, address)
	if err != nil {
		return nil, fmt.Errorf("run an instance of %s: %w", t.Image.ID, err)
	}
	metadata, err := l.newMetadata(id, address, t)
	if err != nil {
		return nil, err
	}
	vm, err := l.fleet.BootVM(ctx, machine.Spec{Name: t.Name, Image: t.Image.Disk, Address: address, Metadata: metadata, Prepare: t.Prepare})
	if err != nil {
		return nil, err
	}
	return &VirtualInstance{VM: vm, ID: id, Metadata: metadata, lab: l}, nil
}

// addUser creates the account that cloud-init would create at boot.
func (l *Lab) addUser(ctx context.Context, root string) error {
	key, err := os.ReadFile(l.keys.keyPair + ".pub")
	if err != nil {
		return err
	}
	const home = "home/" + User
	for _, command := range [][]string{
		{"useradd", "--create-home", "--shell", "/bin/bash", "--groups", "sudo", User},
		{"install", "--directory", "--mode=0700", "--owner=" + User, "/" + home + "/.ssh"},
		{"install", "--mode=0600", "--owner=" + User, "/dev/null", "/" + home + "/.ssh/authorized_keys"},
	} {
		if out, err := exec.CommandContext(ctx, "chroot", append([]string{root}, command...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", command[0], err, out)
		}
	}
	return os.WriteFile(filepath.Join(root, home, ".ssh/authorized_keys"), key, 0o600)
}

// bootLimit is far more than an emulated machine takes to boot on a busy machine.
const bootLimit = 15 * time.Minute

// WaitForSSH waits until the machine lets the key pair in.
func (i *VirtualInstance) WaitForSSH(ctx context.Context) error {
	return machine.Poll(ctx, bootLimit, func() error {
		if err := i.Running(); err != nil {
			return machine.Fatal(err)
		}
		_, err := i.Run(ctx, "true")
		return err
	})
}

// Run runs a shell command in the machine as root, and returns what it printed. It logs in
// with the EC2 key pair, and so shows that this works.
func (i *VirtualInstance) Run(ctx context.Context, command string) (string, error) {
	known, err := i.knownHosts(ctx)
	if err != nil {
		return "", err
	}
	quoted := "'" + strings.ReplaceAll(command, "'", `'\''`) + "'"
	return runSSH(ctx, i.Address, i.lab.keys.keyPair, known, i.ID, "sudo sh -euc "+quoted)
}

// knownHosts returns a file with the machine's Ed25519 host key. The lab asks for it once,
// because only the machine can read its disk. Nobody else is in the lab's network.
func (i *VirtualInstance) knownHosts(ctx context.Context) (string, error) {
	path := filepath.Join(i.lab.dir, i.ID+"-known_hosts")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	scan := exec.CommandContext(ctx, "ssh-keyscan", "-T", "60", "-t", "ed25519", i.Address.String())
	var stderr bytes.Buffer
	scan.Stderr = &stderr
	found, err := scan.Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its host key: %w: %s", i.Name, err, strings.TrimSpace(stderr.String()))
	}
	_, key, ok := strings.Cut(string(found), " ")
	if !ok {
		return "", fmt.Errorf("ask %s for its host key: it presents no Ed25519 key yet", i.Name)
	}
	return path, os.WriteFile(path, []byte(i.ID+" "+key), 0o600)
}

// State returns what the machine's last enrollment left.
func (i *VirtualInstance) State(ctx context.Context) (*state.State, error) {
	out, err := i.Run(ctx, "cat "+state.Path(state.Dir))
	if err != nil {
		return nil, err
	}
	enrolled := new(state.State)
	if err := json.Unmarshal([]byte(out), enrolled); err != nil {
		return nil, fmt.Errorf("%s: read the state: %w", i.Name, err)
	}
	return enrolled, nil
}
