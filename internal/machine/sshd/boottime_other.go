//go:build !linux

package sshd

import "time"

// sinceBoot returns 0: only developers run this elsewhere than on Linux.
func sinceBoot() time.Duration { return 0 }
