package replace

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// selinuxLabel is the extended attribute that holds a file's SELinux label.
const selinuxLabel = "security.selinux"

// copyLabel gives file the SELinux label of the file at path: sshd may not read
// one that is labeled otherwise. Other attributes stay behind, because some
// (security.ima) cover the old content.
func copyLabel(file *os.File, path string) error {
	want := make([]byte, 4<<10)
	n, _ := unix.Lgetxattr(path, selinuxLabel, want)
	if n <= 0 {
		return nil // no SELinux, or a file system without labels
	}
	want = want[:n]
	have := make([]byte, 4<<10)
	// A new file mostly has the right label from its folder.
	if n, err := unix.Fgetxattr(int(file.Fd()), selinuxLabel, have); err == nil && bytes.Equal(have[:n], want) {
		return nil
	}
	if err := unix.Fsetxattr(int(file.Fd()), selinuxLabel, want, 0); err != nil {
		return fmt.Errorf("set SELinux label: %w", err)
	}
	return nil
}
