package operator

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/report"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

const reportLong = `Shows each instance of the fleet by what the ledger, Teleport and EC2 know: its host name,
the rule that admitted it, its last renewal, the end of its certificates, and its state:

  enrolled   it has valid certificates and a node
  unhealthy  something is wrong with its node or record
  no_node    it runs, and Teleport has no node of it
  refused    the signer refused its latest request
  stopped    it is stopped in EC2
  left       it left the fleet at its own request, and may enroll again
  ended      it was off-boarded and can never enroll again
  unknown    a source that the state depends on could not be read

It reads with your own AWS credentials, which must be allowed to scan the table and to
describe instances. In accounts that have a role in deployment.yaml, it assumes that role.
It reads Teleport with the identity file, and changes nothing.

In accounts of the organization it asks EC2 about the regions that the ledger or --account
names.

If Teleport or EC2 in an account and region cannot be read, the report shows what the others
say, a line for each such source goes to standard error, and the exit code is 1.`

// reportTimeout bounds a whole report.
const reportTimeout = 2 * time.Minute

// maxGapLines bounds the lines about sources that could not be read.
const maxGapLines = 20

// reporting is what an operator asks for.
type reporting struct {
	table, deployment string
	cluster           clusterLogin
	format            string
	accounts, regions []string
	states            []string
	within            string
	filter            report.Filter
}

func reportCommand() *cobra.Command {
	var r reporting
	cmd := &cobra.Command{
		Use: "report --deployment FILE --table TABLE --identity FILE", Short: "show the fleet: who is enrolled, and until when",
		Long: reportLong, Args: cli.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error { return runReport(cmd, r) },
	}
	cmd.Flags().StringVar(&r.deployment, "deployment", "", "`file` with the audience, accounts, regions and Teleport's address: deployment.yaml")
	tableFlag(cmd, &r.table)
	r.cluster.flags(cmd, "read nodes")
	cmd.Flags().StringVar(&r.format, "format", "table", "`format`: table, json or csv")
	cmd.Flags().StringSliceVar(&r.accounts, "account", nil, "only these `accounts`")
	cmd.Flags().StringSliceVar(&r.regions, "region", nil, "only these `regions`")
	cmd.Flags().StringSliceVar(&r.filter.Rules, "rule", nil, "only instances that these `rules` of the policy admitted")
	cmd.Flags().StringSliceVar(&r.states, "state", nil, "only instances in these `states`")
	cmd.Flags().StringVar(&r.filter.Hostname, "host-name", "", "only host names that match the `pattern`, such as 'web-*'")
	cmd.Flags().StringVar(&r.filter.Version, "program-version", "", "only machines whose hallmark has a version that matches the `pattern`, such as 'v1.2.*'")
	cmd.Flags().StringVar(&r.within, "expires-within", "", "only instances whose certificates expire within this `time`, such as 36h or 3d, or have expired")
	return cmd
}

// check parses the flags.
func (r *reporting) check(cmd *cobra.Command) (err error) {
	switch {
	case r.deployment == "":
		return cli.Usagef(cmd, "--deployment is missing")
	case !slices.Contains([]string{"table", "json", "csv"}, r.format):
		return cli.Usagef(cmd, "--format takes table, json or csv, not %.100q", r.format)
	}
	if err := checkTable(cmd, r.table); err != nil {
		return err
	}
	if r.filter.Accounts, err = parseAll(r.accounts, ec2ref.ParseAccount); err != nil {
		return cli.Usagef(cmd, "--account: %w", err)
	}
	if r.filter.Regions, err = parseAll(r.regions, ec2ref.ParseRegion); err != nil {
		return cli.Usagef(cmd, "--region: %w", err)
	}
	if r.filter.States, err = parseAll(r.states, report.ParseState); err != nil {
		return cli.Usagef(cmd, "--state: %w", err)
	}
	if r.within != "" {
		if r.filter.Within, err = policy.ParseDuration(r.within); err != nil || r.filter.Within <= 0 {
			return cli.Usagef(cmd, "--expires-within: %.100q is not a time; write 36h or 3d", r.within)
		}
	}
	if err := r.filter.Check(); err != nil {
		return cli.Usagef(cmd, "%w", err)
	}
	return nil
}

func parseAll[T any](texts []string, parse func(string) (T, error)) ([]T, error) {
	var all []T
	for _, text := range texts {
		value, err := parse(text)
		if err != nil {
			return nil, err
		}
		all = append(all, value)
	}
	return all, nil
}

