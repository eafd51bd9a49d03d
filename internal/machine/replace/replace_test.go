package replace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// folder returns every file of a folder with its mode and content.
func folder(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var s string
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		data, _ := os.ReadFile(filepath.Join(dir, entry.Name()))
		s += fmt.Sprintf("%s %s %q\n", info.Mode(), entry.Name(), data)
	}
	return s
}

// newFolder creates a folder with a file "old" of mode 0640 and a file "gone".
func newFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, mode := range map[string]fs.FileMode{"old": 0o640, "gone": 0o600} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("before"), mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func stageAll(t *testing.T, c *Change, dir string) {
	t.Helper()
	err := errors.Join(
		c.Stage(filepath.Join(dir, "old"), []byte("after"), 0o600),
		c.Stage(filepath.Join(dir, "new"), []byte("after"), 0o604),
		c.StageRemoval(filepath.Join(dir, "gone")),
	)
	if err != nil {
		t.Fatal(err)
	}
}

func TestChangeKept(t *testing.T) {
	dir := newFolder(t)
	c := &Change{}
	stageAll(t, c, dir)
	if err := c.Commit(); err != nil {
		t.Fatal(err)
	}
	c.Keep()
	lines := []string{"replaced " + filepath.Join(dir, "old"), "wrote " + filepath.Join(dir, "new"), "removed " + filepath.Join(dir, "gone")}
	if got := c.Lines(); !slices.Equal(got, lines) {
		t.Errorf("changes %q, want %q", got, lines)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	want := "-rw----r-- new \"after\"\n-rw-r----- old \"after\"\n"
	if got := folder(t, dir); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestChangeNotKept(t *testing.T) {
	for _, test := range []struct {
		name string
		act  func(*Change) error
	}{
		{"only staged", func(*Change) error { return nil }},
		{"committed", (*Change).Commit},
		{"rolled back", func(c *Change) error { return errors.Join(c.Commit(), c.Rollback()) }},
		{"rolled back twice", func(c *Change) error { return errors.Join(c.Commit(), c.Rollback(), c.Rollback()) }},
		{"closed twice", func(c *Change) error { return errors.Join(c.Commit(), c.Close()) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := newFolder(t)
			before := folder(t, dir)
			inode := stat(t, filepath.Join(dir, "old"))
			c := &Change{}
			stageAll(t, c, dir)
			if err := errors.Join(test.act(c), c.Close()); err != nil {
				t.Fatal(err)
			}
			if got := folder(t, dir); got != before {
				t.Errorf("got\n%swant\n%s", got, before)
			}
			if !os.SameFile(inode, stat(t, filepath.Join(dir, "old"))) {
				t.Error("the old file is another one now")
			}
		})
	}
}

func stat(t *testing.T, path string) fs.FileInfo {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// If one of several files cannot be replaced, none is.
func TestChangeFailsAsAWhole(t *testing.T) {
	dir := newFolder(t)
	c := &Change{}
	stageAll(t, c, dir)
	// Something takes the last file's place between staging and commit.
	if err := c.Stage(filepath.Join(dir, "taken"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "taken", "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(); err == nil {
		t.Fatal("no error")
	}
	if err := errors.Join(c.Close(), os.RemoveAll(filepath.Join(dir, "taken"))); err != nil {
		t.Fatal(err)
	}
	if got, want := folder(t, dir), folder(t, newFolder(t)); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// The caller chooses an order in which any part of the change is safe, and rolling back in the
// reverse order is safe, too.
func TestRollbackGoesBackward(t *testing.T) {
	dir := t.TempDir()
	var change Change
	names := []string{"first", "second", "third"}
	for _, name := range names {
		if err := change.Stage(filepath.Join(dir, name), []byte("new"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := change.Commit(); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	err := change.Rollback() // it names each file that it cannot remove, in order
	if err == nil {
		t.Fatal("no error")
	}
	first, second, third := strings.Index(err.Error(), "/first"), strings.Index(err.Error(), "/second"), strings.Index(err.Error(), "/third")
	if third < 0 || third > second || second > first {
		t.Errorf("put back in another order than last to first: %v", err)
	}
}

func TestChangeOfNothing(t *testing.T) {
	dir := newFolder(t)
	c := &Change{}
	err := errors.Join(c.Stage(filepath.Join(dir, "old"), []byte("before"), 0o600), c.StageRemoval(filepath.Join(dir, "none")))
	if err != nil || len(c.Lines()) > 0 {
		t.Errorf("changed %v, %v", c.Lines(), err)
	}
}

// Leftovers of a crash neither stop the next change nor survive it.
func TestChangeAfterACrash(t *testing.T) {
	dir := newFolder(t)
	crashed := &Change{}
	stageAll(t, crashed, dir)
	c := &Change{}
	stageAll(t, c, dir)
	if err := c.Commit(); err != nil {
		t.Fatal(err)
	}
	c.Keep()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	want := "-rw----r-- new \"after\"\n-rw-r----- old \"after\"\n"
	if got := folder(t, dir); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// A link in place of a file is replaced, not followed: its target belongs to somebody else.
func TestChangeDoesNotFollowLinks(t *testing.T) {
	dir := newFolder(t)
	target := filepath.Join(t.TempDir(), "target")
	if err := os.WriteFile(target, []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	before := folder(t, dir)
	c := &Change{}
	if err := errors.Join(c.Stage(link, []byte("ours"), 0o600), c.Commit()); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(target); string(data) != "theirs" {
		t.Errorf("the link's target holds %q", data)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if got := folder(t, dir); got != before {
		t.Errorf("got\n%swant\n%s", got, before)
	}
}

func TestRemoveLeftovers(t *testing.T) {
	dir := newFolder(t)
	before := folder(t, dir)
	crashed := &Change{}
	stageAll(t, crashed, dir)
	paths := []string{filepath.Join(dir, "old"), filepath.Join(dir, "new"), filepath.Join(dir, "gone"), filepath.Join(dir, "none")}
	if err := RemoveLeftovers(paths...); err != nil {
		t.Fatal(err)
	}
	if got := folder(t, dir); got != before {
		t.Errorf("got\n%swant\n%s", got, before)
	}
}
