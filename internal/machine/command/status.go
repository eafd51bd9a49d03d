package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/buildinfo"
	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/doctor"
	"github.com/hallmark-ssh/hallmark/internal/machine/handshake"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// lookTimeout bounds a look at the machine, whatever hangs.
const lookTimeout = 4 * time.Second

func statusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "status", Short: "show what this machine is enrolled as, and whether it works",
		Long: `Shows what this machine is enrolled as, its certificates on disk and as sshd presents them, the
trusted CAs, the last run and the next renewal. Exits with 0 only if every local check passes,
perhaps with warnings. Without root, exits with 77 if the checks that need root are the only
ones that did not pass. Asks neither the metadata service nor the signer: 'hallmark doctor' does.`,
		Args: cli.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), lookTimeout)
			defer cancel()
			facts := doctor.ThisMachine().Look(ctx)
			return showStatus(cmd.OutOrStdout(), facts, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// showStatus prints the status, also of a machine that fails.
func showStatus(w io.Writer, facts *doctor.Facts, asJSON bool) error {
	s := newStatus(facts)
	if asJSON {
		if err := printJSON(w, s); err != nil {
			return err
		}
	} else if err := printStatus(w, s, styleOf(w)); err != nil {
		return err
	}
	return verdict(s.Findings)
}

func printJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// verdict returns nil if every check passed, and otherwise the first finding as an error.
func verdict(findings []doctor.Finding) error {
	if len(findings) == 0 {
		return nil
	}
	first := findings[0]
	switch doctor.Worst(findings) {
	case doctor.Failure:
		return &cli.Error{Err: fmt.Errorf("%s: %s", first.Check, first.Text), Code: cli.Failed, Hint: advice(first)}
	case doctor.Unknown:
		return &cli.Error{Err: errors.New("some checks need root"), Code: exitPermission, Hint: "run it with sudo"}
	case doctor.Warning:
		for _, f := range findings {
			if f.Level == doctor.Unknown {
				return &cli.Error{Err: errors.New("some checks need root"), Code: exitPermission, Hint: "run it with sudo"}
			}
		}
	case doctor.OK:
	}
	return nil
}

// advice returns what to do about a finding, on one line.
func advice(f doctor.Finding) string {
	switch {
	case f.Command == "":
		return f.Fix
	case f.Elsewhere:
		return f.Fix + "; with AWS credentials: " + f.Command
	}
	return f.Fix + ": " + f.Command
}

// status is what 'hallmark status --json' prints. The members of the state keep their names
// and places; a machine without a state has none of them.
type status struct {
	*state.State
	Healthy    bool             `json:"healthy"`
	Program    string           `json:"program"`
	At         time.Time        `json:"at"`
	Root       bool             `json:"root"`
	Files      []certificate    `json:"files"`
	Listeners  []listener       `json:"listeners"`
	TrustedCAs []string         `json:"trustedCAs"`
	LastRun    *lastRun         `json:"lastRun"`
	Backoff    *backoff         `json:"backoff"`
	Units      []doctor.Unit    `json:"units"`
	Findings   []doctor.Finding `json:"findings"`
}

// certificate is a certificate on disk.
type certificate struct {
	Path        string    `json:"path"`
	Error       string    `json:"error,omitempty"`
	Serial      uint64    `json:"serial,omitempty"`
	ValidAfter  time.Time `json:"validAfter,omitzero"`
	ValidBefore time.Time `json:"validBefore,omitzero"`
	CA          string    `json:"ca,omitempty"`
}

// listener is an address of sshd, and what it presents there.
type listener struct {
	Address string  `json:"address"`
	Offers  []offer `json:"offers"`
}

// offer is what sshd presents for one certified host key.
type offer struct {
	Path        string    `json:"path"`
	Same        bool      `json:"same"`
	Error       string    `json:"error,omitempty"`
	Serial      uint64    `json:"serial,omitempty"`
	ValidBefore time.Time `json:"validBefore,omitzero"`
	// absent says that the error means only that sshd presents no such certificate.
	absent bool
}

// lastRun is how hallmark.service ended last, since the boot.
type lastRun struct {
	Result   string    `json:"result"`
	ExitCode int       `json:"exitCode"`
	Signal   bool      `json:"signal"`
	Ended    time.Time `json:"ended,omitzero"`
}

// backoff is the pause after failed runs.
type backoff struct {
	Failures int       `json:"failures"`
	Reason   string    `json:"reason"`
	Hint     string    `json:"hint"`
	Until    time.Time `json:"until"`
}

func newStatus(f *doctor.Facts) status {
	findings := doctor.Local(f)
	s := status{
		State: f.State, Program: buildinfo.Version(), At: f.Now.UTC().Truncate(time.Second), Root: f.Root,
		Healthy: verdict(findings) == nil, Findings: findings,
		Files: []certificate{}, Listeners: []listener{}, TrustedCAs: []string{}, Units: []doctor.Unit{},
	}
	for _, file := range f.Files {
		s.Files = append(s.Files, certificateOf(file))
	}
	for _, l := range f.Listeners {
		s.Listeners = append(s.Listeners, listenerOf(l))
	}
	s.TrustedCAs = append(s.TrustedCAs, cafile.Fingerprints(f.CAs)...)
	for _, name := range []string{doctor.BootTimer, doctor.RenewTimer, doctor.ServiceUnit} {
		if u, ok := f.Units[name]; ok {
			s.Units = append(s.Units, u)
		}
	}
	if u := f.Units[doctor.ServiceUnit]; !u.Ended.IsZero() {
		s.LastRun = &lastRun{Result: u.Result, ExitCode: u.ExitCode, Signal: u.Signal, Ended: u.Ended}
	}
	if b := f.FailedRuns; b != nil {
		s.Backoff = &backoff{Failures: b.Failures, Reason: b.Reason, Hint: b.Hint, Until: b.NotBefore}
	}
	return s
}

func certificateOf(file doctor.File) certificate {
	c := certificate{Path: file.Path}
	switch {
	case errors.Is(file.Err, fs.ErrNotExist):
		c.Error = "missing"
	case file.Err != nil:
		c.Error = file.Err.Error()
	}
	if cert := file.Certificate; cert != nil {
		c.Serial, c.ValidBefore = cert.Serial, hostkey.FirstEnd([]*ssh.Certificate{cert}).UTC()
		c.ValidAfter = hostkey.Start(cert).UTC()
		c.CA = ssh.FingerprintSHA256(cert.SignatureKey)
	}
	return c
}

func listenerOf(l doctor.Listener) listener {
	all := listener{Address: l.Address, Offers: []offer{}}
	for _, o := range l.Offers {
		one := offer{Path: o.Path, Same: o.Same, absent: errors.Is(o.Err, handshake.ErrNotPresented)}
		if o.Err != nil {
			one.Error = o.Err.Error()
		}
		if o.Certificate != nil {
			one.Serial, one.ValidBefore = o.Certificate.Serial, hostkey.FirstEnd([]*ssh.Certificate{o.Certificate}).UTC()
		}
		all.Offers = append(all.Offers, one)
	}
	return all
}
