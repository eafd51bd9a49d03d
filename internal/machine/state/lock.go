package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/replace"
	"github.com/hallmark-ssh/hallmark/internal/machine/rooted"
)

// ErrRunning says that another run has the lock.
var ErrRunning = errors.New("another run of hallmark is still in progress")

// LongestRun is how long a run may hold the lock before the next run calls it stuck. It is the
// unit's RuntimeMaxSec.
const LongestRun = 10 * time.Minute

// LockPath is a file that only root may open: anyone who can open a file or a folder can lock
// it, and keep all runs out.
func LockPath(dir string) string { return filepath.Join(dir, lockFile) }

const lockFile = ".lock"

// Lock keeps other runs out while one changes the machine. The kernel releases the lock if the
// process dies. The file's time says since when it is held.
func Lock(dir string, now time.Time) (unlock func(), err error) {
	if err := replace.MakeFolder(dir); err != nil {
		return nil, fault.Newf(fault.Failed, "run it as root", "make the state folder: %w", err)
	}
	path := LockPath(dir)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fault.Newf(fault.Failed, "run it as root", "open the lock: %w", err)
	}
	if err != nil {
		return nil, fault.Newf(fault.Failed, fault.FileHint(err), "open the lock: %w", err)
	}
	if err := take(file, now); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return func() { release(file) }, nil
}

// release unlocks before it closes: a child that was just forked also has the file open until
// it executes another program, so closing alone would leave the file locked.
func release(file *os.File) {
	_ = unix.Flock(int(file.Fd()), unix.LOCK_UN) // closing releases it otherwise
	_ = file.Close()                             // nothing was written to it
}

func take(file *os.File, now time.Time) error {
	err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return held(file, now)
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	// somebody may have made it readable since
	if err := errors.Join(file.Chmod(0o600), os.Chtimes(file.Name(), now, now)); err != nil {
		return fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	return nil
}

// held explains that another run has the lock.
func held(file *os.File, now time.Time) error {
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	since := info.ModTime()
	if now.Sub(since) > LongestRun {
		return fault.Newf(fault.Failed, "find it with 'fuser -v "+file.Name()+"' and stop it",
			"another run of hallmark has been in progress since %s", since.UTC().Format(time.RFC3339))
	}
	return fault.Newf(fault.Temporary, "wait for it to end: systemctl status hallmark.service", "%w", ErrRunning)
}

// LockInside locks the file system at root, if hallmark has run there.
func LockInside(root string) (unlock func(), err error) {
	dir, err := rooted.Resolve(root, Dir)
	if err != nil {
		return nil, fmt.Errorf("find the state folder: %w", err)
	}
	dir = filepath.Join(root, dir)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	return Lock(dir, time.Now())
}
