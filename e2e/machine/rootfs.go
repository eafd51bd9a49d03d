//go:build linux

package machine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Release is a release of Debian, by the name of its suite.
type Release string

// The releases that machines can run, with their versions of cloud-init, systemd and
// OpenSSH.
const (
	Debian11 Release = "bullseye" // 20.4, 247, 8.4
	Debian12 Release = "bookworm" // 22.4, 252, 9.2
	Debian13 Release = "trixie"   // 25.1, 257, 10.0

	// Debian12SELinux is Debian 12 with a kernel and Debian's SELinux policy, for virtual
	// machines only. It has no cloud-init, whose generator that policy keeps from writing
	// to /run.
	Debian12SELinux = Debian12 + "-selinux"
)

// RootFS returns the folder of a release's root file system. The first call builds it, which
// takes the network and a minute, with a kernel two minutes. Later calls find it in the user's
// cache folder, by a hash of its recipe.
func RootFS(ctx context.Context, logger *log.Logger, release Release) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "hallmark")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "rootfs-"+string(release)+"-"+recipeHash(release))
	unlock, err := lock(filepath.Join(cache, "rootfs-"+string(release)+".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	logger.Printf("building a Debian %s root file system in %s", release, dir)
	started := time.Now()
	if err := build(ctx, release, dir); err != nil {
		return "", err
	}
	logger.Printf("built it in %.0f s", time.Since(started).Seconds())
	return dir, nil
}

// build creates the root file system beside its final place and then renames it, so that an
// interrupted build never looks finished.
func build(ctx context.Context, release Release, dir string) error {
	partial := dir + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	r := recipes(release)
	early, err := os.MkdirTemp("", "rootfs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(early)
	if err := writeFiles(early, r.early); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", "--quiet", "--variant=minbase",
		"--dpkgopt=force-unsafe-io", // an interrupted build is thrown away
		"--dpkgopt=force-confold",   // the early files stay
		"--essential-hook=cp -R "+early+`/. "$1"`,
		"--include="+strings.Join(r.packages, ","), r.suite, partial)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	err = run(cmd)
	if err == nil {
		err = configure(ctx, partial, r)
	}
	if err == nil {
		err = os.Rename(partial, dir)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(partial))
	}
	return nil
}

// recipe is what a root file system consists of.
type recipe struct {
	suite    string // name of the release in Debian's archive
	packages []string
	// early are files that packages read when they are installed.
	early map[string]string
	files map[string]string
	units []string // that start at boot
	// policy is the SELinux policy whose labels the files get; empty means none.
	policy string
}

func recipes(release Release) recipe {
	if release == Debian12SELinux {
		return selinuxRecipe()
	}
	r := recipe{
		suite: string(release),
		// The packages of Debian's EC2 image that matter here.
		packages: []string{
			"ca-certificates", "cloud-init", "dbus", "iproute2", "openssh-server",
			"python3-yaml", "sudo", "systemd-sysv",
		},
		files: map[string]string{
			// A container has no DMI, from which cloud-init would recognize EC2.
			"etc/cloud/ds-identify.cfg": "datasource: Ec2\npolicy: enabled\n",
			"etc/cloud/cloud.cfg.d/90-fleet.cfg": `datasource_list: [Ec2, None]
datasource: {Ec2: {strict_id: false, max_wait: 10, timeout: 5}}
network: {config: disabled}
locale: false
manage_etc_hosts: true
`,
			"etc/hostname":   "localhost\n",
			"etc/machine-id": "",
			// With an empty machine-id, systemd enables at first boot everything that no preset
			// forbids. sshd should listen by itself, as on an installed Debian.
			"etc/systemd/system-preset/50-fleet.preset": "disable ssh.socket\n",
			// There is no DNS here, and cloud-init would wait a long time for an answer.
			"etc/resolv.conf": "",
		},
	}
	// These look for disks and kernel parameters, at each boot and each reload of systemd. A container
	// has none. An empty file masks a generator (systemd.generator(7)).
	for _, name := range []string{
		"cryptsetup", "debug", "fstab", "gpt-auto", "hibernate-resume", "integritysetup", "rc-local", "run",
		"system-update", "tpm2", "veritysetup",
	} {
		r.files["etc/systemd/system-generators/systemd-"+name+"-generator"] = ""
	}
	return r
}

// configure turns a fresh Debian into an AMI: set up for EC2, and without an identity.
func configure(ctx context.Context, root string, r recipe) error {
	if err := writeFiles(root, r.files); err != nil {
		return err
	}
	keys, err := filepath.Glob(filepath.Join(root, "etc/ssh/ssh_host_*"))
	if err != nil {
		return err
	}
	for _, key := range keys {
		if err := os.Remove(key); err != nil {
			return err
		}
	}
	if len(r.units) > 0 {
		if err := run(exec.CommandContext(ctx, "systemctl", append([]string{"--root=" + root, "enable"}, r.units...)...)); err != nil {
			return err
		}
	}
	if r.policy != "" {
		return label(ctx, root, r.policy)
	}
	return nil
}

// writeFiles writes files into a root file system, by their paths inside it.
func writeFiles(root string, files map[string]string) error {
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// recipeHash changes with everything that goes into the root file system.
func recipeHash(release Release) string {
	r := recipes(release)
	h := sha256.New()
	fmt.Fprintln(h, release, r.packages)
	for _, files := range []map[string]string{r.files, r.early} {
		for _, name := range slices.Sorted(maps.Keys(files)) {
			fmt.Fprintf(h, "%s %q\n", name, files[name])
		}
	}
	if len(r.units) > 0 {
		fmt.Fprintln(h, r.units, r.policy)
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}

// lock waits for the file's lock, so that two runs build only once.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(&fs.PathError{Op: "lock", Path: path, Err: err}, f.Close())
	}
	return func() { _ = f.Close() }, nil // closing unlocks
}
