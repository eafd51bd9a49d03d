package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/rooted"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// SealOptions allow what Seal would otherwise refuse.
type SealOptions struct {
	// Force seals a running machine that is enrolled. After that, nobody new can log in to it.
	Force bool
	// HostKeysElsewhere says that the image generates host keys at boot in a way that Seal
	// does not find.
	HostKeysElsewhere bool
}

// Seal makes a file system ready to become an image: it removes the host keys that sshd's
// configuration names, their certificates and the enrollment's state, and returns what it
// removed. Machines that share host keys could pass for one another, and the signer refuses
// them. It removes nothing outside root, wherever links lead.
func Seal(root string, options ...SealOptions) (removed []string, err error) {
	var o SealOptions
	if len(options) > 0 {
		o = options[0]
	}
	if err := checkSealable(root, o); err != nil {
		return nil, err
	}
	unlock, err := state.LockInside(root)
	if err != nil {
		return nil, err
	}
	defer unlock()
	inside, err := os.OpenRoot(root)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	defer inside.Close()
	s := &sealing{root: root, inside: inside}
	for _, key := range hostKeyPaths(root) {
		for _, path := range []string{key, key + ".pub", key + hostkey.CertificateSuffix} {
			s.remove(path)
		}
	}
	s.removeMatching("/etc/ssh/ssh_host_*_key", "/etc/ssh/ssh_host_*_key.pub", "/etc/ssh/ssh_host_*_key"+hostkey.CertificateSuffix)
	// These are leftovers of a crash. Saved copies of people's files stay.
	s.removeMatching("/etc/ssh/.*.hallmark-new", "/etc/ssh/.*"+hostkey.CertificateSuffix+".hallmark-old")
	s.removeMatching(state.Dir+"/*", state.Dir+"/.*")
	s.sync()
	return s.removed, errors.Join(s.errs...)
}

// checkSealable refuses a file system that would become an image, or a machine, that nobody
// can use.
func checkSealable(root string, o SealOptions) error {
	if info, err := os.Stat(filepath.Join(root, "etc/ssh")); err != nil || !info.IsDir() {
		return fault.Newf(fault.Failed, "set --root to the root of a system's file system",
			"%s is not a root file system with sshd: there is no folder %s", root, filepath.Join(root, "etc/ssh"))
	}
	live, err := isLive(root)
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	if live && !o.Force {
		if err := checkNotEnrolled(state.Dir); err != nil {
			return err
		}
	}
	if _, err := sshd.Find(root); err == nil && !o.HostKeysElsewhere && !MakesHostKeys(root) {
		return fault.Newf(fault.Failed, "install cloud-init or a unit that runs 'ssh-keygen -A', or pass --host-keys-elsewhere if something else generates them",
			"nothing in %s generates host keys at boot: sshd would not start", root)
	}
	return nil
}

// checkNotEnrolled refuses to seal a machine that people log in to.
func checkNotEnrolled(stateDir string) error {
	s, err := state.Load(stateDir)
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	if s == nil {
		return nil
	}
	return fault.Newf(fault.Failed, "pass --root for a mounted image, or --force if this machine itself becomes an image",
		"this machine is enrolled as %s: without host keys, nobody could log in to it anymore", s.Node.Hostname)
}

// isLive reports whether a root is the running machine's, under any path.
func isLive(root string) (bool, error) {
	this, err := os.Stat("/")
	if err != nil {
		return false, err
	}
	that, err := os.Stat(root)
	if err != nil {
		return false, err
	}
	return os.SameFile(this, that), nil
}

// HostKeys returns the host keys in the file system at root: those that sshd's configuration
// names, and those in the usual places. Seal removes them.
func HostKeys(root string) (found []string) {
	var names []string
	for _, path := range hostKeyPaths(root) {
		if resolved, err := rooted.Resolve(root, path); err == nil {
			names = append(names, filepath.Join(root, resolved))
		}
	}
	if folder, err := rooted.Resolve(root, "/etc/ssh"); err == nil {
		usual, _ := filepath.Glob(filepath.Join(root, folder, "ssh_host_*_key")) // the pattern is correct
		names = append(names, usual...)
	}
	for _, name := range names {
		if _, err := os.Lstat(name); err == nil && !slices.Contains(found, name) {
			found = append(found, name)
		}
	}
	return found
}

