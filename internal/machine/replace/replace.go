// Package replace replaces files: all or none, each as a whole, keeping owner, mode and
// SELinux label.
package replace

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// Change replaces several files as one. Stage writes everything next to its target, Commit
// only renames, and Rollback only renames back: after staging, a full disk can stop neither.
//
// Close rolls back a Change that was neither kept nor rolled back.
type Change struct {
	files []*change
	kept  bool
}

// change is what happens to one file. Its helper files have fixed names, so the next Change of
// the file, or RemoveLeftovers, removes what a crash left behind. The names start with a dot
// and do not end in .conf, so no Include pattern takes them for drop-ins.
type change struct {
	path      string
	staged    string // the new content, or "" to remove the file
	saved     string // a hard link to the old file, or "" if there was none
	committed bool
}

// Stage prepares path to hold data. An existing file keeps its mode, owner and SELinux label;
// a new file gets mode and its folder's label. A file that already holds data is left alone.
func (c *Change) Stage(path string, data []byte, mode fs.FileMode) error {
	if err := settle(path); err != nil {
		return fmt.Errorf("prepare %s: %w", path, err)
	}
	if holds(path, data) {
		return nil
	}
	f, err := c.add(path)
	if err != nil {
		return fmt.Errorf("prepare %s: %w", path, err)
	}
	f.staged = helperFile(path, "new")
	if err := f.write(data, mode); err != nil {
		return fmt.Errorf("prepare %s: %w", path, err)
	}
	return nil
}

// StageRemoval prepares to remove path, if it exists.
func (c *Change) StageRemoval(path string) error {
	if err := settle(path); err != nil {
		return fmt.Errorf("prepare to remove %s: %w", path, err)
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := c.add(path); err != nil {
		return fmt.Errorf("prepare to remove %s: %w", path, err)
	}
	return nil
}

// Lines returns one line for each file that Commit changes, in order: "wrote", "replaced" or
// "removed", and the path. There is none for a file that was left alone, and none after Close.
func (c *Change) Lines() (lines []string) {
	for _, f := range c.files {
		did := "replaced"
		switch {
		case f.staged == "":
			did = "removed"
		case f.saved == "":
			did = "wrote"
		}
		lines = append(lines, did+" "+f.path)
	}
	return lines
}

func helperFile(path, what string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".hallmark-"+what)
}

// SavedCopy returns where a Change keeps the old file until it is closed. After a kill, the
// copy may still be there.
func SavedCopy(path string) string { return helperFile(path, "old") }

