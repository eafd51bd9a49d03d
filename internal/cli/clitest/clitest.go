// Package clitest tests command lines.
package clitest

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
)

// ReleasedFlags checks that flags of releases are still accepted in every form: with one dash
// or two, and with the value after a space or "=". Each line is a command, a flag and a value,
// such as "enroll -timeout 5m0s". A value may start with a dash. A flag without a value is set
// to true.
func ReleasedFlags(t *testing.T, program func() *cobra.Command, lines ...string) {
	t.Helper()
	for _, line := range lines {
		words := strings.Fields(line)
		n := 0
		for !strings.HasPrefix(words[n], "-") {
			n++
		}
		command, name := words[:n], strings.TrimPrefix(words[n], "-")
		forms, want := [][]string{{"-" + name}, {"--" + name}, {"-" + name + "=true"}}, "true"
		if len(words) > n+1 {
			want = words[n+1]
			forms = [][]string{{"-" + name, want}, {"--" + name, want}, {"-" + name + "=" + want}, {"--" + name + "=" + want}}
		}
		for _, form := range forms {
			if got := value(t, program(), command, name, form); got != want {
				t.Errorf("%s %s: the flag is %q, want %q", strings.Join(command, " "), strings.Join(form, " "), got, want)
			}
		}
	}
}

// value runs a command with flags, without its action, and returns the value of a flag.
func value(t *testing.T, root *cobra.Command, command []string, name string, flags []string) (got string) {
	t.Helper()
	cmd, _, err := root.Find(command)
	if err != nil {
		t.Fatal(err)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if f := cmd.Flags().Lookup(name); f != nil {
			got = f.Value.String()
		}
		return nil
	}
	cmd.Args = cobra.ArbitraryArgs
	var errs bytes.Buffer
	args := append(append([]string{}, command...), flags...)
	if code := cli.Run(t.Context(), root, args, strings.NewReader(""), new(bytes.Buffer), &errs); code != cli.OK {
		t.Errorf("%s: exit code %d: %s", strings.Join(args, " "), code, &errs)
	}
	return got
}
