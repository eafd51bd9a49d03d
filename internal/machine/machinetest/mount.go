//go:build linux

package machinetest

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// MountTmpfs mounts an empty file system over a folder until the test ends. The options are
// those of tmpfs(5), such as size=64k. Only root can; others skip the test.
func MountTmpfs(t testing.TB, folder, options string) {
	t.Helper()
	mount(t, "tmpfs", folder, "tmpfs", 0, options)
}

// BindMount mounts a folder over itself until the test ends, like MountTmpfs.
func BindMount(t testing.TB, folder string) {
	t.Helper()
	mount(t, folder, folder, "", unix.MS_BIND, "")
}

// MakeReadOnly makes a file system that is mounted on a folder read-only.
func MakeReadOnly(t testing.TB, folder string) {
	t.Helper()
	if err := unix.Mount("", folder, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatalf("make %s read-only: %v", folder, err)
	}
}

func mount(t testing.TB, source, folder, kind string, flags uintptr, options string) {
	t.Helper()
	if err := unix.Mount(source, folder, kind, flags, options); err != nil {
		if os.Geteuid() == 0 && os.Getenv("HALLMARK_TEST_STRICT") != "" {
			t.Fatalf("mount a file system on %s: %v", folder, err)
		}
		t.Skipf("mount a file system on %s: %v (needs root)", folder, err)
	}
	t.Cleanup(func() {
		// A session of sshd may still end in the folder.
		if err := unix.Unmount(folder, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", folder, err)
		}
	})
}
