//go:build linux

package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// fileContexts has the labels of a policy's files, by path.
const fileContexts = "/etc/selinux/%s/contexts/files/file_contexts"

// selinuxRecipe is a Debian 12 that boots with its own kernel, and with SELinux.
func selinuxRecipe() recipe {
	const policy = "default"
	return recipe{
		suite: string(Debian12),
		packages: []string{
			"ca-certificates", "dbus", "iproute2", "linux-image-cloud-amd64", "openssh-server", "policycoreutils",
			"selinux-policy-default", "selinux-utils", "sudo", "systemd-sysv",
		},
		early: map[string]string{
			// A small initrd: it is quick to make and to boot. Debian makes it once for the
			// kernel and, unless told otherwise, again at the end.
			"etc/initramfs-tools/conf.d/small":          "MODULES=list\n",
			"etc/initramfs-tools/modules":               "virtio_pci\nvirtio_blk\next4\n",
			"etc/initramfs-tools/update-initramfs.conf": "update_initramfs=no\nbackup_initramfs=no\n",
		},
		files: map[string]string{
			"etc/hostname": "localhost\n",
			// Without an id, systemd would start it as a fresh image, which is slow.
			"etc/machine-id":                      "e0f1a2b3c4d5465788990a1b2c3d4e5f\n",
			"etc/resolv.conf":                     "",
			"etc/selinux/config":                  "SELINUX=enforcing\nSELINUXTYPE=" + policy + "\n",
			"etc/sudoers.d/90-fleet":              "%sudo ALL=(ALL) NOPASSWD: ALL\n",
			"etc/systemd/journald.conf.d/90.conf": "[Journal]\nStorage=persistent\n",
			"etc/systemd/system/instance.service": instanceUnit,
			"usr/local/sbin/connect":              connectScript,
		},
		units:  []string{"instance.service"},
		policy: policy,
	}
}

// instanceUnit does what cloud-init would: it connects the machine and generates its host
// keys.
const instanceUnit = `[Unit]
Description=Configure the instance
Wants=sys-subsystem-net-devices-eth0.device
After=sys-subsystem-net-devices-eth0.device
Before=ssh.service network.target network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh /usr/local/sbin/connect
ExecStart=/usr/bin/ssh-keygen -A
[Install]
WantedBy=multi-user.target
`

// connectScript reads the machine's address from the kernel's command line.
const connectScript = `set -eu
for word in $(cat /proc/cmdline); do
	case $word in
	address=*) ip address add "${word#address=}" dev eth0 ;;
	esac
done
ip link set eth0 up
ip route add ` + metadataAddress + ` dev eth0
`

// VM is a machine with its own kernel, which QEMU emulates. A container shares its host's
// kernel, and so the host's SELinux.
type VM struct {
	Spec
	dir      string
	disk     string
	metadata *http.Server
	qemu     *exec.Cmd
	monitor  io.WriteCloser
	exited   chan struct{} // closed when QEMU has ended
}

// BootVM makes a virtual machine of an image with a kernel and starts it. It returns while
// the kernel starts, which takes half a minute without KVM. A fleet runs one virtual machine
// at a time, because all would have the same metadata service.
func (f *Fleet) BootVM(ctx context.Context, spec Spec) (*VM, error) {
	m := &VM{Spec: spec, dir: filepath.Join(scratch, "machines", spec.Name), disk: spec.Image.disk}
	for _, step := range []func(context.Context) error{m.makeDisk, m.makeNetwork, m.serveMetadata, m.start} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("virtual machine %s: %w", spec.Name, err)
		}
	}
	return m, nil
}

// makeDisk makes a disk from a base image and lets Prepare change it. A snapshot is a disk
// already.
func (m *VM) makeDisk(ctx context.Context) error {
	if m.disk != "" {
		return os.MkdirAll(m.dir, 0o755)
	}
	// Make a copy, not an overlay: setfiles skips files on another device, and an overlay's
	// layers are on one.
	root := filepath.Join(m.dir, "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := run(exec.CommandContext(ctx, "cp", "-a", m.Image.layers[0]+"/.", root)); err != nil {
		return err
	}
	if m.Prepare != nil {
		if err := m.Prepare(ctx, root); err != nil {
			return err
		}
	}
	if err := label(ctx, root, selinuxRecipe().policy); err != nil {
		return err
	}
	m.disk = filepath.Join(m.dir, "disk")
	if err := run(exec.CommandContext(ctx, "mke2fs", "-q", "-t", "ext4", "-d", root, m.disk, "2G")); err != nil {
		return err
	}
	return os.RemoveAll(root)
}

// label gives the files in a root the labels of a policy. setfiles needs /proc, which is
// unmounted when the command ends.
func label(ctx context.Context, root, policy string) error {
	const script = `mount -t proc proc "$1/proc"; exec chroot "$1" setfiles -F "$2" /`
	return run(exec.CommandContext(ctx, "unshare", "--mount", "sh", "-euc", script, "sh", root, fmt.Sprintf(fileContexts, policy)))
}

