package operator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/organization"
)

// explaining says about which instance a policy is explained, and as of when.
type explaining struct {
	deployment string
	// instance is a file of facts. Without one, live is the id of a real instance.
	instance, live string
	at             ec2ref.Place
	table, now     string
}

// check returns the time to decide at.
func (e explaining) check(cmd *cobra.Command) (time.Time, error) {
	switch {
	case e.instance == "" && e.live == "":
		return time.Time{}, cli.Usagef(cmd, "--instance is missing; or pass --live")
	case e.instance != "" && e.live != "":
		return time.Time{}, cli.Usagef(cmd, "pass --instance or --live, not both")
	case e.live != "" && e.deployment == "":
		return time.Time{}, cli.Usagef(cmd, "--live needs --deployment, which names the accounts and their roles")
	case e.live == "" && (e.at != ec2ref.Place{} || e.table != ""):
		return time.Time{}, cli.Usagef(cmd, "--account, --region and --table need --live")
	}
	if e.live != "" {
		if err := e.checkLive(cmd); err != nil {
			return time.Time{}, err
		}
	}
	if e.now == "" {
		return deployment.Now(), nil
	}
	now, err := time.Parse(time.RFC3339, e.now)
	if err != nil {
		return now, cli.Usagef(cmd, "--now: %.100q is not a time; write 2026-11-27T08:00:00Z", e.now)
	}
	return now, nil
}

// checkLive checks the flags that name a real instance.
func (e explaining) checkLive(cmd *cobra.Command) error {
	if _, err := ec2ref.ParseInstanceID(e.live); err != nil {
		return cli.Usagef(cmd, "--live: %w", err)
	}
	if _, err := ec2ref.ParseAccount(string(e.at.Account)); err != nil && e.at.Account != "" {
		return cli.Usagef(cmd, "--account: %w", err)
	}
	if _, err := ec2ref.ParseRegion(string(e.at.Region)); err != nil && e.at.Region != "" {
		return cli.Usagef(cmd, "--region: %w", err)
	}
	if e.table != "" {
		return checkTable(cmd, e.table)
	}
	return nil
}

// facts returns what is known of the instance.
func (e explaining) facts(cmd *cobra.Command) (node.Facts, error) {
	if e.live != "" {
		return e.ask(cmd)
	}
	data, err := readFile(e.instance, nil)
	if err != nil {
		return node.Facts{}, fmt.Errorf("read the instance's facts: %w", err)
	}
	facts, err := node.ParseFacts(data)
	if err != nil {
		return facts, fmt.Errorf("%s: %w", e.instance, err)
	}
	return facts, nil
}

// ask asks EC2 and, with a table, the ledger.
func (e explaining) ask(cmd *cobra.Command) (node.Facts, error) {
	ctx, cancel := context.WithTimeout(cmd.Context(), awsTimeout)
	defer cancel()
	cfg, err := loadAnyAWS(ctx)
	if err != nil {
		return node.Facts{}, err
	}
	fleet, err := readFleet(e.deployment, cfg, e.table)
	if err != nil {
		return node.Facts{}, err
	}
	members, err := fleet.MemberPlaces(ctx)
	if errors.Is(err, deployment.ErrNotRead) {
		cli.Note(cmd, "%v", err)
		err = nil
	}
	if err != nil {
		return node.Facts{}, fmt.Errorf("explain: %w", err)
	}
	i, err := e.pick(cmd, append(fleet.Places, members...))
	if err != nil {
		return node.Facts{}, err
	}
	if cfg.Region == "" { // for STS; with a table, the region is that of the table
		cfg.Region = string(i.Region)
		if fleet, err = readFleet(e.deployment, cfg, e.table); err != nil {
			return node.Facts{}, err
		}
	}
	if err := fleet.EC2.CheckAccount(ctx, i.Account); err != nil {
		return node.Facts{}, fmt.Errorf("explain: account %s: %w", i.Account, err)
	}
	found, err := fleet.EC2.Instance(ctx, i)
	switch {
	case errors.Is(err, inventory.ErrNotFound):
		return node.Facts{}, &cli.Error{Err: fmt.Errorf("explain: %w", err), Code: cli.Failed, Hint: "check --live, --account and --region"}
	case err != nil:
		return node.Facts{}, fmt.Errorf("explain: %w", err)
	}
	record, err := e.record(ctx, cmd, cfg, i)
	facts := node.FactsOf(found, record)
	if err == nil && fleet.Organization != nil {
		var view organization.View
		view, err = fleet.Organization(ctx)
		view.Describe(&facts)
	}
	return facts, err
}

func (e explaining) record(ctx context.Context, cmd *cobra.Command, cfg aws.Config, i ec2ref.Instance) (ledger.Record, error) {
	if e.table == "" {
		cli.Note(cmd, "the instance counts as new: the ledger was not asked; pass --table")
		return ledger.Record{}, nil
	}
	record, err := deployment.OpenLedger(cfg, e.table).Lookup(ctx, i)
	if err != nil {
		return record, fmt.Errorf("explain: %w", err)
	}
	if record.Retired {
		cli.Note(cmd, "the instance was off-boarded: the signer refuses it, whatever the policy says")
	}
	return record, nil
}

// pick returns the instance. Where the deployment lists one account or one region, there is
// no need to name it.
func (e explaining) pick(cmd *cobra.Command, places []ec2ref.Place) (ec2ref.Instance, error) {
	var matching []ec2ref.Place
	for _, p := range places {
		if (e.at.Account == "" || e.at.Account == p.Account) && (e.at.Region == "" || e.at.Region == p.Region) {
			matching = append(matching, p)
		}
	}
	switch len(matching) {
	case 0:
		if e.table == "" {
			return ec2ref.Instance{}, cli.Usagef(cmd, "%s does not list that account and region; pass --table to include the accounts of its organization", e.deployment)
		}
		return ec2ref.Instance{}, cli.Usagef(cmd, "%s does not list that account and region, and neither does its organization", e.deployment)
	case 1:
		return ec2ref.Instance{Account: matching[0].Account, Region: matching[0].Region, ID: ec2ref.InstanceID(e.live)}, nil
	}
	return ec2ref.Instance{}, cli.Usagef(cmd, "%s lists several accounts or regions: pass --account and --region", e.deployment)
}
