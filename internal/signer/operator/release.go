package operator

import (
	"context"
	"errors"
	"flag"

	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

const releaseUsage = `usage: hallmark-signer release --table TABLE --name NAME

Frees a host name or an address that an instance holds, so that another one can have
it: for instance the name of a machine that is stopped for good but not terminated.
The instance stays enrolled, and gets another name if the name is taken when it comes
back. A name that a certificate may still bear is not released. Prints an audit line;
who released the name is in the ledger too, until the name is claimed again.

  --table TABLE        the ledger's table, by name (in the region of AWS_REGION or
                       of the profile) or by ARN
  --name NAME          the host name or address, as the certificates have it
`

// maxName is how long a DNS name may be (RFC 1035, section 2.3.4).
const maxName = 255

func runRelease(ctx context.Context, args []string, std streams) error {
	var table, name string
	flags := flag.NewFlagSet("release", flag.ContinueOnError)
	flags.StringVar(&table, "table", "", "")
	flags.StringVar(&name, "name", "", "")
	err := parseNone(flags, args)
	switch {
	case err != nil:
		return err
	case table == "":
		return usagef("release: --table is missing")
	case name == "" || len(name) > maxName:
		return usagef("release: --name: want a name of 1 to %d bytes", maxName)
	}
	o, err := openLedger(ctx, "release", table)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, awsTimeout)
	defer cancel()
	holder, err := o.ledger.Release(ctx, name, o.arn, deployment.Now())
	switch {
	case errors.Is(err, ledger.ErrNotHeld):
		return &failure{err: err, code: exitFailed, hint: "the name is free; look at --name, in lower case, and --table if it is not"}
	case errors.Is(err, ledger.ErrCertified):
		return &failure{err: err, code: exitFailed, hint: "host certificates cannot be revoked: wait until then, or end an instance that is lost"}
	case err != nil:
		return err
	}
	return o.print(std, "release", holder, auditField{"name", name})
}
