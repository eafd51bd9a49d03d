package operator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

const permitRekeyLong = `Lets an instance in the ledger enroll once with other host keys than the recorded ones, for
example after its disk was replaced. It keeps the old keys too. Prints one audit line;
the ledger and the signer's audit line of that enrollment record who gave the permit.

Read the new key on the machine itself, not from what the signer refused:
ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub

With --from FILE, gives one permit to each of many instances of one account and region.
Each line of the file is an instance id and a fingerprint; empty lines and lines that
start with # are skipped. If a line is wrong, no permit is given.`

// maxPermit is the longest time that a permit lasts: long enough to act, too short to be
// forgotten.
const maxPermit = time.Hour

// rekey holds the command line's flags.
type rekey struct {
	table       string
	instance    ec2ref.Instance
	fingerprint string
	from        string // a file of instances and fingerprints, instead of those two
	lasts       time.Duration
}

func permitRekeyCommand() *cobra.Command {
	var r rekey
	var hours float64
	cmd := &cobra.Command{
		Use:   "permit-rekey --table TABLE --account ACCOUNT --region REGION (--instance ID --fingerprint SHA256:... | --from FILE)",
		Short: "let an instance enroll once with other host keys",
		Long:  permitRekeyLong, Args: cli.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r.lasts = time.Duration(hours * float64(time.Hour)).Round(time.Second)
			return runPermitRekey(cmd, r)
		},
	}
	tableFlag(cmd, &r.table)
	instanceFlags(cmd, &r.instance)
	cmd.Flags().StringVar(&r.fingerprint, "fingerprint", "", "the SHA-256 `fingerprint` of one of its new host keys")
	cmd.Flags().StringVar(&r.from, "from", "", "`file` of instances and fingerprints; - is standard input")
	cmd.Flags().Float64Var(&hours, "hours", maxPermit.Hours(), "how many `hours` the permit lasts, at most 1")
	return cmd
}

// check refuses a permit that nobody could use.
func (r rekey) check(cmd *cobra.Command) error {
	if err := checkTable(cmd, r.table); err != nil {
		return err
	}
	check := checkInstanceFlags
	if r.from != "" {
		check = checkPlaceFlags
	}
	if err := check(cmd, r.instance); err != nil {
		return err
	}
	switch {
	case r.from != "" && (r.instance.ID != "" || r.fingerprint != ""):
		return cli.Usagef(cmd, "--from names the instances and fingerprints; remove --instance and --fingerprint")
	case r.from == "" && r.fingerprint == "":
		return cli.Usagef(cmd, "--fingerprint is missing")
	case r.from == "" && !sshkey.IsFingerprint(r.fingerprint):
		return cli.Usagef(cmd, "--fingerprint: %.100q does not look like SHA256:..., as ssh-keygen -l prints it", r.fingerprint)
	case r.lasts < time.Second || r.lasts > maxPermit:
		return cli.Usagef(cmd, "--hours: want more than 0 and at most %g", maxPermit.Hours())
	}
	return nil
}

func runPermitRekey(cmd *cobra.Command, r rekey) error {
	if err := r.check(cmd); err != nil {
		return err
	}
	orders := []rekeyOrder{{instance: r.instance, fingerprint: r.fingerprint}}
	if r.from != "" {
		var err error
		if orders, err = readOrders(cmd, r.from, r.instance); err != nil {
			return err
		}
	}
	o, err := openLedger(cmd, r.table)
	if err != nil {
		return err
	}
	if r.from == "" {
		return o.permit(cmd, orders[0], r.lasts)
	}
	return o.permitAll(cmd, orders, r)
}

// permitAll gives one permit for each line. If a line fails, it continues with the others:
// each line is another machine.
func (o operator) permitAll(cmd *cobra.Command, orders []rekeyOrder, r rekey) error {
	failed := 0
	for _, order := range orders {
		if err := o.permit(cmd, order, r.lasts); err != nil {
			failed++
			cli.Note(cmd, "%s line %d: %s", r.from, order.line, cli.OneLine(err))
		}
	}
	if failed > 0 {
		return &cli.Error{Err: fmt.Errorf("permit-rekey: %d of %d permits were not given", failed, len(orders)), Code: cli.Failed,
			Hint: "see the lines above; the other permits were given, and running the command again only extends them"}
	}
	return nil
}

func (o operator) permit(cmd *cobra.Command, order rekeyOrder, lasts time.Duration) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), awsTimeout)
	defer cancel()
	permit := ledger.Permit{Fingerprint: order.fingerprint, ValidUntil: deployment.Now().Add(lasts).UTC().Truncate(time.Second), By: o.arn}
	if err := o.ledger.Permit(ctx, order.instance, permit); err != nil {
		return permitFailure(err)
	}
	return o.print(cmd, order.instance, auditField{"fingerprint", permit.Fingerprint}, auditField{"until", permit.ValidUntil})
}

func permitFailure(err error) error {
	switch {
	case errors.Is(err, ledger.ErrUnclaimed):
		return &cli.Error{Err: err, Code: cli.Failed, Hint: "an instance that never enrolled needs no permit; check --account, --region and --table"}
	case errors.Is(err, ledger.ErrRetired):
		return &cli.Error{Err: err, Code: cli.Failed, Hint: "an off-boarded instance cannot enroll again; launch a new one"}
	}
	return err
}
