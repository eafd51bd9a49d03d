package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/hallmark-ssh/hallmark/internal/ledger"
)

const permitRekeyUsage = `usage: hallmark-signer permit-rekey --table TABLE --account ACCOUNT --region REGION
           --instance ID --fingerprint SHA256:... [--hours N]

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
  --hours N            how long the permit lasts, at most 1 (the default)
`

// maxPermit is how long a permit lasts at most: long enough to act on, too short to
// be forgotten.
const maxPermit = time.Hour

// awsTimeout bounds all calls of a command.
const awsTimeout = 30 * time.Second

var regexpInstanceID = regexp.MustCompile(`^i-([0-9a-f]{8}|[0-9a-f]{17})$`)

// rekey is what an operator asks for.
type rekey struct {
	table       string
	instance    ledger.Instance
	fingerprint string
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
	hours := flags.Float64("hours", maxPermit.Hours(), "")
	if err := parseNone(flags, args); err != nil {
		return r, err
	}
	r.lasts = time.Duration(*hours * float64(time.Hour)).Round(time.Second)
	return r, r.check()
}

// check refuses what could only be a permit that nobody can use.
func (r rekey) check() error {
	switch {
	case r.table == "":
		return usagef("permit-rekey: --table is missing")
	case !regexpAccount.MatchString(r.instance.Account):
		return usagef("permit-rekey: --account: %q is not twelve digits", r.instance.Account)
	case !regexpRegion.MatchString(r.instance.Region):
		return usagef("permit-rekey: --region: %q is not an AWS region", r.instance.Region)
	case !regexpInstanceID.MatchString(r.instance.ID):
		return usagef("permit-rekey: --instance: %q is not an instance id", r.instance.ID)
	case !isFingerprint(r.fingerprint):
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
	ctx, cancel := context.WithTimeout(ctx, awsTimeout)
	defer cancel()
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return fmt.Errorf("load the AWS configuration: %w", err)
	}
	if cfg.Region = regionOf(r.table, cfg.Region); cfg.Region == "" {
		return &failure{err: errors.New("permit-rekey: the table's region is not known"), code: exitUsage,
			hint: "set AWS_REGION, or give the table's ARN"}
	}
	caller, err := sts.NewFromConfig(cfg).GetCallerIdentity(ctx, nil)
	if err != nil {
		return fmt.Errorf("ask STS who gives the permit: %w", err)
	}
	permit := ledger.Permit{Fingerprint: r.fingerprint, End: time.Now().Add(r.lasts).UTC().Truncate(time.Second), By: aws.ToString(caller.Arn)}
	if err := ledger.NewDynamoDB(newDynamoDB(cfg, r.table), tableName(r.table), time.Now).Permit(ctx, r.instance, permit); err != nil {
		return permitFailure(err)
	}
	return printPermit(std, r.instance, permit)
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

// printPermit prints what was done as one JSON line, in the names of the signer's
// audit lines.
func printPermit(std streams, i ledger.Instance, p ledger.Permit) error {
	encoder := json.NewEncoder(std.out)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(struct {
		Message     string    `json:"msg"`
		By          string    `json:"by"`
		Account     string    `json:"account"`
		Region      string    `json:"region"`
		Instance    string    `json:"instance"`
		Fingerprint string    `json:"fingerprint"`
		Until       time.Time `json:"until"`
	}{"permit-rekey", p.By, i.Account, i.Region, i.ID, p.Fingerprint, p.End})
}
