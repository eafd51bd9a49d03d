//go:build linux

package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// People run the demo and the cluster, so neither may link package testing. Test code that
// a shared package needs goes into a package of its own.
func TestProgramsDoNotLinkTesting(t *testing.T) {
	for _, program := range []string{"demo", "cluster"} {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "../"+program).Output()
		if err != nil {
			t.Fatal(err)
		}
		linked := strings.Fields(string(out))
		if !slices.Contains(linked, "github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest") {
			t.Fatalf("%s does not link the embedded cluster: %s", program, out)
		}
		if slices.Contains(linked, "testing") {
			t.Errorf("%s links testing: go list -deps -json ./e2e/cmd/%s shows which package imports it", program, program)
		}
	}
}
