package clitest

import (
	"bytes"
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/hallmark-ssh/hallmark/internal/cli"
)

// Commands holds arguments of each command, by its path without the program's name, with
// which nothing is wrong on the command line. Without any, not even an empty list, the command
// cannot be tried here.
type Commands map[string][]string

// Mistakes makes every mistake that a command line can have in every command and flag of a
// program: values of the wrong type, none, files that are not there or hold something else,
// unknown flags and surplus arguments. It fails if a message breaks the rules of Plain, or if
// it does not name what is wrong. The program runs in a new folder with these files, by their
// names.
func Mistakes(t *testing.T, program func() *cobra.Command, good Commands, files map[string]string) {
	t.Helper()
	t.Chdir(t.TempDir())
	for name, content := range files {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, []byte(content), 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	wrong := wrongFiles(t)
	each(program(), func(cmd *cobra.Command) {
		path := strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
		args, ok := good[path]
		if !ok {
			t.Errorf("no good arguments of %s: add them", path)
		}
		if args == nil {
			return
		}
		words := append(strings.Fields(path), args...)
		for n, arg := range args {
			if isFile(arg) && (n == 0 || !strings.HasPrefix(args[n-1], "--")) {
				for _, file := range wrong {
					fails(t, program, slices.Concat(strings.Fields(path), args[:n], []string{file}, args[n+1:]), file)
				}
			}
		}
		fails(t, program, append(slices.Clone(words), "surplus"), "")
		fails(t, program, append(slices.Clone(words), "--no-such-flag"), "--no-such-flag")
		fails(t, program, append(slices.Clone(words), "--=x"), "--=x")
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			for _, value := range wrongValues(f, wrong) {
				fails(t, program, append(slices.Clone(words), "--"+f.Name+"="+value), "--"+f.Name, cmp.Or(fileOf(f, value), "--"+f.Name))
			}
			if f.NoOptDefVal == "" {
				fails(t, program, append(slices.Clone(words), "--"+f.Name), "--"+f.Name)
			}
		})
	})
}

// each calls a function with every command that does something.
func each(cmd *cobra.Command, visit func(*cobra.Command)) {
	if !cmd.HasSubCommands() && cmd.Name() != "help" && cmd.Name() != "completion" {
		visit(cmd)
	}
	for _, child := range cmd.Commands() {
		each(child, visit)
	}
}

// isFile reports whether an argument names one of the test's files.
func isFile(arg string) bool {
	_, err := os.Stat(arg)
	return err == nil
}

// wrongFiles are the names of files that are right for nothing.
func wrongFiles(t *testing.T) []string {
	t.Helper()
	for name, content := range map[string]string{
		"wrong-empty": "", "wrong-binary": "\x00\x01\x02\xff\xfe\n\x80", "wrong-text": "something else\n",
	} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir("wrong-folder", 0o700); err != nil {
		t.Fatal(err)
	}
	return []string{"wrong-empty", "wrong-binary", "wrong-text", "wrong-folder", "wrong-missing", filepath.Join("wrong-text", "x")}
}

// wrongValues returns values that a flag does not take.
func wrongValues(f *pflag.Flag, files []string) []string {
	switch f.Value.Type() {
	case "bool":
		return []string{"", "maybe", "2"}
	case "duration":
		return []string{"", "soon", "5", "1d", "-1s", "0s", "9999999999999h", "5e"}
	case "float64":
		return []string{"", "x", "1h", "-1", "0", "NaN", "Inf", "1e400"}
	case "stringSlice":
		return []string{"", "a\"b,c\"\""}
	}
	kind, _ := pflag.UnquoteUsage(f)
	switch kind {
	case "file", "folder":
		return append([]string{""}, files...)
	case "account", "region", "id", "table", "HOST:PORT", "time", "format", "setting", "function", "fingerprint":
		return []string{"", "no such thing", "\x1b[2J", strings.Repeat("x", 5000)}
	}
	return []string{""}
}

// fileOf returns the value of a flag that names a file, which the message must name.
func fileOf(f *pflag.Flag, value string) string {
	if kind, _ := pflag.UnquoteUsage(f); kind == "file" || kind == "folder" {
		return value
	}
	return ""
}

// fails runs a command line and checks that it fails with a plain message that contains one
// of these.
func fails(t *testing.T, program func() *cobra.Command, args []string, what ...string) {
	t.Helper()
	var out, errs bytes.Buffer
	root := program()
	code := cli.Run(t.Context(), root, args, strings.NewReader(""), &out, &errs)
	line := strings.Join(args, " ")
	if code == cli.OK {
		t.Errorf("%.200q succeeds", line)
		return
	}
	if !slices.ContainsFunc(what, func(w string) bool { return strings.Contains(errs.String(), w) }) {
		t.Errorf("%.200q: the message names none of %.200q:\n%.2000s", line, what, &errs)
	}
	Plain(t, root.Name(), line, errs.String())
}

var (
	// regexpRaw finds what is left of a library's or Go's own errors.
	regexpRaw = regexp.MustCompile(`strconv|parse error|invalid syntax|0001-01-01|%!|context deadline|unmarshal|invalid character|illegal base64|asn1:|x509: malformed|` +
		`StatusCode|mapstructure|unconvertible|\[\]string|\[\]interface|cty\.|RequestID|operation error|api error|goroutine|runtime error|<nil>|nil pointer|SDK \d|level=|bad flag syntax|stringSlice|float64|pflag|cobra|(^|[^-./a-z])(yaml|json): |github\.com|rpc error`)
	regexpExcerpt = regexp.MustCompile(`^  \d+:\d+ \| `)
)

// Plain checks what a program writes to standard error when it fails: lines of our own form, at
// least one error, no line twice, at most one hint, none of a library's words, and nothing that
// could change a terminal.
func Plain(t *testing.T, program, doing, text string) {
	t.Helper()
	complain := func(what string) { t.Errorf("%.200q: %s:\n%.2000s", doing, what, text) }
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	seen, failures, hints := make(map[string]bool), 0, 0
	for _, line := range lines {
		switch {
		case strings.HasPrefix(line, program+": error: "):
			failures++
		case strings.HasPrefix(line, "hint: "):
			hints++
		case !strings.HasPrefix(line, program+": ") && !regexpExcerpt.MatchString(line):
			complain("a line of another form")
		}
		if seen[line] && !regexpExcerpt.MatchString(line) {
			complain("a line appears twice")
		}
		seen[line] = true
		const longest = 1000
		if len(line) > longest {
			complain("a line is too long")
		}
	}
	if failures == 0 || hints > 1 {
		complain("want an error, and at most one hint")
	}
	Readable(t, doing, text)
}

// Readable checks a message of any form: it has none of a library's words, and nothing that
// could change a terminal.
func Readable(t *testing.T, doing, text string) {
	t.Helper()
	if raw := regexpRaw.FindString(text); raw != "" {
		t.Errorf("%.200q: it says %s:\n%.2000s", doing, raw, text)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' && r != '\n' || r == 0x7f || r == 0xfffd }) {
		t.Errorf("%.200q: it has a control character:\n%.2000q", doing, text)
	}
}
