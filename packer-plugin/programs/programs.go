// Package programs carries the hallmark program for the machines that the Packer plugin bakes,
// one for each architecture in EC2.
package programs

import (
	"embed"
	"io/fs"
)

// The pattern matches this package's own files as well, so that it compiles on
// a clean checkout, before the programs are built.
//
//go:embed *
var files embed.FS

// FS returns the programs under the names that Name returns.
func FS() fs.FS { return files }

// Name returns the file name of the program for Linux on an architecture, by Go's name: amd64
// or arm64.
func Name(architecture string) string { return "hallmark-linux-" + architecture }
