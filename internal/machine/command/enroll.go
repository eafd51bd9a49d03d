package command

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/machine/agent"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// gcPercent keeps the heap small. An enrollment allocates a few megabytes and ends. Go's
// default, 100, would collect nothing before 4 MB, and reading the system's roots alone leaves
// more garbage than that.
const gcPercent = 25

// enrollment holds the command line's flags.
type enrollment struct {
	config  string
	timeout time.Duration
	reload  bool
	// quiet prints nothing if there is nothing to do.
	quiet bool
}

func enrollCommand() *cobra.Command {
	var e enrollment
	cmd := &cobra.Command{
		Use: "enroll", Short: "enroll this machine, or renew its certificates if they are due",
		Long: `Enrolls this machine in the Teleport cluster, or renews its certificates if they are due.
Either way, sshd trusts the cluster's current OpenSSH CAs afterwards. If there is nothing to
do, nothing changes.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return e.run(cmd, (*agent.Enroller).Enroll) },
	}
	return e.flags(cmd)
}

func renewCommand() *cobra.Command {
	e := enrollment{quiet: true}
	cmd := &cobra.Command{
		Use: "renew", Short: "like enroll, but backs off after failures (for timers)",
		Long: `Does what enroll does, for timers. After failed runs it backs off, and returns the last error
until the next attempt is due. While another run is in progress it does nothing, and
succeeds. If there is nothing to do, it prints nothing.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := e.run(cmd, (*agent.Enroller).Renew)
			if errors.Is(err, state.ErrRunning) {
				cli.Note(cmd, "%v; nothing to do", err)
				return nil
			}
			return err
		},
	}
	return e.flags(cmd)
}

func (e *enrollment) flags(cmd *cobra.Command) *cobra.Command {
	cmd.Args, cmd.ValidArgsFunction = cli.NoArgs, cobra.NoFileCompletions
	cmd.Flags().StringVar(&e.config, "config", config.File, "read the configuration from this `file`")
	cmd.Flags().DurationVar(&e.timeout, "timeout", 2*time.Minute, "give up after this `time`, such as 90s or 2m")
	cmd.Flags().BoolVar(&e.reload, "reload", false, "reload sshd for new certificates, even if that activates pending changes to its configuration")
	return cmd
}

func (e *enrollment) run(cmd *cobra.Command, act func(*agent.Enroller, context.Context) (*agent.Outcome, error)) error {
	if e.timeout <= 0 {
		return cli.Usagef(cmd, "--timeout must be more than 0")
	}
	debug.SetGCPercent(gcPercent)
	if err := loadEnvironment(environmentFile); err != nil {
		return &cli.Error{Err: err, Code: exitConfig, Hint: "run it as root"}
	}
	c, err := loadConfig(e.config)
	if err != nil {
		return err
	}
	if err := requireRoot(cmd); err != nil {
		return err
	}
	log := func(format string, args ...any) { cli.Note(cmd, format, args...) }
	enroller, err := agent.NewEnroller(c, e.timeout, log)
	if err != nil {
		return asFailure(err)
	}
	enroller.ActivatePending = e.reload
	outcome, err := act(enroller, cmd.Context())
	if err != nil {
		return asFailure(err)
	}
	reportOutcome(outcome, e.quiet, log)
	return nil
}

// reportOutcome logs what a run did. If quiet, it leaves out that there was nothing to do.
func reportOutcome(o *agent.Outcome, quiet bool, log func(string, ...any)) {
	s := o.State
	switch {
	case o.Reason == "" && !quiet:
		log("already enrolled as %s in %s, renewal due %s", s.Node.Hostname, s.Node.Cluster, s.RenewAfter.Format(time.RFC3339))
	case o.Reason != "":
		log("%s", o.Reason)
		log("enrolled as %s in %s until %s; certificates: %d", s.Node.Hostname, s.Node.Cluster, s.End().Format(time.RFC3339), len(s.Certificates))
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
		log("sshd is not running; it will present the certificates when it starts")
	case s.NotVerified != "" && o.Reloaded:
		log("sshd was reloaded, but hallmark cannot see whether it presents the certificates: %s", s.NotVerified)
	case s.NotVerified != "":
		log("hallmark cannot see whether sshd presents the certificates: %s", s.NotVerified)
	case o.Reloaded:
		log("sshd was reloaded and presents the certificates")
	case o.Reason != "":
		log("sshd presents the certificates; no reload was needed")
	}
}

func loadConfig(path string) (config.Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		e := &cli.Error{Err: fmt.Errorf("read the configuration: %w", err), Code: exitConfig}
		if errors.Is(err, fs.ErrNotExist) {
			e.Hint = "run 'hallmark install', or pass --config"
		}
		return config.Config{}, e
	}
	c, err := config.Parse(data)
	if err != nil {
		return config.Config{}, &cli.Error{Err: fmt.Errorf("%s: %w", path, err), Code: exitConfig}
	}
	return c, nil
}
