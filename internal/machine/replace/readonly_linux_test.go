package replace

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// sshd's main file may be a link to a file on a read-only file system, which a Change leaves
// alone.
func TestReadOnlyFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		if os.Geteuid() == 0 && os.Getenv("HALLMARK_TEST_STRICT") != "" {
			t.Fatalf("mount a file system: %v", err)
		}
		t.Skipf("mount a file system: %v (needs root)", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "sshd_config")
	if err := os.WriteFile(path, []byte("Port 22\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	c := &Change{}
	if err := errors.Join(c.Stage(path, []byte("Port 22\n"), 0o600), c.StageRemoval(filepath.Join(dir, "missing")), c.Commit(), c.Close(), RemoveLeftovers(path)); err != nil {
		t.Errorf("nothing changes, but: %v", err)
	}
	if err := c.Stage(path, nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("a change: %v", err)
	}
}