// makeNetwork connects the machine to the hub's bridge, which also gets the metadata
// service's address.
func (m *VM) makeNetwork(ctx context.Context) error {
	return ip(ctx,
		"tuntap add "+m.Name+" mode tap",
		"link set "+m.Name+" master hub up",
		"addr replace "+metadataAddress+"/32 dev hub",
	)
}

func (m *VM) serveMetadata(context.Context) error {
	l, err := net.ListenTCP("tcp4", net4(metadataAddress, 80))
	if err != nil {
		return fmt.Errorf("listen for metadata: %w", err)
	}
	m.metadata = &http.Server{Handler: m.Metadata, ReadHeaderTimeout: time.Minute}
	go func() { _ = m.metadata.Serve(l) }() // ends with the machine
	return nil
}

// kernelOptions boot without mitigations, which double the work of an emulated processor, and
// without units that only a person at a console or an installed system needs.
func (m *VM) kernelOptions() string {
	options := "root=/dev/vda rootfstype=ext4 rw console=ttyS0 net.ifnames=0 quiet mitigations=off systemd.show_status=0" +
		" security=selinux enforcing=1 audit=1 audit_backlog_limit=8192 address=" + m.Address.String() + "/24"
	for _, unit := range []string{
		"getty.target", "serial-getty@ttyS0.service", "e2scrub_reap.service", "systemd-update-utmp.service",
		"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer",
	} {
		options += " systemd.mask=" + unit
	}
	return options
}

func (m *VM) start(context.Context) error {
	kernel, initrd, err := m.kernel()
	if err != nil {
		return err
	}
	console, err := os.Create(m.consolePath())
	if err != nil {
		return err
	}
	defer console.Close()
	cmd := exec.Command("qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot", "-monitor", "stdio",
		"-machine", "q35", "-accel", "kvm", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", "2", "-m", "1024",
		"-kernel", kernel, "-initrd", initrd, "-append", m.kernelOptions(), "-serial", "file:"+m.consolePath(),
		"-drive", "if=virtio,format=raw,cache=unsafe,file="+m.disk,
		"-netdev", "tap,id=hub,script=no,downscript=no,ifname="+m.Name, "-device", "virtio-net-pci,netdev=hub,romfile=",
		"-device", "virtio-rng-pci",
	)
	cmd.Stderr = console
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if m.monitor, err = cmd.StdinPipe(); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	m.qemu, m.exited = cmd, make(chan struct{})
	go func() {
		_ = cmd.Wait() // a machine that is powered off exits as it likes
		_ = m.metadata.Close()
		close(m.exited)
	}()
	return nil
}

// kernel returns the files that the machine boots from.
func (m *VM) kernel() (kernel, initrd string, err error) {
	find := func(pattern string) string {
		found, globErr := filepath.Glob(filepath.Join(m.Image.layers[0], "boot", pattern))
		if globErr != nil || len(found) != 1 {
			err = errors.Join(err, globErr, fmt.Errorf("its image has %d files /boot/%s, want one", len(found), pattern))
			return ""
		}
		return found[0]
	}
	kernel, initrd = find("vmlinuz-*"), find("initrd.img-*")
	return kernel, initrd, err
}

// Running returns an error if the machine has exited.
func (m *VM) Running() error {
	select {
	case <-m.exited:
		return fmt.Errorf("%s has ended: %s", m.Name, m.Console())
	default:
		return nil
	}
}

// PowerOff shuts the machine down cleanly: it presses the power button, as EC2 does.
func (m *VM) PowerOff(ctx context.Context) error {
	if _, err := io.WriteString(m.monitor, "system_powerdown\n"); err != nil {
		return fmt.Errorf("power off %s: %w", m.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, powerOffLimit)
	defer cancel()
	select {
	case <-m.exited:
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("power off %s: it still runs: %w", m.Name, ctx.Err()), m.Kill())
	}
}

// Kill ends the machine, as a power cut would.
func (m *VM) Kill() error {
	if err := m.qemu.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-m.exited
	return nil
}

// Snapshot makes an image of a machine that is powered off. One machine can boot from it.
func (m *VM) Snapshot() (Image, error) {
	if m.Running() == nil {
		return Image{}, fmt.Errorf("snapshot of %s: it is running", m.Name)
	}
	return Image{layers: m.Image.layers, disk: m.disk}, nil
}

func (m *VM) consolePath() string { return filepath.Join(m.dir, "console.log") }

// Console returns what the machine has written to its console.
func (m *VM) Console() string {
	data, err := os.ReadFile(m.consolePath())
	if err != nil {
		return err.Error()
	}
	return strings.ToValidUTF8(string(data), "?")
}
