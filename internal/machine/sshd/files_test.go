package sshd

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Files tells a missing file from one that systemd hides from this process.
func TestFiles(t *testing.T) {
	root := t.TempDir()
	for _, folder := range []string{"etc", "home", "srv/jane"} {
		if err := os.MkdirAll(filepath.Join(root, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/revoked"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(os.DevNull, filepath.Join(root, "etc/empty")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(root, "home"), 0); err != nil {
		t.Fatal(err)
	}
	files := (&Server{Root: root}).Files([]string{"/etc/revoked", "/etc/empty", "/etc/missing", "/srv/jane/.ssh/principals", "/home/jane/.ssh/principals"})
	if got, want := slices.Sorted(maps.Keys(files)), []string{"/etc/empty", "/etc/revoked", "/home/jane/.ssh/principals"}; !slices.Equal(got, want) {
		t.Errorf("files %q, want %q", got, want)
	}
	if string(files["/etc/revoked"]) != "x" || files["/etc/empty"] == nil || files["/home/jane/.ssh/principals"] != nil {
		t.Errorf("%q", files)
	}
}
