// Package docs holds nothing but the documents, and a test of what they point at.
package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var (
	regexpLink = regexp.MustCompile(`\[([^\]]+)\]\(([^)\s]+)\)`)
	// A test, or a group of rows of a table, and perhaps one row.
	regexpTestName = regexp.MustCompile("(?s)^`?([A-Za-z][A-Za-z0-9]*)`?(?:/(.+))?$")
)

// Every relative link leads to a file, and to a heading if it names one, and one to a test's file names a test, or a
// function that makes a table's rows, and perhaps a row, that is there.
func TestLinks(t *testing.T) {
	documents, err := filepath.Glob("*.md")
	if err != nil || len(documents) == 0 {
		t.Fatalf("documents %v, error %v", documents, err)
	}
	tests := make(testFiles)
	for _, document := range append(documents, "../README.md", "../SECURITY.md", "../CONTRIBUTING.md") {
		t.Run(filepath.Base(document), func(t *testing.T) {
			for _, link := range links(t, document) {
				tests.check(t, document, link)
			}
		})
	}
}

// In the threat model each claim about a check names its test: a claim without one is
// a hope.
func TestEveryClaimHasATest(t *testing.T) {
	data, err := os.ReadFile("threat-model.md")
	if err != nil {
		t.Fatal(err)
	}
	_, checks, ok := strings.Cut(string(data), "\n## What each check stops\n")
	if !ok {
		t.Fatal("no section of checks")
	}
	checks, comparison, ok := strings.Cut(checks, "\n## What is left to you\n")
	if !ok {
		t.Fatal("no section of what is left")
	}
	_, comparison, ok = strings.Cut(comparison, "\n## What other systems do\n")
	if !ok {
		t.Fatal("no section of other systems")
	}
	claims := items(checks)
	for line := range strings.Lines(comparison) {
		if strings.HasPrefix(line, "| ") && !strings.HasPrefix(line, "| system") {
			claims = append(claims, line)
		}
	}
	if len(claims) < 40 {
		t.Errorf("only %d claims were found", len(claims))
	}
	for _, claim := range claims {
		if !strings.Contains(claim, "_test.go)") {
			t.Errorf("no test: %s", claim)
		}
	}
}

// items returns the entries of the lists in a section.
func items(section string) []string {
	var list []string
	inside := false
	for line := range strings.Lines(section) {
		switch {
		case strings.HasPrefix(line, "- "):
			list, inside = append(list, line), true
		case inside && strings.HasPrefix(line, "  "):
			list[len(list)-1] += line
		default:
			inside = false
		}
	}
	return list
}

type link struct{ text, target string }

func links(t *testing.T, document string) []link {
	t.Helper()
	data, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	var list []link
	for _, m := range regexpLink.FindAllStringSubmatch(string(data), -1) {
		list = append(list, link{text: strings.Join(strings.Fields(m[1]), " "), target: m[2]})
	}
	return list
}

// testFiles are the files that were read, by path.
type testFiles map[string]*testFile

type testFile struct {
	functions map[string]bool
	literals  map[string]bool // of strings
}

func (f testFiles) check(t *testing.T, document string, l link) {
	t.Helper()
	folder := filepath.Dir(document)
	u, err := url.Parse(l.target)
	if err != nil {
		t.Errorf("link %q: %v", l.target, err)
		return
	}
	if u.IsAbs() {
		return
	}
	path := filepath.Join(folder, filepath.FromSlash(u.Path))
	if u.Path == "" {
		path = document
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("[%s]: %v", l.text, err)
		return
	}
	if u.Fragment != "" && strings.HasSuffix(path, ".md") && !slices.Contains(anchors(t, path), u.Fragment) {
		t.Errorf("[%s]: %s has no heading %s", l.text, path, u.Fragment)
	}
	if !strings.HasSuffix(path, "_test.go") {
		return
	}
	name := regexpTestName.FindStringSubmatch(l.text)
	if name == nil {
		t.Errorf("[%s] names no test of %s", l.text, l.target)
		return
	}
	file := f.read(t, path)
	if !file.functions[name[1]] {
		t.Errorf("[%s]: %s has no function %s", l.text, l.target, name[1])
	}
	if row := name[2]; row != "" && !file.literals[row] {
		t.Errorf("[%s]: %s has no row %q", l.text, l.target, row)
	}
}

var (
	regexpHeading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	regexpOmitted = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors returns the headings of a document as GitHub links to them.
func anchors(t *testing.T, document string) []string {
	t.Helper()
	data, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, m := range regexpHeading.FindAllStringSubmatch(string(data), -1) {
		heading := regexpOmitted.ReplaceAllString(strings.ToLower(m[1]), "")
		list = append(list, strings.ReplaceAll(heading, " ", "-"))
	}
	return list
}

func (f testFiles) read(t *testing.T, path string) *testFile {
	t.Helper()
	if file, ok := f[path]; ok {
		return file
	}
	parsed, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := &testFile{functions: make(map[string]bool), literals: make(map[string]bool)}
	ast.Inspect(parsed, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			file.functions[n.Name.Name] = true
		case *ast.BasicLit:
			if text, err := strconv.Unquote(n.Value); n.Kind == token.STRING && err == nil {
				file.literals[text] = true
			}
		}
		return true
	})
	f[path] = file
	return file
}
