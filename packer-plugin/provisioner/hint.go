package provisioner

import (
	"errors"
	"fmt"
	"strings"
)

// hinted adds a line that says what to do: for a cause that the error's text shows, or
// otherwise the usual one, which may be empty. The output of hallmark has its own hints.
func hinted(err error, usual string) error {
	if _, interrupted := errors.AsType[*interruptedError](err); interrupted || strings.Contains(err.Error(), "hint: ") {
		return err
	}
	hint := knownHint(err)
	if hint == "" {
		hint = usual
	}
	if hint == "" {
		return err
	}
	return fmt.Errorf("%w\nhint: %s", err, hint)
}

// knownHint returns what to do about failures that programs on any machine report.
func knownHint(err error) string {
	exit, exited := errors.AsType[*exitError](err)
	switch {
	case !exited:
	case exit.disconnected():
		return "start the build again with a new machine; if the connection breaks again, look for a reboot, a firewall or an idle timeout"
	case exit.status == killed:
		return "the machine may be out of memory; use a larger instance type"
	}
	text := err.Error()
	for _, known := range []struct {
		hint  string
		texts []string
	}{
		{"set execute_command to a command that gives sudo the password, as in Packer's shell provisioner", []string{
			"a password is required", "a terminal is required", "must have a tty", "no tty present",
		}},
		{"install sudo on the machine, connect as root, or set execute_command", []string{"sudo: not found", "sudo: command not found"}},
		{"allow the login user to use sudo, connect as root, or set execute_command", []string{"is not in the sudoers file", "not allowed to execute"}},
		{"make room on the machine, or set remote_folder to a folder on another disk", []string{"No space left on device", "Disk quota exceeded"}},
		{"set remote_folder to a folder on a disk that is not read-only", []string{"Read-only file system"}},
	} {
		for _, part := range known.texts {
			if strings.Contains(text, part) {
				return known.hint
			}
		}
	}
	return ""
}

// killed is the exit status of a shell whose command was killed by SIGKILL.
const killed = 128 + 9
