package e2e

import (
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A test behind a build tag runs only if the Makefile names its package. Two contract tests
// once ran nowhere because it did not.
func TestEveryTaggedTestHasAStep(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join("..", "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	steps := steps(string(makefile))
	tests := taggedTests(t, "..")
	if len(steps) < 10 || len(tests) < 50 {
		t.Fatalf("found %d steps and %d tests: this test looks in the wrong place", len(steps), len(tests))
	}
	for _, test := range tests {
		if !slices.ContainsFunc(steps, test.runsIn) {
			t.Errorf("no target of the Makefile runs %s in %s, which has the build tag %s", test.name, test.dir, test.tag)
		}
	}
}

// A step is a call of "go test" with a build tag.
type step struct {
	tag  string
	dirs []string
	run  *regexp.Regexp // nil for all tests
}

var (
	tagFlag = regexp.MustCompile(`\bgo test\b.*-tags (\S+)|\$\(GO_TEST\).*-tags (\S+)`)
	runFlag = regexp.MustCompile(`-run '?([^' ]+)`)
	folder  = regexp.MustCompile(`\./[a-z0-9/-]+`)
)

func steps(makefile string) []step {
	var all []step
	for line := range strings.Lines(makefile) {
		tag := tagFlag.FindStringSubmatch(line)
		if tag == nil {
			continue
		}
		s := step{tag: tag[1] + tag[2], dirs: folder.FindAllString(line, -1)}
		if run := runFlag.FindStringSubmatch(line); run != nil {
			s.run = regexp.MustCompile(strings.ReplaceAll(run[1], "$$", "$"))
		}
		all = append(all, s)
	}
	return all
}

type taggedTest struct{ name, dir, tag string }

func (test taggedTest) runsIn(s step) bool {
	return s.tag == test.tag && slices.Contains(s.dirs, test.dir) && (s.run == nil || s.run.MatchString(test.name))
}

// taggedTests finds the tests below root whose files need a tag that is not a system's.
func taggedTests(t *testing.T, root string) []taggedTest {
	t.Helper()
	var tests []taggedTest
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		tag := tagOf(file)
		if tag == "" {
			return nil
		}
		relative, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		for _, declaration := range file.Decls {
			if function, ok := declaration.(*ast.FuncDecl); ok && function.Recv == nil &&
				strings.HasPrefix(function.Name.Name, "Test") && function.Name.Name != "TestMain" {
				tests = append(tests, taggedTest{function.Name.Name, "./" + filepath.ToSlash(relative), tag})
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tests
}

// tagOf returns the tag of this project that the file needs, if there is one.
func tagOf(file *ast.File) string {
	tags := []string{"e2e", "teleport"}
	for _, group := range file.Comments {
		for _, comment := range group.List {
			expression, err := constraint.Parse(comment.Text)
			if err != nil {
				continue
			}
			for _, tag := range tags {
				without := expression.Eval(func(name string) bool { return !slices.Contains(tags, name) })
				with := expression.Eval(func(name string) bool { return name == tag || !slices.Contains(tags, name) })
				if with && !without {
					return tag
				}
			}
		}
	}
	return ""
}
