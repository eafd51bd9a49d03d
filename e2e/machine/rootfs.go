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
)

// RootFS returns the folder of a release's root file system. The first call builds it, which
// takes half a minute and the network. Later calls find it in the user's cache folder, by a
// hash of its recipe.
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
	cmd := exec.CommandContext(ctx, "mmdebstrap", "--quiet", "--variant=minbase",
		"--dpkgopt=force-unsafe-io", // an interrupted build is thrown away
		"--include="+strings.Join(packages(), ","), string(release), partial)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	err := run(cmd)
	if err == nil {
		err = configure(partial)
	}
	if err == nil {
		err = os.Rename(partial, dir)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(partial))
	}
	return nil
}

// packages are the packages of Debian's EC2 image that matter here.
func packages() []string {
	return []string{
		"ca-certificates", "cloud-init", "dbus", "iproute2", "openssh-server",
		"python3-yaml", "sudo", "systemd-sysv",
	}
}

// files are written into the root file system.
func files() map[string]string {
	return map[string]string{
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
	}
}

// configure turns a fresh Debian into an AMI: set up for EC2, and without an identity.
func configure(root string) error {
	for name, content := range files() {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
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
	return nil
}

// recipeHash changes with everything that goes into the root file system.
func recipeHash(release Release) string {
	contents := files()
	h := sha256.New()
	fmt.Fprintln(h, release, packages())
	for _, name := range sorted(contents) {
		fmt.Fprintf(h, "%s %q\n", name, contents[name])
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}

func sorted(m map[string]string) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
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
