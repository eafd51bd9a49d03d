package golden

import (
	"os"
	"path/filepath"
	"testing"
)

type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Helper()               {}
func (r *recorder) Errorf(string, ...any) { r.failed = true }

func TestCompare(t *testing.T) {
	path := filepath.Join(t.TempDir(), "screen.golden")
	compare := func(got string, update bool) bool {
		r := recorder{TB: t}
		Compare(&r, path, []byte(got), update)
		return !r.failed
	}
	if !compare("one\n", true) {
		t.Error("the file differs from what was just written")
	}
	if !compare("one\n", false) || compare("two\n", false) {
		t.Error("equal text failed, or different text passed")
	}
	if content, err := os.ReadFile(path); err != nil || string(content) != "one\n" {
		t.Errorf("error %v; a comparison without update left %q", err, content)
	}
}
