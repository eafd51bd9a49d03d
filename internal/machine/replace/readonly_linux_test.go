package replace

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
)

// sshd's main file may be a link to a file on a read-only file system, which a Change leaves
// alone.
func TestReadOnlyFileSystem(t *testing.T) {
	dir := t.TempDir()
	machinetest.MountTmpfs(t, dir, "size=64k")
	path := filepath.Join(dir, "sshd_config")
	if err := os.WriteFile(path, []byte("Port 22\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	machinetest.MakeReadOnly(t, dir)
	c := &Change{}
	if err := errors.Join(c.Stage(path, []byte("Port 22\n"), 0o600), c.StageRemoval(filepath.Join(dir, "missing")), c.Commit(), c.Close(), RemoveLeftovers(path)); err != nil {
		t.Errorf("nothing changes, but: %v", err)
	}
	if err := c.Stage(path, nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("a change: %v", err)
	}
}
