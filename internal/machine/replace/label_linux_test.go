package replace

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

const testLabel = "system_u:object_r:etc_t:s0\x00"

// needLabels skips a test that may not set labels.
func needLabels(t *testing.T, path string) {
	t.Helper()
	if enforceable() {
		t.Skip("this kernel runs SELinux: its policy decides about labels")
	}
	if err := setLabel(path, testLabel); err != nil {
		if os.Getenv("HALLMARK_TEST_STRICT") != "" && os.Geteuid() == 0 {
			t.Fatalf("set a label: %v", err)
		}
		t.Skipf("set a label: %v (needs root)", err)
	}
}

func TestNewFileGetsItsFoldersLabel(t *testing.T) {
	dir := t.TempDir()
	needLabels(t, dir)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "direct"), filepath.Join(link, "by-link")} {
		if err := commitOne(path); err != nil {
			t.Fatal(err)
		}
		if got := readLabel(path); got != testLabel {
			t.Errorf("%s has label %q, want %q", path, got, testLabel)
		}
	}
}

// A disk may have labels although SELinux is off in the kernel. Then only CAP_SYS_ADMIN, which
// the unit does not have, may set labels. An attribute that no security module knows stands
// for the label, because the test's kernel may have SELinux.
func TestLabelsWithoutSELinux(t *testing.T) {
	dir := t.TempDir()
	needLabels(t, dir)
	const unknown = "security.hallmark-test"
	if err := unix.Lsetxattr(dir, unknown, []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(dir, "new"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		err := dropSysAdmin()
		if err == nil {
			err = copyAttribute(file, dir, unknown)
		}
		result <- err
	}()
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func commitOne(path string) error {
	c := &Change{}
	if err := c.Stage(path, []byte("content"), 0o644); err != nil {
		return err
	}
	if err := c.Commit(); err != nil {
		return err
	}
	c.Keep()
	return c.Close()
}

// dropSysAdmin removes CAP_SYS_ADMIN from this thread.
func dropSysAdmin() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	data[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
	return unix.Capset(&header, &data[0])
}
