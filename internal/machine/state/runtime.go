package state

import (
	"os"
	"path/filepath"
	"syscall"
)

// runtimeDir holds findings that are valid until the next boot.
const runtimeDir = "/run/hallmark"

// RuntimeDir returns runtimeDir if its content does not survive a boot, otherwise "": a /run
// on the disk would become part of an image.
func RuntimeDir() string {
	run, err := os.Stat(filepath.Dir(runtimeDir))
	if err != nil {
		return ""
	}
	root, err := os.Stat("/")
	if err != nil {
		return ""
	}
	of, ok := run.Sys().(*syscall.Stat_t)
	disk, ok2 := root.Sys().(*syscall.Stat_t)
	if !ok || !ok2 || of.Dev == disk.Dev {
		return ""
	}
	return runtimeDir
}
