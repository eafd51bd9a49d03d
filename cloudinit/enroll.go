package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/agent"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// gcPercent keeps the heap small. An enrollment allocates a few megabytes and ends: at
// Go's own 100 nothing of that would be collected before 4 MB, and reading the system's
// roots alone leaves more garbage than that.
const gcPercent = 25

func runEnroll(ctx context.Context, args []string, std streams) error {
	return enroll(ctx, args, std, "enroll", "enroll this machine now, or renew its certificates if they are due", (*agent.Enroller).Enroll)
}

func runRenew(ctx context.Context, args []string, std streams) error {
	err := enroll(ctx, args, std, "renew", "do what enroll does, for a timer: after failures it waits before it asks again", (*agent.Enroller).Renew)
	if errors.Is(err, state.ErrRunning) {
		fmt.Fprintf(std.err, "hallmark: %v; nothing to do\n", err)
		return nil
	}
	return err
}

func enroll(
	ctx context.Context, args []string, std streams, name, summary string,
	act func(*agent.Enroller, context.Context) (*agent.Outcome, error),
) error {
	flags := newFlags(name, summary, std)
	configFile := flags.String("config", config.File, "read the configuration from this `file`")
	timeout := flags.Duration("timeout", 2*time.Minute, "give up asking after this `time`")
	reload := flags.Bool("reload", false, "reload sshd for new certificates even if that puts pending changes of its configuration into effect")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	if *timeout <= 0 {
		return usagef("--timeout must be more than 0")
	}
	debug.SetGCPercent(gcPercent)
	if err := loadEnvironment(environmentFile); err != nil {
		return &failure{err: err, code: exitConfig, hint: "run it as root"}
	}
	c, err := loadConfig(*configFile)
	if err != nil {
		return err
	}
	log := func(format string, args ...any) { fmt.Fprintf(std.err, "hallmark: "+format+"\n", args...) }
	enroller, err := agent.NewEnroller(c, *timeout, log)
	if err != nil {
		return asFailure(err)
	}
	enroller.ActivatePending = *reload
	outcome, err := act(enroller, ctx)
	if err != nil {
		return asFailure(err)
	}
	reportOutcome(outcome, log)
	return nil
}

func reportOutcome(o *agent.Outcome, log func(string, ...any)) {
	s := o.State
	if o.Reason == "" {
		log("already enrolled as %s in %s, to be renewed %s", s.Node.Hostname, s.Node.Cluster, s.RenewAfter.Format(time.RFC3339))
	} else {
		log("%s", o.Reason)
		log("enrolled as %s in %s with %d certificates until %s", s.Node.Hostname, s.Node.Cluster, len(s.Certificates), s.End().Format(time.RFC3339))
	}
	for _, fingerprint := range o.Trusted {
		log("sshd now trusts the OpenSSH CA %s", fingerprint)
	}
	for _, fingerprint := range o.Retired {
		log("sshd no longer trusts the OpenSSH CA %s", fingerprint)
	}
	switch {
	case s.Waiting != nil:
		log("warning: %s; %s", s.Waiting, s.Waiting.Access(time.Now()))
	case !s.Presented:
		log("sshd does not run; it will present the certificates once it is started")
	case s.NotVerified != "" && o.Reloaded:
		log("sshd was reloaded, but hallmark cannot see whether it presents the certificates: %s", s.NotVerified)
	case s.NotVerified != "":
		log("hallmark cannot see whether sshd presents the certificates: %s", s.NotVerified)
	case o.Reloaded:
		log("sshd was reloaded and presents the certificates")
	case o.Reason != "":
		log("sshd presents the certificates, without a reload")
	}
}

func loadConfig(path string) (config.Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return config.Config{}, &failure{
			err: fmt.Errorf("read the configuration: %w", err), code: exitConfig,
			hint: "run 'hallmark install', or give --config",
		}
	}
	c, err := config.Parse(data)
	if err != nil {
		return config.Config{}, &failure{err: fmt.Errorf("%s: %w", path, err), code: exitConfig}
	}
	return c, nil
}

// asFailure gives an error of the agent its exit code and hint.
func asFailure(err error) error {
	e, ok := errors.AsType[*fault.Error](err)
	if !ok {
		return err
	}
	codes := map[fault.Kind]int{
		fault.Failed: exitFailed, fault.Misconfigured: exitConfig,
		fault.Refused: exitRefused, fault.Temporary: exitTemporary,
	}
	return &failure{err: err, code: codes[e.Kind], hint: e.Hint}
}

// newFlags returns the flags of a subcommand, with a help text in one form.
func newFlags(name, summary string, std streams) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(discard{})
	flags.Usage = func() {
		fmt.Fprintf(std.out, "usage: hallmark %s [flags]\n\n%s\n", name, summary)
		flags.SetOutput(std.out)
		flags.PrintDefaults()
		flags.SetOutput(discard{})
	}
	return flags
}

// discard swallows what the flag package prints of an error: the error itself is
// printed once, in the form of every other.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// parseFlags parses the flags of a command without arguments.
func parseFlags(flags *flag.FlagSet, args []string) error {
	usage := flags.Usage
	flags.Usage = func() {}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			usage()
			return err
		}
		return usagef("%s: %w", flags.Name(), err)
	}
	if flags.NArg() > 0 {
		return usagef("%s takes no arguments: %q", flags.Name(), flags.Arg(0))
	}
	return nil
}
