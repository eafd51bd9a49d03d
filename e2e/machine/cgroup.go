//go:build linux

package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// groupPrefix marks our control groups. They are the only thing that the kernel does not
// remove by itself.
const groupPrefix = "hallmark-fleet-"

func newGroup() string { return groupPrefix + uuid.NewString() }

// groupParents returns this process's place in each hierarchy in which systemd
// keeps its units: control groups version 2, and the one that systemd made
// for itself where version 1 is used beside it.
func groupParents() ([]string, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	var parents []string
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			return nil, fmt.Errorf("/proc/self/cgroup: line %q", line)
		}
		switch fields[1] {
		case "name=systemd":
			parents = append(parents, filepath.Join("/sys/fs/cgroup/systemd", fields[2]))
		case "":
			parents = append(parents, filepath.Join(unifiedRoot(), fields[2]))
		}
	}
	return parents, nil
}

func unifiedRoot() string {
	var s unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &s); err == nil && s.Type == unix.CGROUP2_SUPER_MAGIC {
		return "/sys/fs/cgroup"
	}
	return "/sys/fs/cgroup/unified"
}

// makeGroups creates control groups for a machine. Without them, one machine's systemd would
// take another machine's services for its own. It returns the files that a process writes
// its id to in order to join.
func makeGroups(group, machine string) ([]string, error) {
	parents, err := groupParents()
	if err != nil {
		return nil, err
	}
	var procs []string
	for _, parent := range parents {
		dir := filepath.Join(parent, group, machine)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		procs = append(procs, filepath.Join(dir, "cgroup.procs"))
	}
	return procs, nil
}

// removeGroups removes our empty control groups, including those of crashed runs. The kernel
// keeps a group that still has a process.
func removeGroups() {
	parents, err := groupParents()
	if err != nil {
		return
	}
	for _, parent := range parents {
		groups, _ := filepath.Glob(filepath.Join(parent, groupPrefix+"*"))
		for _, group := range groups {
			removeTree(group)
		}
	}
}

// removeTree removes control groups from the leaves up.
func removeTree(root string) {
	var dirs []string
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for _, dir := range slices.Backward(dirs) {
		if err := syscall.Rmdir(dir); errors.Is(err, syscall.EBUSY) {
			return
		}
	}
}
