package sshd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A run in the first second after a boot must be able to tell that systemd does not answer
// from an sshd that refuses its configuration.
func TestShowUnitsWithoutAnAnswer(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\necho 'Failed to connect to bus: No such file or directory' >&2\nexit 1\n"
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	if _, err := showUnits(t.Context()); !errors.Is(err, ErrNoSystemd) || !strings.Contains(err.Error(), "Failed to connect to bus") {
		t.Errorf("showUnits: %v", err)
	}
}
