package state

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A child that was just forked shares the lock's file with its parent.
func TestUnlockWhileAChildHasTheFile(t *testing.T) {
	dir := t.TempDir()
	file, err := os.OpenFile(LockPath(dir), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := take(file, time.Now()); err != nil {
		t.Fatal(err)
	}
	child, err := syscall.Dup(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(child)
	release(file)
	unlock, err := Lock(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

// Another user can't take the lock, nor can a link in its place lead elsewhere.
func TestLockIsRoots(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	elsewhere := filepath.Join(t.TempDir(), "file")
	if err := os.Symlink(elsewhere, LockPath(dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(dir, time.Now()); err == nil {
		t.Error("it followed a symbolic link")
	}
	if err := os.Remove(LockPath(dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(LockPath(dir), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	unlock, err := Lock(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if info, err := os.Stat(LockPath(dir)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v, want mode 0600", info.Mode(), err)
	}
	if os.Geteuid() != 0 {
		return // the rest needs a second user
	}
	for folder := dir; folder != os.TempDir(); folder = filepath.Dir(folder) {
		if err := os.Chmod(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{dir, LockPath(dir)} {
		stranger := exec.Command("flock", "--nonblock", path, "-c", "echo locked; read _")
		stranger.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		stdin, err := stranger.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := stranger.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := stranger.Start(); err != nil {
			t.Fatal(err)
		}
		said := make([]byte, 16)
		n, _ := stdout.Read(said) // it says "locked", or ends
		if path == LockPath(dir) && strings.Contains(string(said[:n]), "locked") {
			t.Error("another user took the lock")
		}
		if unlock, err := Lock(dir, time.Now()); err != nil {
			t.Errorf("with another user at %s: %v", path, err)
		} else {
			unlock()
		}
		stdin.Close()
		_ = stranger.Wait()
	}
}
