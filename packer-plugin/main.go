// Command packer-plugin-hallmark is a plugin for HashiCorp Packer. Its provisioner,
// "hallmark", bakes trust in a Teleport cluster's OpenSSH CA and the program
// that enrolls each instance at boot into a machine image.
package main

import (
	"fmt"
	"os"
	"regexp"

	"github.com/hashicorp/packer-plugin-sdk/plugin"
	"github.com/hashicorp/packer-plugin-sdk/version"

	"github.com/hallmark-ssh/hallmark/internal/buildinfo"
	"github.com/hallmark-ssh/hallmark/packer-plugin/programs"
	"github.com/hallmark-ssh/hallmark/packer-plugin/provisioner"
)

func main() {
	set := plugin.NewSet()
	set.RegisterProvisioner(plugin.DEFAULT_NAME, provisioner.New(programs.FS()))
	set.SetVersion(version.NewRawVersion(pluginVersion(buildinfo.Version())))
	if err := set.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// pluginVersion returns the version in one of the two forms that "packer plugins install"
// accepts, 1.2.3 and 1.2.3-dev. The version that the Go toolchain records for a commit has
// neither form; such a build is called 0.0.0-dev.
func pluginVersion(build string) string {
	form := regexp.MustCompile(`^v?(\d+\.\d+\.\d+(?:-dev)?)$`)
	if match := form.FindStringSubmatch(build); match != nil {
		return match[1]
	}
	return "0.0.0-dev"
}
