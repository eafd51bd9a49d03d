package main

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Everybody may write into /tmp, so hallmark, which runs as root, has nothing there: no file of
// its own code is made in the system's folder for temporary files.
func TestNothingInTmp(t *testing.T) {
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=Dir,GoFiles,Standard,Module", ".")
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	for decoder := json.NewDecoder(strings.NewReader(string(out))); decoder.More(); {
		var p struct {
			Dir      string
			GoFiles  []string
			Standard bool
			Module   struct{ Main bool }
		}
		if err := decoder.Decode(&p); err != nil {
			t.Fatal(err)
		}
		if p.Standard || !p.Module.Main {
			continue
		}
		for _, name := range p.GoFiles {
			files++
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, use := range temporary(file) {
				t.Errorf("%s: the folder for temporary files", set.Position(use.Pos()))
			}
		}
	}
	if files < 50 {
		t.Errorf("only %d files were read", files)
	}
}

func TestTemporary(t *testing.T) {
	for text, want := range map[string]int{
		`os.TempDir()`: 1, `os.CreateTemp("", "x")`: 1, `os.MkdirTemp("", "x")`: 1, `os.WriteFile("/tmp/x", nil, 0)`: 1, `os.Getenv("TMPDIR")`: 1,
		`os.MkdirTemp(dir, "x")`: 0, `os.CreateTemp("/etc/ssh", "x")`: 0, `os.ReadFile("/etc/tmpfiles.d/x")`: 0,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "", "package p\nvar _ = "+text, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(temporary(file)); got != want {
			t.Errorf("%s: %d uses, want %d", text, got, want)
		}
	}
}

var regexpTemporary = regexp.MustCompile(`^(/var)?/tmp(/|$)|^TMPDIR$`)

// temporary returns where a file uses the system's folder for temporary files.
func temporary(file *ast.File) (uses []ast.Node) {
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			if isTemporary(n) {
				uses = append(uses, n)
			}
		case *ast.BasicLit:
			if text, err := strconv.Unquote(n.Value); n.Kind == token.STRING && err == nil && regexpTemporary.MatchString(text) {
				uses = append(uses, n)
			}
		}
		return true
	})
	return uses
}

// isTemporary reports whether a call of package os names that folder, or uses it by default.
func isTemporary(call *ast.CallExpr) bool {
	function, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !slices.Contains([]string{"TempDir", "MkdirTemp", "CreateTemp"}, function.Sel.Name) {
		return false
	}
	if len(call.Args) == 0 {
		return true
	}
	first, ok := call.Args[0].(*ast.BasicLit)
	return ok && first.Value == `""`
}
