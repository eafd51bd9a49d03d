package wayin

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// isSafe does what StrictModes does (auth_secure_path in OpenSSH's misc.c): the file, and each
// folder above it up to the home directory or the root, belongs to root or the account, and
// nobody else may write it.
func (l *lookup) isSafe(file string) bool {
	path, err := l.resolve(file)
	if err != nil {
		return false
	}
	home, err := l.resolve(l.account.Home)
	if err != nil || !l.owned(path) {
		return false
	}
	root := filepath.Join("/", l.Root)
	for folder := filepath.Dir(path); ; folder = filepath.Dir(folder) {
		if !l.owned(folder) {
			return false
		}
		if folder == home || folder == root || folder == "/" {
			return true
		}
	}
}

func (l *lookup) owned(path string) bool {
	const others = 0o022
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&others != 0 {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && (stat.Uid == 0 || int(stat.Uid) == l.account.UID)
}

// isReadable reports whether the account may read a file, because sshd reads it as the account.
func (l *lookup) isReadable(file string) bool {
	const read, search = 0o4, 0o1
	path, err := l.resolve(file)
	if err != nil || !l.may(path, read) {
		return false
	}
	root := filepath.Join("/", l.Root)
	for folder := filepath.Dir(path); folder != root && folder != "/"; folder = filepath.Dir(folder) {
		if !l.may(folder, search) {
			return false
		}
	}
	return true
}

// may reports whether a file's mode gives the account an access, which is a bit of the mode for
// others.
func (l *lookup) may(path string, access fs.FileMode) bool {
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	perm := info.Mode().Perm()
	switch {
	case !ok:
		return false
	case l.isRoot():
		return true
	case int(stat.Uid) == l.account.UID:
		perm >>= 6
	case slices.Contains(l.account.GIDs, int(stat.Gid)):
		perm >>= 3
	}
	return perm&access != 0
}
