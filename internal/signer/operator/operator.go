// Package operator is hallmark-signer, the operator's command: it checks and explains
// policies, and changes what the ledger says of an instance.
package operator

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/buildinfo"
)

// Rules of its user interface, which are hallmark's too: standard output carries
// only what was asked for, so that it can be piped. Everything else goes to
// standard error, one line each, in the form "hallmark-signer: …", lower case and
// without a full stop. An error says what failed, where, and, on a line of its own
// that starts with "hint:", what to do. No color, no prompt, no progress bar.

// Exit codes, part of the command's interface.
const (
	exitOK      = 0
	exitFailed  = 1 // it did not work, or the policy is wrong; the message says why
	exitUsage   = 2 // the command line is wrong
	exitRefused = 4 // explain: the policy refuses this instance
)

// streams are the standard streams, passed in so that tests can run commands.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// subcommand is one of the command's actions. Its run function parses its own
// flags; usage is its help.
type subcommand struct {
	name    string
	summary string
	usage   string
	run     func(ctx context.Context, args []string, std streams) error
}

func subcommands() []subcommand {
	return []subcommand{
		{"policy check", "say whether a policy file is good", policyCheckUsage, runPolicyCheck},
		{"policy explain", "say what a policy makes of an instance", policyExplainUsage, runPolicyExplain},
		{"policy schema", "print the JSON schema of policy files, for editors", policySchemaUsage, runPolicySchema},
		{"permit-rekey", "let an instance come with other host keys, once", permitRekeyUsage, runPermitRekey},
		{"end", "off-board an instance for good", endUsage, runEnd},
		{"release", "free a name that an instance holds", releaseUsage, runRelease},
		{"version", "print the version", "usage: hallmark-signer version\n", runVersion},
	}
}

// failure is an error that chooses its exit code and may carry a hint.
type failure struct {
	err  error
	code int
	hint string
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func usagef(format string, args ...any) error {
	return &failure{err: fmt.Errorf(format, args...), code: exitUsage, hint: "see 'hallmark-signer help'"}
}

// Run runs hallmark-signer with the arguments after its name, and returns
// its exit code.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	err := dispatch(ctx, args, streams{stdin, stdout, stderr})
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "hallmark-signer: error: %s\n", oneLine(err))
	var f *failure
	if !errors.As(err, &f) {
		return exitFailed
	}
	if f.hint != "" {
		fmt.Fprintf(stderr, "hint: %s\n", f.hint)
	}
	return f.code
}

// oneLine keeps the rule for errors of YAML and CEL, which have several lines.
func oneLine(err error) string {
	lines := strings.Split(err.Error(), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, " ")
}

func dispatch(ctx context.Context, args []string, std streams) error {
	if len(args) == 0 {
		printUsage(std.err)
		return usagef("no command given")
	}
	if isHelp(args[0]) || args[0] == "help" {
		printUsage(std.out)
		return nil
	}
	name, rest := args[0], args[1:]
	if name == "policy" {
		switch {
		case len(rest) == 0:
			return usagef("policy: no action given, want check, explain or schema")
		case isHelp(rest[0]):
			printUsage(std.out)
			return nil
		}
		name, rest = name+" "+rest[0], rest[1:]
	}
	for _, c := range subcommands() {
		if c.name != name {
			continue
		}
		err := c.run(ctx, rest, std)
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(std.out, c.usage)
			return nil
		}
		return err
	}
	return usagef("unknown command %q", name)
}

func isHelp(arg string) bool { return arg == "-h" || arg == "-help" || arg == "--help" }

func printUsage(w io.Writer) {
	fmt.Fprint(w, "usage: hallmark-signer COMMAND [flags]\n\n")
	for _, c := range subcommands() {
		fmt.Fprintf(w, "  %-16s %s\n", c.name, c.summary)
	}
}

// parse parses flags that may stand before or after the other arguments, which it
// returns.
func parse(flags *flag.FlagSet, args []string) ([]string, error) {
	flags.SetOutput(io.Discard) // Run reports the error, in one line
	var others []string
	for {
		if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
			return nil, err
		} else if err != nil {
			return nil, usagef("%s: %w", flags.Name(), err)
		}
		if flags.NArg() == 0 {
			return others, nil
		}
		others, args = append(others, flags.Arg(0)), flags.Args()[1:]
	}
}

// parseNone parses flags of a command that takes no other arguments.
func parseNone(flags *flag.FlagSet, args []string) error {
	others, err := parse(flags, args)
	if err == nil && len(others) > 0 {
		err = usagef("%s takes no arguments: %q", flags.Name(), others[0])
	}
	return err
}

func runVersion(_ context.Context, args []string, std streams) error {
	if err := parseNone(flag.NewFlagSet("version", flag.ContinueOnError), args); err != nil {
		return err
	}
	_, err := fmt.Fprintln(std.out, buildinfo.Version())
	return err
}
