package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Seal makes a file system ready to be an image: it removes the host keys, their
// certificates and the enrollment's state, and returns what it removed. Machines
// that share host keys could pass for one another, and the signer refuses them.
func Seal(root string) ([]string, error) {
	var removed []string
	for _, pattern := range []string{
		"etc/ssh/ssh_host_*_key",
		"etc/ssh/ssh_host_*_key.pub",
		"etc/ssh/ssh_host_*_key-cert.pub",
		"etc/ssh/.*.hallmark-*", // what a crash left behind
		filepath.Join(StateDir, "*"),
		filepath.Join(StateDir, ".*"),
	} {
		paths, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return removed, fmt.Errorf("find %s: %w", pattern, err)
		}
		for _, path := range paths {
			if err := os.RemoveAll(path); err != nil {
				return removed, fmt.Errorf("seal: %w", err)
			}
			removed = append(removed, path)
		}
	}
	return removed, errors.Join(syncFolders(root, "etc/ssh", StateDir)...)
}

// syncFolders makes removals durable: the snapshot of a disk may be taken at once.
func syncFolders(root string, folders ...string) (errs []error) {
	for _, path := range folders {
		folder, err := os.Open(filepath.Join(root, path))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, folder.Sync(), folder.Close())
	}
	return errs
}
