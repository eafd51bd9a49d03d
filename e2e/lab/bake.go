//go:build linux

package lab

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/e2e/machine"
)

//go:embed bake.pkr.hcl
var bakeTemplate []byte

// Source says how to bake an image.
type Source struct {
	// Name is the build machine's name in the lab.
	Name    string
	Release machine.Release
	// ProxySources are the provisioner's proxy_sources.
	ProxySources []string
	// Endpoint is how machines of the image reach the signer; nil means its URL.
	Endpoint *Endpoint
	// Prepare changes the build machine's disk before it boots. It may be nil.
	Prepare func(ctx context.Context, root string) error
	// Log makes Packer log everything that it does, with each command that it runs.
	Log bool
}

// Debian12 is a plain Debian 12.
func Debian12() Source { return Source{Name: "builder", Release: machine.Debian12} }

// BakeQuietly is BakeFrom, but returns Packer's output. On failure, the error ends with it.
func (l *Lab) BakeQuietly(ctx context.Context, source Source) (Image, string, error) {
	var output bytes.Buffer
	image, err := l.BakeFrom(ctx, source, &output)
	if err != nil {
		err = fmt.Errorf("%w\n--- packer\n%s", err, &output)
	}
	return image, output.String(), err
}

// BakeFrom makes a golden image as an operator does: it runs an instance of a plain
// Debian, has Packer provision it, stops it, and makes an image of its disk. Packer's
// output goes to w at once. Several bakes may run at the same time.
func (l *Lab) BakeFrom(ctx context.Context, source Source, w io.Writer) (Image, error) {
	base, err := l.BaseImage(ctx, source.Release)
	if err != nil {
		return Image{}, err
	}
	builder, err := l.Launch(ctx, Template{
		Name: source.Name, Image: base, Tags: map[string]string{"Name": "Packer Builder"}, Prepare: source.Prepare,
	})
	if err != nil {
		return Image{}, err
	}
	err = builder.waitForSSH(ctx)
	if err == nil {
		err = l.provision(ctx, provisioning{
			address: builder.Address, proxySources: source.ProxySources, endpoint: source.Endpoint, clean: cleanUp, log: source.Log,
		}, w)
	}
	if err != nil {
		var dump bytes.Buffer
		builder.Dump(ctx, &dump)
		return Image{}, fmt.Errorf("provision with Packer: %w\n%s", err, &dump)
	}
	if err := builder.PowerOff(ctx); err != nil {
		return Image{}, err
	}
	disk, err := builder.Snapshot()
	if err != nil {
		return Image{}, err
	}
	return l.createImage(ctx, builder.ID, builder.Name, disk)
}

// createImage makes EC2 record the image of an instance, which then terminates.
func (l *Lab) createImage(ctx context.Context, instance, name string, disk machine.Image) (Image, error) {
	image, err := l.EC2.CreateImage(ctx, instance, "golden-"+name)
	if err != nil {
		return Image{}, err
	}
	return Image{ID: image, Disk: disk}, l.EC2.Terminate(ctx, instance)
}

// waitForSSH waits until cloud-init has added the key pair.
func (i *Instance) waitForSSH(ctx context.Context) error {
	return machine.Await(ctx, func() error {
		_, err := os.Stat(i.Path("home/" + User + "/.ssh/authorized_keys"))
		return err
	})
}

// preparePacker writes the files that all bakes read, and installs the real plugin as users do.
func (l *Lab) preparePacker(ctx context.Context, w io.Writer) error {
	l.packerLock.Lock()
	defer l.packerLock.Unlock()
	if l.packerReady {
		return nil
	}
	if err := os.WriteFile(l.bakeTemplate(), bakeTemplate, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(l.proxyCA(), l.Cluster.RootsPEM(), 0o600); err != nil {
		return err
	}
	if err := l.packer(ctx, w, nil, "plugins", "install", "--path", l.config.Plugin, "github.com/hallmark-ssh/hallmark"); err != nil {
		return err
	}
	l.packerReady = true
	return nil
}

func (l *Lab) bakeTemplate() string { return filepath.Join(l.dir, "bake.pkr.hcl") }
func (l *Lab) proxyCA() string      { return filepath.Join(l.dir, "proxy_ca.pem") }

// cleanUp does what Packer's amazon-ebs builder and a careful template do at the end.
var cleanUp = []string{
	// 2 means that cloud-init is done, but had warnings (from 23.4 on).
	"sudo cloud-init status --wait >/dev/null || [ $? -eq 2 ]",
	"sudo cloud-init clean --logs && sudo truncate --size=0 /etc/machine-id", // 20.4 does not have --machine-id.
	"sudo rm ~/.ssh/authorized_keys /root/.ssh/authorized_keys",
}

// provisioning says what Packer does to which machine.
type provisioning struct {
	address      netip.Addr
	proxySources []string
	endpoint     *Endpoint
	clean        []string // shell commands before Hallmark's
	log          bool
}

// provision runs the real Packer.
func (l *Lab) provision(ctx context.Context, p provisioning, w io.Writer) error {
	sources, err := json.Marshal(p.proxySources) // HCL parses it as a list, or null
	if err != nil {
		return err
	}
	clean, err := json.Marshal(p.clean)
	if err != nil {
		return err
	}
	if err := l.preparePacker(ctx, w); err != nil {
		return err
	}
	endpoint := Endpoint{SignerURL: l.SignerURL}
	if p.endpoint != nil {
		endpoint = *p.endpoint
	}
	var environment []string
	if p.log {
		environment = append(environment, "PACKER_LOG=1")
	}
	return l.packer(ctx, w, environment, "build", "-color=false",
		"-var=host="+p.address.String(),
		"-var=username="+User,
		"-var=private_key_file="+l.keys.keyPair,
		"-var=proxy_address="+l.Cluster.Address(),
		"-var=proxy_ca_file="+l.proxyCA(),
		"-var=openssh_ca_pin="+ssh.FingerprintSHA256(l.Cluster.OpenSSHCA()),
		"-var=signer_url="+endpoint.SignerURL,
		"-var=signer_function="+endpoint.SignerFunction,
		"-var=signer_auth="+endpoint.SignerAuth,
		"-var=signer_ca_file="+l.keys.webCA,
		"-var=audience="+Audience,
		"-var=proxy_sources="+string(sources),
		"-var=clean="+string(clean),
		l.bakeTemplate())
}

func (l *Lab) packer(ctx context.Context, w io.Writer, environment []string, args ...string) error {
	home := filepath.Join(l.dir, "packer")
	cmd := exec.CommandContext(ctx, l.config.Packer, args...)
	cmd.Env = append(environment,
		"PATH="+os.Getenv("PATH"), "HOME="+home, "TMPDIR="+os.TempDir(), "CHECKPOINT_DISABLE=1",
		"PACKER_PLUGIN_PATH="+filepath.Join(home, "plugins"), "PACKER_CONFIG_DIR="+home,
	)
	cmd.Stdout, cmd.Stderr = w, w
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("packer %s: %w", args[0], err)
	}
	return nil
}

// BehindSocket changes a disk so that systemd listens for sshd, as on Ubuntu since 22.10.
func BehindSocket(ctx context.Context, root string) error {
	for _, args := range [][]string{{"disable", "ssh.service"}, {"enable", "ssh.socket"}} {
		out, err := exec.CommandContext(ctx, "systemctl", append([]string{"--root=" + root}, args...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("systemctl %v: %w: %s", args, err, out)
		}
	}
	return os.WriteFile(root+"/etc/systemd/system-preset/40-socket.preset", []byte("enable ssh.socket\ndisable ssh.service\n"), 0o644)
}
