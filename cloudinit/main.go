// Command hallmark enrolls the EC2 instance that it runs on into a Teleport
// cluster: its host keys get certificates, and its sshd trusts the cluster's
// OpenSSH CA.
//
// # Rules of the user interface
//
// Standard output carries only what was asked for, so that it can be piped.
// Everything else goes to standard error, one line each, in the form
// "hallmark: …", lower case and without a full stop. An error says what failed,
// where, and, on a line of its own that starts with "hint:", what to do. No
// color, no prompt, no progress bar: the reader is the journal.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// Exit codes, part of the command's interface: units and scripts read them.
const (
	exitOK        = 0
	exitFailed    = 1  // it did not work; the message says why
	exitUsage     = 2  // the command line is wrong
	exitConfig    = 3  // the configuration is missing or wrong
	exitRefused   = 4  // the signer refused this machine; trying again will not help
	exitTemporary = 75 // something did not answer; try again later (EX_TEMPFAIL of sysexits.h)
)

// streams are the standard streams, passed in so that tests can run commands.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// command is one subcommand. Its run function parses its own flags.
type command struct {
	name    string
	summary string
	run     func(ctx context.Context, args []string, std streams) error
}

func commands() []command {
	return []command{
		{"enroll", "enroll this machine, or renew its certificates if they are due", runEnroll},
		{"renew", "do that for a timer: after failures, wait before asking again", runRenew},
		{"status", "show what this machine is enrolled as", runStatus},
		{"install", "put hallmark into a machine or image", runInstall},
		{"seal", "remove host keys and state before an image is made", runSeal},
		{"identity", "work with instance identity documents", runIdentity},
		{"version", "print the version", runVersion},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], streams{os.Stdin, os.Stdout, os.Stderr})
	stop()
	os.Exit(code)
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
	return &failure{err: fmt.Errorf(format, args...), code: exitUsage, hint: "see 'hallmark help'"}
}

func run(ctx context.Context, args []string, std streams) int {
	err := dispatch(ctx, args, std)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	fmt.Fprintf(std.err, "hallmark: error: %v\n", err)
	var f *failure
	if !errors.As(err, &f) {
		return exitFailed
	}
	if f.hint != "" {
		fmt.Fprintf(std.err, "hint: %s\n", f.hint)
	}
	return f.code
}

func dispatch(ctx context.Context, args []string, std streams) error {
	if len(args) == 0 {
		printUsage(std.err)
		return usagef("no command given")
	}
	switch args[0] {
	case "help", "-h", "-help", "--help":
		printUsage(std.out)
		return nil
	}
	for _, c := range commands() {
		if c.name == args[0] {
			return c.run(ctx, args[1:], std)
		}
	}
	return usagef("unknown command %q", args[0])
}

func printUsage(w io.Writer) {
	fmt.Fprint(w, "usage: hallmark COMMAND [flags]\n\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-10s %s\n", c.name, c.summary)
	}
}
