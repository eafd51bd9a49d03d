package operator

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

const releaseLong = `Frees a host name or address that an instance holds, so that another instance can have it:
for example, the name of a machine that is stopped for good but not terminated.

The instance stays enrolled. If its name is taken when it asks again, it gets another. A
name that a valid certificate may still contain is not released.

Prints one audit line. The ledger records who released the name until it is claimed again.`

// maxName is how long a DNS name may be (RFC 1035, section 2.3.4).
const maxName = 255

func releaseCommand() *cobra.Command {
	var table, name string
	cmd := &cobra.Command{
		Use: "release --table TABLE --name NAME", Short: "free a name that an instance holds",
		Long: releaseLong, Args: cli.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error { return runRelease(cmd, table, name) },
	}
	tableFlag(cmd, &table)
	cmd.Flags().StringVar(&name, "name", "", "the host `name` or address, as it appears in certificates")
	return cmd
}

func runRelease(cmd *cobra.Command, table, name string) error {
	if err := checkTable(cmd, table); err != nil {
		return err
	}
	switch {
	case name == "":
		return cli.Usagef(cmd, "--name is missing")
	case len(name) > maxName:
		return cli.Usagef(cmd, "--name: %d bytes, more than %d", len(name), maxName)
	}
	o, err := openLedger(cmd, table)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), awsTimeout)
	defer cancel()
	holder, err := o.ledger.Release(ctx, name, o.arn, deployment.Now())
	switch {
	case errors.Is(err, ledger.ErrNotHeld):
		return &cli.Error{Err: err, Code: cli.Failed, Hint: "the name is free; if it should not be, check --table and --name (lower case)"}
	case errors.Is(err, ledger.ErrCertified):
		return &cli.Error{Err: err, Code: cli.Failed, Hint: "host certificates cannot be revoked: wait until then, or off-board the instance if it is lost (hallmark-signer end)"}
	case err != nil:
		return err
	}
	return o.print(cmd, holder, auditField{"name", name})
}
