package wayin

import (
	"os"
	"path/filepath"
	"syscall"
)

// isSafe does what StrictModes does (auth_secure_path in OpenSSH's misc.c): the file, and each
// folder above it up to the home directory or the root, belongs to root or the account, and
// nobody else may write it. sshd also reads the file as the account.
func (l *lookup) isSafe(file string) bool {
	path, err := l.resolve(file)
	if err != nil {
		return false
	}
	home, err := l.resolve(l.account.Home)
	if err != nil || !l.owned(path) || !l.readable(path) {
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

func (l *lookup) readable(path string) bool {
	const byOwner, byOthers = 0o400, 0o044
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	mine := ok && int(stat.Uid) == l.account.UID && info.Mode().Perm()&byOwner != 0
	return l.isRoot() || mine || info.Mode().Perm()&byOthers != 0
}