// RemoveLeftovers removes what a killed run left next to the files. If a file is missing, it
// is restored from the copy that the run saved. Do not call this during a Change of the files.
func RemoveLeftovers(paths ...string) error {
	var errs []error
	for _, path := range paths {
		_, err := restore(path)
		if err == nil {
			err = removeAll(helperFile(path, "new"), helperFile(path, "old"))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// restore restores the file that a run saved, if that is the only copy. superseded says that
// both files exist, and differ.
func restore(path string) (superseded bool, err error) {
	saved := helperFile(path, "old")
	old, err := os.Lstat(saved)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	now, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, os.Rename(saved, path)
	}
	return err == nil && !os.SameFile(old, now), err
}

// settle makes room for another Change of the file. If the saved copy differs from the file, a
// run could not restore it: settle keeps the copy under another name.
func settle(path string) error {
	superseded, err := restore(path)
	if err != nil {
		return err
	}
	kept := helperFile(path, "saved")
	if _, err := os.Lstat(kept); superseded && errors.Is(err, fs.ErrNotExist) {
		return errors.Join(os.Rename(helperFile(path, "old"), kept), removeAll(helperFile(path, "new")))
	}
	return removeAll(helperFile(path, "new"), helperFile(path, "old"))
}

// add saves the old file as a hard link, which takes no space and is the very same file: a
// rollback cannot lose anything.
func (c *Change) add(path string) (*change, error) {
	if err := refuseFolder(path); err != nil {
		return nil, err
	}
	f := &change{path: path}
	saved := helperFile(path, "old")
	switch err := os.Link(path, saved); {
	case err == nil:
		f.saved = saved
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	c.files = append(c.files, f)
	return f, nil
}

// refuseFolder exists because a folder cannot have a hard link, and the kernel's error does not
// say that.
func refuseFolder(path string) error {
	if info, err := os.Lstat(path); err == nil && info.IsDir() {
		return &fs.PathError{Op: "replace", Path: path, Err: syscall.EISDIR}
	}
	return nil
}

// holds reports whether a path is a file, and not a link, with this content.
func holds(path string, data []byte) bool {
	old, err := os.ReadFile(path)
	return err == nil && bytes.Equal(old, data) && isRegular(path)
}

func (f *change) write(data []byte, mode fs.FileMode) (err error) {
	// O_EXCL: never through a link that someone put there.
	file, err := os.OpenFile(f.staged, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if _, err := file.Write(data); err != nil {
		return err
	}
	if f.saved != "" {
		mode, err = copyAttributes(file, f.saved, mode)
	} else {
		err = inheritLabel(file, filepath.Dir(f.path))
	}
	if err != nil {
		return err
	}
	if err := file.Chmod(mode.Perm()); err != nil { // Chmod, because the umask must not matter
		return err
	}
	return file.Sync()
}

// copyAttributes gives file the owner and SELinux label of the file at path, and returns the
// mode to give it. A symbolic link's attributes are not the file's.
func copyAttributes(file *os.File, path string, mode fs.FileMode) (fs.FileMode, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return mode, nil
	}
	mine, err := file.Stat()
	if err != nil {
		return 0, err
	}
	want, ok := info.Sys().(*syscall.Stat_t)
	have, ok2 := mine.Sys().(*syscall.Stat_t)
	// Only if it differs: the hardened unit may not even call chown.
	if ok && ok2 && (want.Uid != have.Uid || want.Gid != have.Gid) {
		if err := file.Chown(int(want.Uid), int(want.Gid)); err != nil {
			return 0, err
		}
	}
	return info.Mode(), copyLabel(file, path)
}

// Commit moves every staged file into place. If one move fails, it stops, and Close restores
// the files before it.
func (c *Change) Commit() error {
	for _, f := range c.files {
		if err := f.commit(); err != nil {
			return fmt.Errorf("replace %s: %w", f.path, err)
		}
	}
	return c.syncFolders()
}

func (f *change) commit() error {
	if f.staged == "" {
		if err := os.Remove(f.path); err != nil {
			return err
		}
	} else if err := os.Rename(f.staged, f.path); err != nil {
		return err
	}
	f.committed = true
	return nil
}

// Rollback restores what Commit replaced, and removes what it created, the last file first.
func (c *Change) Rollback() error {
	var errs []error
	for _, f := range slices.Backward(c.files) {
		if !f.committed {
			continue
		}
		if err := f.rollback(); err != nil {
			errs = append(errs, fmt.Errorf("put back %s: %w", f.path, err))
			continue
		}
		f.committed = false
	}
	return errors.Join(append(errs, c.syncFolders())...)
}

func (f *change) rollback() error {
	if f.saved == "" {
		return os.Remove(f.path)
	}
	err := os.Rename(f.saved, f.path)
	if err == nil {
		f.saved = ""
	}
	return err
}

// Keep makes the committed files final.
func (c *Change) Keep() { c.kept = true }

// Close removes the helper files, after a rollback unless the change was kept. You may call it
// twice.
func (c *Change) Close() error {
	var errs []error
	if !c.kept {
		errs = append(errs, c.Rollback())
	}
	for _, f := range c.files {
		if f.committed && !c.kept {
			continue // could not be restored: the saved copy is all there is
		}
		errs = append(errs, removeAll(helperFile(f.path, "new"), helperFile(f.path, "old")))
	}
	c.files = nil
	return errors.Join(errs...)
}

// syncFolders makes renames durable. If power fails before that, the old files remain.
func (c *Change) syncFolders() error {
	synced := map[string]bool{}
	var errs []error
	for _, f := range c.files {
		folder := filepath.Dir(f.path)
		if synced[folder] {
			continue
		}
		synced[folder] = true
		errs = append(errs, syncFolder(folder))
	}
	return errors.Join(errs...)
}

func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Sync()
}

func removeAll(paths ...string) error {
	for _, path := range paths {
		// On a read-only file system, Linux refuses to remove even a file that does not exist.
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func isRegular(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular()
}
