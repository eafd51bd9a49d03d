// Package cli is what the command lines of hallmark and hallmark-signer share.
//
// # Rules of the user interface
//
// Standard output carries only what was asked for, so that it can be piped. Everything
// else goes to standard error, one line each, in the form "PROGRAM: …", lower case and
// without a full stop. An error says what failed and where; a line of its own that starts
// with "hint:" says what to do. A file with several errors gives a line for each, and below
// it the line of the file. No prompt, no progress bar: the reader is often a log. Color is
// for screens such as status's, on a terminal only.
//
// Help that was asked for goes to standard output and is a success. Help after a mistake
// goes to standard error.
//
// A flag has one long name, with one dash or two: -timeout 5s and --timeout=5s are the
// same. The only short flag is -h. Flags may stand before or after other arguments.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"syscall"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/buildinfo"
)

// Exit codes that mean the same in both programs, part of their interface.
const (
	OK      = 0
	Failed  = 1 // it failed; the message says why
	Usage   = 2 // the command line is wrong
	Refused = 4 // the signer or its policy refuses; trying again will not help
)

// Error is an error that chooses the program's exit code.
type Error struct {
	Err  error
	Code int
	Hint string // what to do, if that is known
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Usagef returns the error of a wrong command line.
func Usagef(cmd *cobra.Command, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	if cmd.HasParent() {
		err = fmt.Errorf("%s: %w", name(cmd), err)
	}
	return &Error{Err: err, Code: Usage, Hint: fmt.Sprintf("see '%s --help'", cmd.CommandPath())}
}

// name returns a command's name without the program's.
func name(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
}

// New returns a program with these commands, and with help, version and completion. The
// summary is one line.
func New(program, summary string, commands ...*cobra.Command) *cobra.Command {
	root := group(program, summary, commands)
	root.Version = buildinfo.Version()
	root.Flags().Bool("version", false, "print the version") // cobra's own flag would have a short form
	root.SilenceErrors, root.SilenceUsage = true, true       // Run reports all errors in one form
	root.SetFlagErrorFunc(flagError)
	root.PersistentPreRunE = refuseEmpty
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { printHelp(cmd.OutOrStdout(), cmd) })
	root.SetHelpCommand(helpCommand())
	root.AddCommand(versionCommand(), completionCommand())
	defineHelp(root)
	return root
}

// Group returns a command that only contains other commands.
func Group(use, summary string, commands ...*cobra.Command) *cobra.Command {
	return group(use, summary, commands)
}

func group(use, summary string, commands []*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: summary, Args: cobra.ArbitraryArgs, SuggestionsMinimumDistance: 2,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			if !cmd.HasParent() {
				printHelp(cmd.ErrOrStderr(), cmd)
			}
			return Usagef(cmd, "no command given")
		},
	}
	cmd.AddCommand(commands...)
	return cmd
}

func unknownCommand(parent *cobra.Command, typed string) error {
	full := strings.TrimPrefix(parent.CommandPath()+" "+typed, parent.Root().Name()+" ")
	e := &Error{Err: fmt.Errorf("unknown command %q", full), Code: Usage, Hint: fmt.Sprintf("see '%s --help'", parent.CommandPath())}
	if similar := parent.SuggestionsFor(typed); len(similar) > 0 {
		e.Hint = fmt.Sprintf("did you mean '%s %s'?", parent.CommandPath(), similar[0])
	}
	return e
}

// NoArgs refuses arguments that are not flags. It is a cobra.PositionalArgs.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return Usagef(cmd, "unexpected argument %.100q", args[0])
	}
	return nil
}

// OneFile requires one argument, the name of a file. It is a cobra.PositionalArgs.
func OneFile(cmd *cobra.Command, args []string) error {
	if len(args) != 1 || args[0] == "" {
		return Usagef(cmd, "want one file, or - for standard input")
	}
	return nil
}

// Run runs a program with the arguments after its name, and returns its exit code.
func Run(ctx context.Context, root *cobra.Command, args []string, in io.Reader, out, errs io.Writer) int {
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errs)
	root.SetArgs(twoDashes(root, args))
	err := root.ExecuteContext(ctx)
	if err == nil {
		return OK
	}
	for _, line := range errorLines(err) {
		fmt.Fprintf(errs, "%s: error: %s\n", root.Name(), visible(line))
	}
	code, hint := Failed, ""
	if e, ok := errors.AsType[*Error](err); ok {
		code, hint = e.Code, e.Hint
	}
	if hint = cmp.Or(hint, fileHint(err)); hint != "" {
		fmt.Fprintf(errs, "hint: %s\n", visible(hint))
	}
	return code
}

// fileHint says what to do about a file that cannot be read or written.
func fileHint(err error) string {
	if _, ok := errors.AsType[*fs.PathError](err); !ok {
		return ""
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "check the name, and the folder that you run this in"
	case errors.Is(err, fs.ErrPermission):
		return "run it as a user who may read the file, or with sudo"
	case errors.Is(err, syscall.EISDIR):
		return "name a file, not a folder"
	case errors.Is(err, syscall.ENOTDIR):
		return "name a folder"
	}
	return ""
}

// several is an error that lists several problems, as those of a file: for each a line, and
// below it an excerpt.
type several interface {
	error
	Problems() []string
}

// errorLines returns what to print of an error. Each problem of a file stands for itself,
// with what wraps them all, such as the file's name, in front.
func errorLines(err error) []string {
	list, ok := errors.AsType[several](err)
	if !ok {
		return []string{OneLine(err)}
	}
	front, ok := strings.CutSuffix(err.Error(), list.Error())
	if !ok {
		return []string{OneLine(err)}
	}
	var lines []string
	for _, problem := range list.Problems() {
		lines = append(lines, front+problem)
	}
	return lines
}

// Note prints a line about the program's actions to standard error.
func Note(cmd *cobra.Command, format string, args ...any) {
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", cmd.Root().Name(), visible(fmt.Sprintf(format, args...)))
}

// visible replaces characters that could change a terminal. A message may repeat what somebody
// else wrote, such as a key of a file or an answer of a service.
func visible(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return '·'
	}, text)
}

// OneLine returns an error's text as one line. Errors from YAML or CEL have several.
func OneLine(err error) string {
	lines := strings.Split(err.Error(), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, " ")
}
