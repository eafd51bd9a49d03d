package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

func runStatus(_ context.Context, args []string, std streams) error {
	flags := newFlags("status", "show what this machine is enrolled as; it fails if it is not, or if the certificate in use has ended", std)
	asJSON := flags.Bool("json", false, "print the state as JSON")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	s, err := state.Load(state.Dir)
	if err != nil {
		return asFailure(err)
	}
	if s == nil {
		return &failure{err: errors.New("not enrolled"), code: exitFailed, hint: "see 'journalctl -u hallmark.service', or run 'hallmark enroll'"}
	}
	if err := printState(std.out, s, *asJSON); err != nil {
		return err
	}
	return inUse(s, time.Now())
}

// inUse returns an error if sshd presents no certificate that is still good.
func inUse(s *state.State, now time.Time) error {
	if w := s.Waiting; w != nil {
		if now.Before(w.AccessEnds) {
			return nil
		}
		return &failure{
			err:  errors.New(w.Access(now)),
			code: exitFailed, hint: "reload sshd once the pending change may take effect, or run 'hallmark enroll --reload'",
		}
	}
	if end := s.End(); !now.Before(end) {
		return &failure{
			err:  fmt.Errorf("a certificate ended %s", end.Format(time.RFC3339)),
			code: exitFailed, hint: "see 'journalctl -u hallmark.service', or run 'hallmark enroll'",
		}
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
