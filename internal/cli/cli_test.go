package cli

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// program has a command that fails with an error, and accepts a flag with a value.
func program(err error) *cobra.Command {
	leaf := &cobra.Command{Use: "leaf FILE", Short: "do a thing", Args: OneFile, RunE: func(*cobra.Command, []string) error { return err }}
	leaf.Flags().String("name", "", "the `name`")
	leaf.Flags().Bool("quick", false, "hurry")
	return New("tree", "grow", Group("branch", "branch off", leaf))
}

func TestTwoDashes(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"", ""},
		{"branch leaf -name x f", "branch leaf --name x f"},
		{"branch leaf -name=-x f", "branch leaf --name=-x f"},
		{"branch leaf -name -quick -quick f", "branch leaf --name -quick --quick f"},
		{"branch leaf f -quick", "branch leaf f --quick"},
		{"branch leaf -quick -name", "branch leaf --quick --name"},
		{"branch leaf -h", "branch leaf -h"},
		{"-help", "--help"},
		{"branch leaf - -quick", "branch leaf - --quick"},
		{"branch leaf -- -name", "branch leaf -- -name"},
		{"branch leaf -unknown", "branch leaf --unknown"},
	} {
		if got := twoDashes(program(nil), strings.Fields(test.args)); !slices.Equal(got, strings.Fields(test.want)) {
			t.Errorf("%q became %q, want %q", test.args, got, test.want)
		}
	}
}

type twoProblems struct{}

func (twoProblems) Error() string      { return "line 1: no; line 2: no" }
func (twoProblems) Problems() []string { return []string{"line 1: no\n  1:1 | x", "line 2: no"} }

func TestRun(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		args string
		code int
		errs string
	}{
		"done":             {nil, "branch leaf f", OK, ""},
		"an error":         {errors.New("broken:\n  twice"), "branch leaf f", Failed, "tree: error: broken: twice\n"},
		"a terminal's":     {errors.New("no key \x1b]0;x\x07\u202e\u009b2J"), "branch leaf f", Failed, "tree: error: no key ·]0;x···2J\n"},
		"a code":           {&Error{Err: errors.New("no"), Code: Refused}, "branch leaf f", Refused, "tree: error: no\n"},
		"a hint":           {&Error{Err: errors.New("no"), Code: 75, Hint: "wait"}, "branch leaf f", 75, "tree: error: no\nhint: wait\n"},
		"errors of a file": {fmt.Errorf("a.yaml: %w", twoProblems{}), "branch leaf f", Failed, "tree: error: a.yaml: line 1: no\n  1:1 | x\ntree: error: a.yaml: line 2: no\n"},
		"no file":          {nil, "branch leaf", Usage, "tree: error: branch leaf: want one file, or - for standard input\nhint: see 'tree branch leaf --help'\n"},
		"an unknown shell": {nil, "completion", Usage, "tree: error: completion: want one shell: bash, zsh, fish or powershell\nhint: see 'tree completion --help'\n"},
		"help of nothing":  {nil, "help branch twig", Usage, "tree: error: unknown command \"branch twig\"\nhint: see 'tree branch --help'\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			if code := Run(t.Context(), program(test.err), strings.Fields(test.args), strings.NewReader(""), &out, &errs); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			if errs.String() != test.errs || out.Len() > 0 {
				t.Errorf("standard error %q, want %q; standard output %q", &errs, test.errs, &out)
			}
		})
	}
}

// Help that the user asked for is a success, on standard output.
func TestHelp(t *testing.T) {
	const leaf = `usage: tree branch leaf FILE [flags]

do a thing

flags:
  -h, --help        show this help
      --name name   the name
      --quick       hurry
`
	const root = `usage: tree COMMAND [flags]

grow

commands:
  branch leaf  do a thing
  completion   print a shell's completion script
  version      print the version

flags:
  -h, --help      show this help
      --version   print the version
`
	for args, want := range map[string]string{"branch leaf -h": leaf, "help branch leaf": leaf, "help": root, "-help": root, "--help": root} {
		var out, errs bytes.Buffer
		if code := Run(t.Context(), program(nil), strings.Fields(args), strings.NewReader(""), &out, &errs); code != OK || errs.Len() > 0 {
			t.Errorf("%s: exit code %d, standard error %s", args, code, &errs)
		}
		if out.String() != want {
			t.Errorf("%s:\n%s\nwant\n%s", args, &out, want)
		}
	}
	var out, errs bytes.Buffer
	if code := Run(t.Context(), program(nil), nil, strings.NewReader(""), &out, &errs); code != Usage || out.Len() > 0 || !strings.HasPrefix(errs.String(), root) {
		t.Errorf("without a command: exit code %d, standard output %q, standard error\n%s", code, &out, &errs)
	}
}

// Every shell gets a script, without an error.
func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		var out, errs bytes.Buffer
		if code := Run(t.Context(), program(nil), []string{"completion", shell}, strings.NewReader(""), &out, &errs); code != OK || !strings.Contains(out.String(), "__complete") {
			t.Errorf("%s: exit code %d, %s", shell, code, &errs)
		}
	}
}
