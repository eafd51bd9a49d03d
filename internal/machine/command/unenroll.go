package command

import (
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/machine/agent"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/install"
)

func unenrollCommand() *cobra.Command {
	var options install.RemoveOptions
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "unenroll", Short: "take this machine out of the Teleport cluster and remove hallmark from it",
		Long: `Asks the signer to delete this machine's node, restores sshd's configuration as it was before
'hallmark install', and removes hallmark's certificates, CAs, timers, state, configuration and
program. What other people changed since stays. The signer keeps the machine's host keys and
names on record, so the machine can enroll again.

If the signer refuses or does not answer, if sshd would not accept the result, or if nobody
could log in afterwards, nothing changes. If the command is interrupted, run it again.`,
		Args: cli.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if timeout <= 0 {
				return cli.Usagef(cmd, "--timeout must be more than 0")
			}
			return runUnenroll(cmd, options, timeout)
		},
	}
	cmd.Flags().BoolVar(&options.Force, "force", false, "continue even if nobody could log in by SSH afterwards")
	cmd.Flags().BoolVar(&options.Offline, "offline", false, "do not ask the signer; the node stays in Teleport until its lease expires")
	cmd.Flags().BoolVar(&options.ActivatePending, "reload", false, "reload sshd, even if that activates pending changes to its configuration")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "give up asking the signer after this `time`, such as 90s or 2m")
	return cmd
}

func runUnenroll(cmd *cobra.Command, options install.RemoveOptions, timeout time.Duration) error {
	if err := requireRoot(cmd); err != nil {
		return err
	}
	log := func(format string, args ...any) { cli.Note(cmd, format, args...) }
	leave, err := leaveWith(timeout, options.Offline, log)
	if err != nil {
		return err
	}
	remover, err := install.NewRemover(leave, log)
	if err != nil {
		return asFailure(err)
	}
	changes, err := remover.Remove(cmd.Context(), options)
	for _, line := range changes {
		cli.Note(cmd, "%s", line)
	}
	if err != nil {
		return asFailure(err)
	}
	if len(changes) == 0 {
		cli.Note(cmd, "hallmark is not installed, nothing changed")
		return nil
	}
	cli.Note(cmd, "unenrolled; all files are as they were before 'hallmark install', except what others changed since")
	return nil
}

// leaveWith returns how to ask the signer, or nil if there is no configuration: an earlier run
// may have removed it. Offline, a wrong configuration does not matter.
func leaveWith(timeout time.Duration, offline bool, log func(string, ...any)) (install.Leave, error) {
	if _, err := os.Stat(config.File); offline || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err := loadEnvironment(environmentFile); err != nil {
		return nil, &cli.Error{Err: err, Code: exitConfig, Hint: "run it as root"}
	}
	c, err := loadConfig(config.File)
	if err != nil {
		return nil, err
	}
	enroller, err := agent.NewEnroller(c, timeout, log)
	if err != nil {
		return nil, asFailure(err)
	}
	return enroller.Leave, nil
}
