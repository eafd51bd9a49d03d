package main

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// People run Packer on macOS and Windows. What the plugin shares with the instance must build
// there. An import of the rest of the machine's side, which needs Linux, breaks that.
func TestPluginSharesOnlyPortablePackages(t *testing.T) {
	const machine = "github.com/hallmark-ssh/hallmark/internal/machine/"
	portable := []string{"cafile", "config", "sshdconf"}
	for _, system := range []string{"windows", "darwin"} {
		list := exec.CommandContext(t.Context(), "go", "list", "-deps", ".")
		list.Env = append(os.Environ(), "GOOS="+system, "CGO_ENABLED=0")
		out, err := list.Output()
		if err != nil {
			t.Fatalf("%s: %v", system, err)
		}
		found := 0
		for _, path := range strings.Fields(string(out)) {
			name, ok := strings.CutPrefix(path, machine)
			if !ok {
				continue
			}
			if found++; !slices.Contains(portable, name) {
				t.Errorf("%s: the plugin links %s, which is not portable", system, path)
			}
		}
		if found == 0 {
			t.Errorf("%s: the plugin links nothing of %s: this test looks in the wrong place", system, machine)
		}
	}
}
