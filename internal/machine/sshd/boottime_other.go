//go:build !linux

package sshd

import "time"

// sinceBoot returns 0: only developers run this on anything but Linux.
func sinceBoot() time.Duration { return 0 }