// hostKeyPaths returns the host keys that sshd's configuration names, in every way in which a
// version of sshd may read it. It leaves out folders, which only the other versions' way names.
func hostKeyPaths(root string) (paths []string) {
	for _, line := range (&sshd.Server{Root: root}).Lines() {
		if line.Keyword != "hostkey" {
			continue
		}
		for _, arguments := range line.Readings() {
			if len(arguments) > 0 && filepath.IsAbs(arguments[0]) && !isFolder(root, arguments[0]) {
				paths = append(paths, arguments[0])
			}
		}
	}
	return paths
}

// isFolder reports whether a path in the file system at root leads to a folder.
func isFolder(root, path string) bool {
	resolved, err := rooted.Resolve(root, path)
	if err != nil {
		return false
	}
	info, err := os.Stat(filepath.Join(root, resolved))
	return err == nil && info.IsDir()
}

// sealing removes files inside a root.
type sealing struct {
	root    string
	inside  *os.Root
	folders []string
	removed []string
	errs    []error
}

// remove removes what a path names and, if that is a link, also what the link leads to inside
// the root: the key itself must not stay in an image.
func (s *sealing) remove(path string) {
	target, err := rooted.Resolve(s.root, path)
	folder, err2 := rooted.Resolve(s.root, filepath.Dir(path))
	if err = errors.Join(err, err2); err != nil {
		s.errs = append(s.errs, fmt.Errorf("seal: %w", err))
		return
	}
	names := []string{filepath.Join(folder, filepath.Base(path))}
	if target != names[0] {
		names = append(names, target)
	}
	for _, name := range names {
		s.unlink(name, s.inside.Remove)
	}
}

// unlink removes a path without links in it. os.Root keeps it inside, even if somebody
// replaces a folder with a link in the meantime.
func (s *sealing) unlink(path string, remove func(string) error) {
	relative := strings.TrimPrefix(path, "/")
	if _, err := s.inside.Lstat(relative); errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err := remove(relative); err != nil {
		s.errs = append(s.errs, fmt.Errorf("seal: %w", err))
		return
	}
	if filepath.Base(relative) != filepath.Base(state.LockPath(state.Dir)) { // the folders that this run created itself
		s.removed = append(s.removed, filepath.Join(s.root, relative))
	}
	if folder := filepath.Dir(relative); !slices.Contains(s.folders, folder) {
		s.folders = append(s.folders, folder)
	}
}

// removeMatching removes what patterns match, with all content.
func (s *sealing) removeMatching(patterns ...string) {
	for _, pattern := range patterns {
		folder, err := rooted.Resolve(s.root, filepath.Dir(pattern))
		if err != nil {
			s.errs = append(s.errs, fmt.Errorf("seal: %w", err))
			continue
		}
		found, err := fs.Glob(s.inside.FS(), filepath.Join(strings.TrimPrefix(folder, "/"), filepath.Base(pattern)))
		if err != nil {
			s.errs = append(s.errs, fmt.Errorf("seal: find %s: %w", pattern, err))
		}
		for _, path := range found {
			if info, err := s.inside.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink != 0 {
				s.remove("/" + path)
				continue
			}
			s.unlink(path, s.inside.RemoveAll)
		}
	}
}

// sync makes removals durable: a snapshot of the disk may follow at once.
func (s *sealing) sync() {
	for _, path := range s.folders {
		folder, err := s.inside.Open(path)
		if err != nil {
			s.errs = append(s.errs, err)
			continue
		}
		s.errs = append(s.errs, folder.Sync(), folder.Close())
	}
}
