package operator

import (
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

const permitRekeyUsage = `usage: hallmark-signer permit-rekey --table TABLE --account ACCOUNT --region REGION
           --instance ID --fingerprint SHA256:... [--hours N]
       hallmark-signer permit-rekey --table TABLE --account ACCOUNT --region REGION
           --from FILE [--hours N]

Lets a known instance enroll once with other host keys than the recorded ones, for
instance after its disk was replaced. The old keys stay its own. Prints an audit
line; the permit, and who gave it, are in the ledger and in the signer's audit
line of the enrollment that uses it.

Look at the new key on the machine itself, not at what the signer refused:
ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub

  --table TABLE        the ledger's table, by name (in the region of AWS_REGION or
                       of the profile) or by ARN
  --account ACCOUNT    the instance's account
  --region REGION      the instance's region
  --instance ID        the instance's id
  --fingerprint KEY    the SHA-256 fingerprint of one of its new host keys
  --from FILE          many instances of one account and region, one permit each:
                       lines of instance id and fingerprint; "-" is standard input,
                       empty lines and lines that start with # are skipped. Nothing
                       is permitted if a line is wrong
  --hours N            how long the permit lasts, at most 1 (the default)
`

// maxPermit is how long a permit lasts at most: long enough to act on, too short to
// be forgotten.
const maxPermit = time.Hour

// rekey is what an operator asks for.
type rekey struct {
	table       string
	instance    ledger.Instance
	fingerprint string
	from        string // a file of instances and fingerprints, in place of the two
	lasts       time.Duration
}

func parseRekey(args []string) (rekey, error) {
	var r rekey
	flags := flag.NewFlagSet("permit-rekey", flag.ContinueOnError)
	flags.StringVar(&r.table, "table", "", "")
	flags.StringVar(&r.instance.Account, "account", "", "")
	flags.StringVar(&r.instance.Region, "region", "", "")
	flags.StringVar(&r.instance.ID, "instance", "", "")
	flags.StringVar(&r.fingerprint, "fingerprint", "", "")
	flags.StringVar(&r.from, "from", "", "")
	hours := flags.Float64("hours", maxPermit.Hours(), "")
	if err := parseNone(flags, args); err != nil {
		return r, err
	}
	r.lasts = time.Duration(*hours * float64(time.Hour)).Round(time.Second)
	return r, r.check()
}

// check refuses what could only be a permit that nobody can use.
func (r rekey) check() error {
	if r.table == "" {
		return usagef("permit-rekey: --table is missing")
	}
	check := checkInstanceFlags
	if r.from != "" {
		check = checkPlaceFlags
	}
	if err := check("permit-rekey", r.instance); err != nil {
		return err
	}
	switch {
	case r.from != "" && (r.instance.ID != "" || r.fingerprint != ""):
		return usagef("permit-rekey: --from names the instances and fingerprints; remove --instance and --fingerprint")
	case r.from == "" && !isFingerprint(r.fingerprint):
		return usagef("permit-rekey: --fingerprint: %q is not of the form SHA256:..., as ssh-keygen -l prints it", r.fingerprint)
	case r.lasts < time.Second || r.lasts > maxPermit:
		return usagef("permit-rekey: --hours: want more than 0 and at most %g", maxPermit.Hours())
	}
	return nil
}

// isFingerprint knows the form of OpenSSH: unpadded base64 of a SHA-256 hash.
func isFingerprint(text string) bool {
	encoded, ok := strings.CutPrefix(text, "SHA256:")
	if !ok {
		return false
	}
	sum, err := base64.RawStdEncoding.Strict().DecodeString(encoded)
	return err == nil && len(sum) == 32
}

func runPermitRekey(ctx context.Context, args []string, std streams) error {
	r, err := parseRekey(args)
	if err != nil {
		return err
	}
	orders := []rekeyOrder{{instance: r.instance, fingerprint: r.fingerprint}}
	if r.from != "" {
		if orders, err = readOrders(r.from, r.instance, std); err != nil {
			return err
		}
	}
	o, err := openLedger(ctx, "permit-rekey", r.table)
	if err != nil {
		return err
	}
	if r.from == "" {
		return o.permit(ctx, orders[0], r.lasts, std)
	}
	return o.permitAll(ctx, orders, r, std)
}

// permitAll gives one permit for each line. A line that fails does not keep the others
// from theirs: they are machines of their own.
func (o operator) permitAll(ctx context.Context, orders []rekeyOrder, r rekey, std streams) error {
	failed := 0
	for _, order := range orders {
		if err := o.permit(ctx, order, r.lasts, std); err != nil {
			failed++
			fmt.Fprintf(std.err, "hallmark-signer: %s line %d: %s\n", r.from, order.line, oneLine(err))
		}
	}
	if failed > 0 {
		return &failure{err: fmt.Errorf("permit-rekey: %d of %d permits were not given", failed, len(orders)), code: exitFailed,
			hint: "the lines above say why; the other permits were given, and giving them again only makes them last longer"}
	}
	return nil
}

func (o operator) permit(ctx context.Context, order rekeyOrder, lasts time.Duration, std streams) error {
	ctx, cancel := context.WithTimeout(ctx, awsTimeout)
	defer cancel()
	permit := ledger.Permit{Fingerprint: order.fingerprint, End: deployment.Now().Add(lasts).UTC().Truncate(time.Second), By: o.arn}
	if err := o.ledger.Permit(ctx, order.instance, permit); err != nil {
		return permitFailure(err)
	}
	return o.print(std, "permit-rekey", order.instance, auditField{"fingerprint", permit.Fingerprint}, auditField{"until", permit.End})
}

func permitFailure(err error) error {
	switch {
	case errors.Is(err, ledger.ErrUnclaimed):
		return &failure{err: err, code: exitFailed, hint: "an instance that never enrolled needs no permit; look at --account, --region and --table"}
	case errors.Is(err, ledger.ErrEnded):
		return &failure{err: err, code: exitFailed, hint: "an instance that was off-boarded stays so; launch another"}
	}
	return err
}
