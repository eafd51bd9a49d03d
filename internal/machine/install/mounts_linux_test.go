package install

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// mount mounts a folder over itself, with flags. Only root can.
func mount(t *testing.T, folder string, flags uintptr) {
	t.Helper()
	if err := unix.Mount(folder, folder, "", unix.MS_BIND, ""); err != nil {
		if os.Geteuid() == 0 && os.Getenv("HALLMARK_TEST_STRICT") != "" {
			t.Fatalf("mount a file system: %v", err)
		}
		t.Skipf("mount a file system: %v (needs root)", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(folder, 0); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", folder, "", unix.MS_BIND|unix.MS_REMOUNT|flags, ""); err != nil {
		t.Fatal(err)
	}
}

// If the disk is the problem, the advice is not to check sshd's configuration.
func TestReadOnlyConfiguration(t *testing.T) {
	m := newInstalled(t, withInclude)
	if _, err := m.Install(t.Context(), m.from); err != nil {
		t.Fatal(err)
	}
	mount(t, filepath.Join(m.root, filepath.Dir(sshdconf.MainConfig)), unix.MS_RDONLY)
	before := m.everything()
	_, err := m.Install(t.Context(), m.from)
	machinetest.WantError(t, err, fault.Failed, "read-only", "nothing was changed; check that the disk is neither full nor read-only")
	_, err = m.Remove(t.Context(), RemoveOptions{})
	machinetest.WantError(t, err, fault.Failed, "read-only", "nothing was changed; check that the disk is neither full nor read-only")
	m.wantSame(m.everything(), before, "afterwards")
}

// A folder on which somebody has mounted a file system stays, and nothing else.
func TestRemoveKeepsMountPoints(t *testing.T) {
	m := newInstalled(t, withInclude)
	before := m.everything()
	if _, err := m.Install(t.Context(), m.from); err != nil {
		t.Fatal(err)
	}
	m.enroll()
	mount(t, filepath.Join(m.root, state.Dir), 0)
	if _, err := m.Remove(t.Context(), RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	m.wantSame(m.everything(), before, "afterwards")
}
