//go:build linux

package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"golang.org/x/sys/unix"
)

// If the disk fills up at any byte that an enrollment writes, the machine stays as it was.
func TestEnrollOnFullDisk(t *testing.T) {
	const size = 256 << 10
	for _, free := range []int{0, 4 << 10, 8 << 10, 12 << 10} {
		t.Run(fmt.Sprintf("%d bytes free", free), func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			if _, err := m.Enroll(t.Context()); err != nil {
				t.Fatal(err)
			}
			m.moveToSmallDisk(size)
			before := m.files()
			m.fill(free)
			m.now = func() time.Time { return time.Now().Add(4 * 24 * time.Hour) }
			m.lifetime = 14 * 24 * time.Hour
			_, err := m.Enroll(t.Context())
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("error %v, want a full disk", err)
			}
			machinetest.WantError(t, err, fault.Failed, "no space left on device", "disk")
			if after := m.files(); after != before {
				t.Errorf("files differ:\n%s\nwant\n%s", after, before)
			}
			m.sshd.AcceptsLogins()
			if err := os.Remove(filepath.Join(m.dir, "filler")); err != nil {
				t.Fatal(err)
			}
			if _, err := m.Enroll(t.Context()); err != nil {
				t.Errorf("once there is space again: %v", err)
			}
		})
	}
}

// moveToSmallDisk puts a file system of the given size under the machine's folder.
func (m *machine) moveToSmallDisk(size int) {
	m.t.Helper()
	files := map[string][]byte{}
	for _, pattern := range []string{"*", "*/*"} {
		paths, err := filepath.Glob(filepath.Join(m.dir, pattern))
		if err != nil {
			m.t.Fatal(err)
		}
		for _, path := range paths {
			if data, err := os.ReadFile(path); err == nil {
				files[path] = data
			}
		}
	}
	machinetest.MountTmpfs(m.t, m.dir, fmt.Sprintf("size=%d", size))
	for path, data := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			m.t.Fatal(err)
		}
		mode := os.FileMode(0o600)
		if strings.HasSuffix(path, ".pub") {
			mode = 0o644
		}
		if err := os.WriteFile(path, data, mode); err != nil {
			m.t.Fatal(err)
		}
	}
}

// fill leaves some bytes of the file system free.
func (m *machine) fill(free int) {
	m.t.Helper()
	var stat unix.Statfs_t
	if err := unix.Statfs(m.dir, &stat); err != nil {
		m.t.Fatal(err)
	}
	size := int(stat.Bavail)*int(stat.Bsize) - free
	if err := os.WriteFile(filepath.Join(m.dir, "filler"), make([]byte, size), 0o600); err != nil {
		m.t.Fatal(err)
	}
}
