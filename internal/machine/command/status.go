package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

func statusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "status", Short: "show what this machine is enrolled as",
		Long: `Shows what this machine is enrolled as. Fails if it is not enrolled, or if the certificate
in use has expired.`,
		Args: cli.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error { return runStatus(cmd.OutOrStdout(), asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the state as JSON")
	return cmd
}

func runStatus(w io.Writer, asJSON bool) error {
	s, err := state.Load(state.Dir)
	if err != nil {
		return asFailure(err)
	}
	if s == nil {
		return notInUse("not enrolled")
	}
	if err := printState(w, s, asJSON); err != nil {
		return err
	}
	return inUse(s, time.Now())
}

// notInUse returns the error of a machine that nobody can log in to through Teleport.
func notInUse(format string, args ...any) error {
	return &cli.Error{
		Err: fmt.Errorf(format, args...), Code: cli.Failed,
		Hint: "see 'journalctl -u hallmark.service', or run 'hallmark enroll'",
	}
}

// inUse returns an error if sshd presents no certificate that is still good.
func inUse(s *state.State, now time.Time) error {
	if w := s.Waiting; w != nil {
		if now.Before(w.AccessEnds) {
			return nil
		}
		return &cli.Error{
			Err:  errors.New(w.Access(now)),
			Code: cli.Failed, Hint: "reload sshd once the pending change may take effect, or run 'hallmark enroll --reload'",
		}
	}
	switch end := s.End(); {
	case end.IsZero():
		return notInUse("no certificates")
	case !now.Before(end):
		return notInUse("a certificate expired %s", end.Format(time.RFC3339))
	}
	return nil
}

func printState(w io.Writer, s *state.State, asJSON bool) error {
	if asJSON {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(s)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "cluster\t%s\n", s.Node.Cluster)
	fmt.Fprintf(t, "host name\t%s\n", s.Node.Hostname)
	fmt.Fprintf(t, "node\t%s\n", s.Node.ID)
	fmt.Fprintf(t, "instance\t%s in %s, account %s\n", s.Instance.InstanceID, s.Instance.Region, s.Instance.AccountID)
	for _, c := range s.Certificates {
		fmt.Fprintf(t, "certificate\t%s until %s\n", c.Path, c.ValidBefore.Format(time.RFC3339))
	}
	fmt.Fprintf(t, "trusted CAs\t%d\n", len(s.OpenSSHCAs))
	fmt.Fprintf(t, "enrolled\t%s\n", s.EnrolledAt.Format(time.RFC3339))
	fmt.Fprintf(t, "renewal\t%s\n", s.RenewAfter.Format(time.RFC3339))
	if s.NotVerified != "" {
		fmt.Fprintf(t, "not verified\t%s\n", s.NotVerified)
	}
	if s.Waiting != nil {
		fmt.Fprintf(t, "waiting\t%s, since %s; %s\n", s.Waiting, s.Waiting.Since.Format(time.RFC3339), s.Waiting.Access(time.Now()))
	}
	return t.Flush()
}
