package sshd

import (
	"time"

	"golang.org/x/sys/unix"
)

// sinceBoot returns how long ago the machine booted, or 0 if the kernel does not say. It needs
// no /proc.
func sinceBoot() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
