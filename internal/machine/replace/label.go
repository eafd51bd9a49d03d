package replace

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// selinuxLabel is the extended attribute that holds a file's SELinux label.
const selinuxLabel = "security.selinux"

// copyLabel gives file the SELinux label of the file at path: with another label, sshd may not
// be able to read it. Other attributes stay behind, because some (security.ima) cover the old
// content.
func copyLabel(file *os.File, path string) error {
	if err := copyAttribute(file, path, selinuxLabel); err != nil {
		return fmt.Errorf("set SELinux label: %w", err)
	}
	return nil
}

// copyAttribute copies an extended attribute in the namespace of Linux's security modules.
func copyAttribute(file *os.File, path, name string) error {
	want := make([]byte, 4<<10)
	n, _ := unix.Lgetxattr(path, name, want)
	if n <= 0 {
		return nil // SELinux is off, or the file system has no labels
	}
	want = want[:n]
	have := make([]byte, 4<<10)
	// A new file usually has the right label from its folder.
	if n, err := unix.Fgetxattr(int(file.Fd()), name, have); err == nil && bytes.Equal(have[:n], want) {
		return nil
	}
	err := unix.Fsetxattr(int(file.Fd()), name, want, 0)
	if errors.Is(err, unix.EPERM) && !enforceable() {
		return nil // only CAP_SYS_ADMIN may set labels while SELinux is off, and nothing reads them then
	}
	return err
}

// inheritLabel gives a new file the SELinux label of its folder. The kernel does that only if
// the policy has no other rule for the program that creates the file: Debian's policy labels
// what a service creates in /etc as runtime data. If the policy permits no other label, the
// file keeps it.
func inheritLabel(file *os.File, folder string) error {
	err := copyLabel(file, folder+"/.") // the folder, even behind a symbolic link
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}

// enforceable reports whether SELinux is on.
func enforceable() bool {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return err == nil
}
