//go:build linux

package lab

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/e2e/fleet"
)

//go:embed bake.pkr.hcl
var bakeTemplate []byte

// Bake makes a golden image as an operator does: it runs an instance of a plain
// Debian, has Packer provision it, stops it, and makes an image of its disk. What
// Packer says goes to w, as it says it.
func (l *Lab) Bake(ctx context.Context, w io.Writer) (Image, error) {
	base, err := l.baseImage(ctx)
	if err != nil {
		return Image{}, err
	}
	builder, err := l.Launch(ctx, Template{Name: "builder", Image: base, Tags: map[string]string{"Name": "Packer Builder"}})
	if err != nil {
		return Image{}, err
	}
	if err := builder.waitForSSH(ctx); err != nil {
		return Image{}, err
	}
	if err := l.provision(ctx, builder, w); err != nil {
		var dump bytes.Buffer
		builder.Dump(ctx, &dump)
		return Image{}, fmt.Errorf("provision with Packer: %w\n%s", err, &dump)
	}
	if err := builder.PowerOff(ctx); err != nil {
		return Image{}, err
	}
	return l.createImage(ctx, builder)
}

func (l *Lab) createImage(ctx context.Context, builder *Instance) (Image, error) {
	disk, err := builder.Snapshot()
	if err != nil {
		return Image{}, err
	}
	image, err := l.EC2.CreateImage(ctx, &ec2.CreateImageInput{
		InstanceId: aws.String(builder.ID), Name: aws.String("golden"),
	})
	if err != nil {
		return Image{}, err
	}
	_, err = l.EC2.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{builder.ID}})
	return Image{ID: aws.ToString(image.ImageId), Disk: disk}, err
}

// waitForSSH waits until cloud-init has let the key pair in.
func (i *Instance) waitForSSH(ctx context.Context) error {
	return fleet.Poll(ctx, time.Minute, func() error {
		_, err := os.Stat(i.Path("home/" + User + "/.ssh/authorized_keys"))
		return err
	})
}

// provision runs the real Packer with the real plugin, installed as its users do.
func (l *Lab) provision(ctx context.Context, builder *Instance, w io.Writer) error {
	template := filepath.Join(l.dir, "bake.pkr.hcl")
	proxyCA := filepath.Join(l.dir, "proxy_ca.pem")
	if err := os.WriteFile(template, bakeTemplate, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(proxyCA, l.Cluster.RootsPEM(), 0o600); err != nil {
		return err
	}
	if err := l.packer(ctx, w, "plugins", "install", "--path", l.config.Plugin, "github.com/hallmark-ssh/hallmark"); err != nil {
		return err
	}
	return l.packer(ctx, w, "build", "-color=false",
		"-var=host="+builder.Address.String(),
		"-var=username="+User,
		"-var=private_key_file="+l.keys.keyPair,
		"-var=proxy_address="+l.Cluster.Address(),
		"-var=proxy_ca_file="+proxyCA,
		"-var=openssh_ca_pin="+ssh.FingerprintSHA256(l.Cluster.OpenSSHCA()),
		"-var=signer_url="+l.SignerURL,
		"-var=signer_ca_file="+l.keys.webCA,
		"-var=audience="+Audience,
		template)
}

func (l *Lab) packer(ctx context.Context, w io.Writer, args ...string) error {
	home := filepath.Join(l.dir, "packer")
	cmd := exec.CommandContext(ctx, l.config.Packer, args...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + os.TempDir(), "CHECKPOINT_DISABLE=1",
		"PACKER_PLUGIN_PATH=" + filepath.Join(home, "plugins"), "PACKER_CONFIG_DIR=" + home,
	}
	cmd.Stdout, cmd.Stderr = w, w
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("packer %s: %w", args[0], err)
	}
	return nil
}
