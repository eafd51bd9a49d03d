package doctor

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// statFolder asks the kernel about a folder without writing to it.
func statFolder(path string) Folder {
	f := Folder{Path: path}
	var s unix.Statfs_t
	if f.Err = unix.Statfs(path, &s); f.Err != nil {
		return f
	}
	// The file system may be writable and a bind mount of it not: access(2) knows both.
	f.ReadOnly = errors.Is(unix.Access(path, unix.W_OK), unix.EROFS)
	f.Free = s.Bfree * uint64(s.Bsize) //nolint:gosec // a size
	f.Inodes, f.Limited = s.Ffree, s.Files > 0
	return f
}

// lockedSince returns since when a run holds the lock, or zero if none does. It does not take
// the lock, which would keep a run out.
func lockedSince(path string) time.Time {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return time.Time{}
	}
	var s unix.Stat_t
	if unix.Stat(path, &s) != nil {
		return time.Time{}
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil || !isLocked(string(locks), unix.Major(uint64(s.Dev)), unix.Minor(uint64(s.Dev)), s.Ino) { //nolint:unconvert // on other platforms it is
		return time.Time{}
	}
	return info.ModTime()
}

// isLocked looks for a file among the locks of proc(5): "1: FLOCK ADVISORY WRITE PID
// MAJOR:MINOR:INODE 0 EOF", the device in hexadecimal.
func isLocked(locks string, major, minor uint32, inode uint64) bool {
	want := fmt.Sprintf("%02x:%02x:%d", major, minor, inode)
	for line := range strings.Lines(locks) {
		fields := strings.Fields(line)
		if len(fields) >= 6 && fields[1] == "FLOCK" && fields[5] == want {
			return true
		}
	}
	return false
}
