package replace

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func setLabel(path, label string) error { return unix.Lsetxattr(path, selinuxLabel, []byte(label), 0) }

func readLabel(path string) string {
	label := make([]byte, 256)
	n, err := unix.Lgetxattr(path, selinuxLabel, label)
	if err != nil {
		return err.Error()
	}
	return string(label[:n])
}

// A file keeps its SELinux label, if the kernel lets a test set one.
func TestStageKeepsTheLabel(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("before"), 0o640); err != nil {
		t.Fatal(err)
	}
	const label = "system_u:object_r:etc_t:s0\x00"
	if err := setLabel(path, label); err != nil {
		if os.Geteuid() == 0 && os.Getenv("HALLMARK_TEST_STRICT") != "" {
			t.Fatalf("set a label: %v", err)
		}
		t.Skipf("set a label: %v (needs root)", err)
	}
	c := &Change{}
	if err := c.Stage(path, []byte("after"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(); err != nil {
		t.Fatal(err)
	}
	c.Keep()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if got := readLabel(path); got != label {
		t.Errorf("label %q, want %q", got, label)
	}
	if info := stat(t, path); info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v", info.Mode())
	}
}
