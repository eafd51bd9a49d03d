package sshd

import "golang.org/x/sys/unix"

func setLabel(path, label string) error { return unix.Lsetxattr(path, selinuxLabel, []byte(label), 0) }

func readLabel(path string) string {
	label := make([]byte, 256)
	n, err := unix.Lgetxattr(path, selinuxLabel, label)
	if err != nil {
		return err.Error()
	}
	return string(label[:n])
}