func runReport(cmd *cobra.Command, r reporting) error {
	if err := r.check(cmd); err != nil {
		return err
	}
	// With an old login, the report still shows what the other sources know.
	if err := r.cluster.check(cmd); err != nil && !errors.Is(err, teleport.ErrExpired) {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), reportTimeout)
	defer cancel()
	reader, err := r.reader(ctx, cmd)
	if err != nil {
		return err
	}
	fleet, err := reader.Read(ctx, r.filter)
	switch {
	case errors.Is(err, report.ErrTooMany):
		return &cli.Error{Err: fmt.Errorf("report: %w", err), Code: cli.Failed, Hint: "pass --account or --region, and run it once for each"}
	case err != nil:
		return fmt.Errorf("report: %w", err)
	}
	now := deployment.Now()
	result := report.New(r.filter.Apply(report.Join(fleet, now), now), fleet.Gaps, now)
	if err := r.write(cmd, result); err != nil {
		return err
	}
	return noteGaps(cmd, fleet.Gaps)
}

func (r reporting) reader(ctx context.Context, cmd *cobra.Command) (report.Reader, error) {
	cfg, err := loadAWS(ctx, cmd, r.table)
	if err != nil {
		return report.Reader{}, err
	}
	fleet, err := readFleet(r.deployment, cfg, r.table)
	if err != nil {
		return report.Reader{}, err
	}
	if r.cluster.proxy == "" {
		r.cluster.proxy = fleet.Teleport
	}
	if r.cluster.roots == "" && fleet.RootsFile != "" {
		r.cluster.roots = fleet.RootsFile
		if !filepath.IsAbs(r.cluster.roots) {
			r.cluster.roots = filepath.Join(filepath.Dir(r.deployment), r.cluster.roots)
		}
	}
	return report.Reader{
		Ledger: deployment.OpenLedger(cfg, r.table), EC2: plainEC2{fleet.EC2}, Places: fleet.Places, Members: fleet.MemberPlaces, Audience: fleet.Audience,
		Nodes: func(ctx context.Context) ([]node.Node, error) { return r.nodes(ctx, cmd, fleet.Audience) },
	}, nil
}

// plainEC2 explains the failed calls of AWS, for the lines about sources that could not be read.
type plainEC2 struct{ report.EC2 }

// CheckAccount is part of report.EC2.
func (e plainEC2) CheckAccount(ctx context.Context, account ec2ref.Account) error {
	return explainAWS(e.EC2.CheckAccount(ctx, account))
}

// States is part of report.EC2.
func (e plainEC2) States(ctx context.Context, at ec2ref.Place) (map[ec2ref.InstanceID]string, error) {
	states, err := e.EC2.States(ctx, at)
	return states, explainAWS(err)
}

// nodes returns the nodes that the signer wrote.
func (r reporting) nodes(ctx context.Context, cmd *cobra.Command, signer string) ([]node.Node, error) {
	if r.cluster.identity == "" {
		return nil, errors.New("no login; pass --identity FILE, from 'tsh login --out FILE'")
	}
	config, err := r.cluster.config(cmd)
	if err != nil {
		return nil, err
	}
	client, err := teleport.Dial(ctx, config)
	if err != nil {
		return nil, err
	}
	defer func() { _ = client.Close() }()
	return client.NodesWith(ctx, map[string]string{node.SignerLabel: signer})
}

func (r reporting) write(cmd *cobra.Command, result report.Report) error {
	switch r.format {
	case "json":
		return result.WriteJSON(cmd.OutOrStdout())
	case "csv":
		if err := result.WriteCSV(cmd.OutOrStdout()); err != nil {
			return err
		}
		cli.Note(cmd, "%s", result.Summary)
		return nil
	}
	return result.WriteTable(cmd.OutOrStdout())
}

// noteGaps says which sources could not be read. With any, the command fails.
func noteGaps(cmd *cobra.Command, gaps []report.Gap) error {
	for n, g := range gaps {
		if n == maxGapLines {
			cli.Note(cmd, "and %d more; --format json lists all", len(gaps)-n)
			break
		}
		cli.Note(cmd, "could not read %s", g)
	}
	if len(gaps) == 0 {
		return nil
	}
	return &cli.Error{Err: fmt.Errorf("the report is incomplete: %d of its sources could not be read", len(gaps)), Code: cli.Failed,
		Hint: "states that depend on them are shown as unknown; docs/operations.md lists the permissions"}
}

// readFleet reads what deployment.yaml says about the fleet.
func readFleet(file string, cfg aws.Config, table string) (deployment.Fleet, error) {
	data, err := readFile(file, nil)
	if err != nil {
		return deployment.Fleet{}, fmt.Errorf("read the deployment's configuration: %w", err)
	}
	fleet, err := deployment.ReadFleet(data, cfg, table)
	if err != nil {
		return fleet, fmt.Errorf("%s: %w", file, err)
	}
	return fleet, nil
}
