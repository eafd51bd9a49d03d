package agent

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestOneRunAtATime(t *testing.T) {
	m := newMachine(t)
	began := time.Now()
	unlock, err := lock(m.stateDir, began)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		after   time.Duration
		kind    Kind
		running bool // the timer's run ends with 0
		message string
	}{
		{0, Temporary, true, "another run of hallmark has not ended"},
		{longestRun, Temporary, true, "another run"},
		{-time.Hour, Temporary, true, "another run"}, // the clock was set back
		{longestRun + time.Second, Failed, false, "since " + began.UTC().Format("2006-01-02")},
	} {
		m.now = func() time.Time { return began.Add(test.after) }
		_, err := m.Renew(t.Context())
		wantError(t, err, test.kind, test.message, "end")
		if errors.Is(err, ErrRunning) != test.running {
			t.Errorf("after %s: %v, want it taken for running: %v", test.after, err, test.running)
		}
	}
	unlock()
	m.now = time.Now
	if _, err := m.Enroll(t.Context()); err != nil {
		t.Error(err)
	}
}

// A child that was just forked shares the lock's file with its parent.
func TestUnlockWhileAChildHasTheFile(t *testing.T) {
	dir := t.TempDir()
	file, err := os.OpenFile(lockPath(dir), os.O_RDWR|os.O_CREATE, 0o600)
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
	unlock, err := lock(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

// An image must not be sealed, nor a machine changed by an installation, while a run goes on.
func TestInstallAndSealTakeTheLock(t *testing.T) {
	i := newImage(t, withInclude)
	unlock, err := lock(filepath.Join(i.root, StateDir), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	before := i.tree()
	_, err = i.Install(t.Context(), i.from)
	wantError(t, err, Temporary, ErrRunning.Error(), "wait")
	_, err = Seal(i.root)
	wantError(t, err, Temporary, ErrRunning.Error(), "wait")
	if !equal(i.tree(), before) {
		t.Error("one of them changed something")
	}
}

// Another user can't take the lock, nor can a link in its place lead elsewhere.
func TestLockIsRoots(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	elsewhere := filepath.Join(t.TempDir(), "file")
	if err := os.Symlink(elsewhere, lockPath(dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := lock(dir, time.Now()); err == nil {
		t.Error("it followed a symbolic link")
	}
	if err := os.Remove(lockPath(dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(lockPath(dir), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	unlock, err := lock(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if info, err := os.Stat(lockPath(dir)); err != nil || info.Mode().Perm() != 0o600 {
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
	for _, path := range []string{dir, lockPath(dir)} {
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
		if path == lockPath(dir) && strings.Contains(string(said[:n]), "locked") {
			t.Error("another user took the lock")
		}
		if unlock, err := lock(dir, time.Now()); err != nil {
			t.Errorf("with another user at %s: %v", path, err)
		} else {
			unlock()
		}
		stdin.Close()
		_ = stranger.Wait()
	}
}
