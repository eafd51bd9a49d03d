package deployment

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestTheClockHasNoMonotonicReading(t *testing.T) {
	if now := Now(); now != now.Round(0) || time.Since(now).Abs() > time.Minute {
		t.Errorf("%v", now)
	}
}

// Every part gets the same clock. A part that reads another clock could store a time with
// which it is wrong after the process was frozen.
func TestThereIsOneClock(t *testing.T) {
	allowed := []string{
		"../../signer/deployment/clock.go",
		"../../signer/teleport/client.go", // its default, without a monotonic reading
	}
	roots := []string{"../../../lambda", "../.."}
	// the machine's side, and what creates tests
	others := []string{"../../machine/", "test/"}
	found := make(map[string]bool)
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			other := slices.ContainsFunc(others, func(o string) bool { return strings.Contains(path, o) })
			if err != nil || d.IsDir() || other || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			if reads(t, path) {
				found[path] = true
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range allowed {
		if !found[path] {
			t.Errorf("%s reads no clock: this test looks in the wrong place", path)
		}
		delete(found, path)
	}
	for path := range found {
		t.Errorf("%s reads a clock of its own; have it passed in", path)
	}
}

// reads reports whether a file reads the system's clock.
func reads(t *testing.T, path string) (found bool) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			pkg, _ := s.X.(*ast.Ident)
			if pkg != nil && pkg.Name == "time" && slices.Contains([]string{"Now", "Since", "Until"}, s.Sel.Name) {
				found = true
			}
		}
		return true
	})
	return found
}
