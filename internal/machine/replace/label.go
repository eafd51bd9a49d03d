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

// copyLabel gives file the SELinux label of the file at path: sshd may not read
// one that is labeled otherwise. Other attributes stay behind, because some
// (security.ima) cover the old content.
func copyLabel(file *os.File, path string) error {
	if err := copyAttribute(file, path, selinuxLabel); err != nil {
		return fmt.Errorf("set SELinux label: %w", err)
	}
	return nil
}

// copyAttribute copies an extended attribute in the name space of Linux's security modules.
func copyAttribute(file *os.File, path, name string) error {
	want := make([]byte, 4<<10)
	n, _ := unix.Lgetxattr(path, name, want)
	if n <= 0 {
		return nil // no SELinux, or a file system without labels
	}
	want = want[:n]
	have := make([]byte, 4<<10)
	// A new file mostly has the right label from its folder.
	if n, err := unix.Fgetxattr(int(file.Fd()), name, have); err == nil && bytes.Equal(have[:n], want) {
		return nil
	}
	err := unix.Fsetxattr(int(file.Fd()), name, want, 0)
	if errors.Is(err, unix.EPERM) && !enforceable() {
		return nil // only CAP_SYS_ADMIN may set labels while SELinux is off, and nothing reads them
	}
	return err
}

// inheritLabel gives a new file the SELinux label of its folder. The kernel does that only if
// the policy has no other rule for the program that creates the file: Debian's labels what a
// service creates in /etc as runtime data. If the policy permits no other label, that one
// stays.
func inheritLabel(file *os.File, folder string) error {
	err := copyLabel(file, folder+"/.") // the folder, also behind a symbolic link
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}

// enforceable reports whether the kernel runs SELinux.
func enforceable() bool {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return err == nil
}
