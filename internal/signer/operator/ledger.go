package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

// awsTimeout bounds the calls for one instance or name.
const awsTimeout = 30 * time.Second

// operator is the person who runs a command that changes the ledger, according to the AWS
// credentials in use.
type operator struct {
	ledger *ledger.DynamoDB
	arn    string // the ARN from STS
	config aws.Config
}

// openLedger asks STS who the operator is, for the ledger and the audit line.
func openLedger(cmd *cobra.Command, table string) (operator, error) {
	ctx, cancel := context.WithTimeout(cmd.Context(), awsTimeout)
	defer cancel()
	cfg, err := loadAWS(ctx, cmd, table)
	if err != nil {
		return operator{}, err
	}
	caller, err := sts.NewFromConfig(cfg).GetCallerIdentity(ctx, nil)
	if err != nil {
		return operator{}, fmt.Errorf("ask STS who runs %s: %w", cmd.Name(), err)
	}
	arn := aws.ToString(caller.Arn)
	if arn == "" {
		return operator{}, errors.New("STS does not say who you are")
	}
	return operator{ledger: deployment.OpenLedger(cfg, table), arn: arn, config: cfg}, nil
}

// auditField is one member of an audit line.
type auditField struct {
	name  string
	value any
}

// print prints what was done as one JSON line, with the field names of the signer's audit
// lines.
func (o operator) print(cmd *cobra.Command, i ec2ref.Instance, more ...auditField) error {
	return o.printLine(cmd, append([]auditField{
		{"msg", cmd.Name()}, {"by", o.arn}, {"account", i.Account}, {"region", i.Region}, {"instance", i.ID},
	}, more...)...)
}

// printLine prints one JSON line with these members.
func (o operator) printLine(cmd *cobra.Command, fields ...auditField) error {
	line := []byte("{")
	for n, f := range fields {
		value, err := json.Marshal(f.value)
		if err != nil {
			return err
		}
		if n > 0 {
			line = append(line, ',')
		}
		line = fmt.Appendf(line, "%q:%s", f.name, value)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s}\n", bytes.TrimSpace(line))
	return err
}

// checkPlaceFlags checks the flags that say where an instance is.
func checkPlaceFlags(cmd *cobra.Command, i ec2ref.Instance) error {
	if i.Account == "" {
		return cli.Usagef(cmd, "--account is missing")
	}
	if _, err := ec2ref.ParseAccount(string(i.Account)); err != nil {
		return cli.Usagef(cmd, "--account: %w", err)
	}
	if i.Region == "" {
		return cli.Usagef(cmd, "--region is missing")
	}
	if _, err := ec2ref.ParseRegion(string(i.Region)); err != nil {
		return cli.Usagef(cmd, "--region: %w", err)
	}
	return nil
}

// checkInstanceFlags checks the flags that name an instance.
func checkInstanceFlags(cmd *cobra.Command, i ec2ref.Instance) error {
	if err := checkPlaceFlags(cmd, i); err != nil {
		return err
	}
	if i.ID == "" {
		return cli.Usagef(cmd, "--instance is missing")
	}
	if _, err := ec2ref.ParseInstanceID(string(i.ID)); err != nil {
		return cli.Usagef(cmd, "--instance: %w", err)
	}
	return nil
}
