package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/replace"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

const (
	caFile = sshdconf.CAFile
	// hostKeysDropIn lets the service write certificates outside /etc/ssh.
	hostKeysDropIn = unitDir + "/hallmark.service.d/host-keys.conf"
	// lastRun is where systemd keeps when the timer last elapsed (Persistent= in
	// systemd.timer(5)).
	lastRun = "/var/lib/systemd/timers/stamp-hallmark-renew.timer"
)

// cleanUp removes Hallmark's files once sshd no longer uses them. What the next run needs to
// finish goes last: the record, which says what was there before.
func (r *removal) cleanUp(ctx context.Context, dir string) error {
	if err := r.restoreCertificates(dir); err != nil {
		return err
	}
	if err := r.remove(caFile); err != nil {
		return err
	}
	if err := r.removeUnits(ctx); err != nil {
		return err
	}
	if err := r.clearState(dir); err != nil {
		return err
	}
	for _, path := range []string{config.SignerCAFile, config.File} {
		if err := r.remove(path); err != nil {
			return err
		}
	}
	if r.record.made(Program) {
		if err := r.remove(Program); err != nil {
			return err
		}
	}
	if err := r.removeFolders(slices.Concat(r.record.Made, []string{filepath.Dir(caFile), filepath.Dir(hostKeysDropIn), state.Dir})); err != nil {
		return err
	}
	if err := r.remove(recordFile); err != nil {
		return err
	}
	return r.removeFolders([]string{filepath.Dir(recordFile)})
}

// written returns the host keys whose certificates Hallmark wrote.
func (r *removal) written() []hostkey.Key {
	return hostkey.Selection{Conf: r.conf, State: r.known}.Written()
}

// restoreCertificates removes Hallmark's certificates, and restores those of other CAs that
// enrollments overwrote: not one for a host key that the machine no longer has.
func (r *removal) restoreCertificates(dir string) error {
	originals, err := state.LoadOriginals(dir)
	if err != nil {
		return err
	}
	for _, key := range r.written() {
		path := key.CertificatePath()
		n := slices.IndexFunc(originals, func(o state.Original) bool { return o.Path == path })
		if n < 0 || !certifies(originals[n].Content, key.Path) {
			if err := r.removeHere(path); err != nil {
				return err
			}
			continue
		}
		if err := replace.RemoveLeftovers(path); err != nil {
			return err
		}
		if err := replace.File(path, originals[n].Content); err != nil {
			return fmt.Errorf("restore a certificate of another CA: %w", err)
		}
		r.changes = append(r.changes, "replaced "+path)
	}
	return nil
}

// certifies reports whether a certificate is for the host key at path.
func certifies(certificate []byte, path string) bool {
	cert := hostkey.ParseCertificate(certificate)
	if cert == nil {
		return false
	}
	public, _, err := hostkey.ReadPublic(path)
	return err == nil && public != nil && bytes.Equal(public.Marshal(), cert.Key.Marshal())
}

func (r *removal) removeUnits(ctx context.Context) error {
	paths := []string{hostKeysDropIn, lastRun}
	for _, unit := range units() {
		paths = append(paths, filepath.Join(unitDir, unit))
	}
	for _, path := range paths {
		if err := r.remove(path); err != nil {
			return err
		}
	}
	return r.units.Forget(ctx)
}

// clearState removes everything that runs have saved, except the lock, which this run holds.
// Then only the folder is left, and its lock.
func (r *removal) clearState(dir string) error {
	folders := []string{dir}
	if r.runDir != "" {
		folders = append(folders, r.runDir)
	}
	for _, folder := range folders {
		entries, err := os.ReadDir(folder)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove hallmark's state: %w", err)
		}
		for _, entry := range entries {
			path := filepath.Join(folder, entry.Name())
			if path == state.LockPath(dir) {
				continue
			}
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("remove hallmark's state: %w", err)
			}
			r.changes = append(r.changes, "removed "+path)
		}
	}
	if r.runDir != "" {
		if err := removeEmpty(r.runDir); err != nil {
			return err
		}
	}
	return nil
}

// removeFolders removes those of the folders that are empty, the deepest first. The lock goes
// with its folder.
func (r *removal) removeFolders(folders []string) error {
	for _, folder := range slices.Backward(slices.Compact(slices.Sorted(slices.Values(folders)))) {
		path, err := r.path(folder)
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil || !info.IsDir() {
			continue // a file of Hallmark's, which has been removed by its name
		}
		if folder == state.Dir {
			if err := os.Remove(state.LockPath(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove hallmark's state: %w", err)
			}
		}
		if err := removeEmpty(path); err != nil {
			return err
		}
	}
	return nil
}

// removeEmpty removes a folder unless somebody put something into it, or mounted a file system
// there.
func removeEmpty(path string) error {
	err := os.Remove(path)
	for _, stays := range []error{fs.ErrNotExist, syscall.ENOTEMPTY, syscall.EEXIST, syscall.EBUSY} {
		if errors.Is(err, stays) {
			return nil
		}
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("remove hallmark's folders: %w", err)
}
