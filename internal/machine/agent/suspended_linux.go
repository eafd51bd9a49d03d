package agent

import (
	"time"

	"golang.org/x/sys/unix"
)

// suspended returns how long this machine has slept since it booted, or 0 if the kernel
// doesn't say. Hibernation keeps /run, but to EC2 it is a stop and a start.
func suspended() time.Duration {
	var boot, awake unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil || unix.ClockGettime(unix.CLOCK_MONOTONIC, &awake) != nil {
		return 0
	}
	return time.Duration(boot.Nano() - awake.Nano())
}
