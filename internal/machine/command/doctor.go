package command

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/buildinfo"
	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/machine/doctor"
)

// examineTime bounds all checks together, whatever hangs, unless --timeout says otherwise.
const examineTime = 4500 * time.Millisecond

func doctorCommand() *cobra.Command {
	var asJSON bool
	var image string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "doctor", Short: "find out why this machine does not work, and how to fix it",
		Long: `Makes the checks of status, and asks the metadata service and the signer: tokens, identity role,
clock, name resolution, TLS, audience, current CAs, SELinux labels. Prints the cause first, with
the command that fixes it. Changes nothing, and takes less than 5 seconds; --timeout gives a
slow machine more time. Exits with 0 if no check fails, even if there are warnings. Without
root, exits with 77 if the checks that need root are the only ones that did not pass. --image
checks the file system of an image before it is used, and fails until the image is sealed.`,
		Args: cli.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error { return runDoctor(cmd, image, timeout, asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().DurationVar(&timeout, "timeout", examineTime, "wait at most this `time` for answers, such as 30s or 1m")
	cmd.Flags().StringVar(&image, "image", "", "check the image whose file system is in this `folder`")
	return cmd
}

func runDoctor(cmd *cobra.Command, image string, timeout time.Duration, asJSON bool) error {
	if timeout <= 0 {
		return cli.Usagef(cmd, "--timeout must be more than 0")
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
	defer cancel()
	d := diagnosis{Program: buildinfo.Version(), At: time.Now().UTC().Truncate(time.Second), Root: os.Geteuid() == 0, Image: image}
	if image != "" {
		if err := checkRootFolder(cmd, "image", image); err != nil {
			return err
		}
		d.Findings = doctor.Image(ctx, image)
	} else {
		// Without it the signer may be out of reach, and that check says so.
		if err := loadEnvironment(environmentFile); err != nil {
			cli.Note(cmd, "warning: %v", err)
		}
		d.Findings = doctor.Full(doctor.ThisMachine().Examine(ctx))
	}
	return showDiagnosis(cmd.OutOrStdout(), d, asJSON)
}

// diagnosis is what 'hallmark doctor --json' prints.
type diagnosis struct {
	Healthy  bool             `json:"healthy"`
	Program  string           `json:"program"`
	At       time.Time        `json:"at"`
	Root     bool             `json:"root"`
	Image    string           `json:"image,omitempty"`
	Findings []doctor.Finding `json:"findings"`
}

func showDiagnosis(w io.Writer, d diagnosis, asJSON bool) error {
	d.Healthy = verdict(d.Findings) == nil
	var err error
	if asJSON {
		err = printJSON(w, d)
	} else {
		err = printDiagnosis(w, d, styleOf(w))
	}
	if err != nil {
		return err
	}
	return verdict(d.Findings)
}

// printDiagnosis writes one paragraph for each finding, the cause first.
func printDiagnosis(w io.Writer, d diagnosis, st style) error {
	v := &screen{style: st, now: d.At}
	counts := map[doctor.Level]int{}
	for _, f := range d.Findings {
		v.finding(f)
		counts[f.Level]++
	}
	var parts []string
	for _, level := range []doctor.Level{doctor.Failure, doctor.Warning, doctor.Unknown, doctor.OK} {
		if counts[level] > 0 {
			parts = append(parts, st.paint(level, fmt.Sprintf("%d %s", counts[level], level)))
		}
	}
	fmt.Fprintf(v, "\n%s\n", strings.Join(parts, ", "))
	_, err := io.WriteString(w, v.String())
	return err
}
