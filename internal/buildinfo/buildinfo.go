// Package buildinfo tells which version of Hallmark a program is.
package buildinfo

import "runtime/debug"

// version is set by the linker for a release: -ldflags "-X …/internal/buildinfo.version=1.2.3".
var version string

// Version returns the release's version, or what the Go toolchain recorded of
// the module and its commit.
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}
