package operator

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	policytemplates "github.com/hallmark-ssh/hallmark/templates/policy"
)

const (
	policyCheckLong = `Checks a policy file, and reports everything that is wrong, each with its line and the fix.
Warns of rules that can never match, and of tag keys that differ from another only in case,
hyphens or underscores. Warnings do not change the exit code.`

	policyExplainLong = `Shows which rule decides about an instance, why earlier rules do not, and what the instance
would get. With --instance it makes no calls: FACTS.json contains what EC2 would answer.

With --live it asks EC2 about a real instance, as the signer does, with your own AWS
credentials or with the account's role in deployment.yaml. With --table it also asks the
ledger whether the instance has enrolled. Without --table the instance counts as new.

Ages are computed as of --now, by default the present time. In FACTS.json, account, region and
instance_id are required. Where a rule asks for them, add account_name, account_path, vpc,
subnet, zone, instance_profile, image, image_owner, image_owner_member, image_tags, launch_time,
enrolled, private_ip, public_ip, ipv6, private_dns and tags. Exit code 4 means that the policy
refuses the instance.`

	policySchemaLong = `Prints the JSON schema of policy files. To use it in an editor with the YAML language
server, start the policy with # yaml-language-server: $schema=policy.schema.json`
)

// deploymentFlag adds the flag that names the deployment whose limits a policy must keep.
func deploymentFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "deployment", "", "check against the accounts, regions and longest lifetime in this deployment `file`")
}

// maxFileBytes bounds how much of a file is read; the parsers have their own bounds.
const maxFileBytes = 1 << 20

func policyCheckCommand() *cobra.Command {
	var deploymentFile string
	cmd := &cobra.Command{
		Use: "check FILE|-", Short: "check a policy file", Long: policyCheckLong, Args: cli.OneFile,
		RunE: func(cmd *cobra.Command, args []string) error { return runPolicyCheck(cmd, args[0], deploymentFile) },
	}
	deploymentFlag(cmd, &deploymentFile)
	return cmd
}

// A parameter of the standard tier holds 4,096 characters, one of the advanced tier 8 KB
// (AWS Systems Manager User Guide, "Managing parameter tiers").
const (
	standardTier = 4096
	advancedTier = 8192
)

// tier says what a policy of this size needs, if the default tier is too small.
func tier(size int) string {
	switch {
	case size <= standardTier:
		return ""
	case size <= advancedTier:
		return fmt.Sprintf("tier: advanced: the policy has %d bytes, and a standard parameter holds %d; run 'aws ssm put-parameter' with --tier Intelligent-Tiering\n",
			size, standardTier)
	default:
		return fmt.Sprintf("tier: none: the policy has %d bytes, and an advanced parameter holds %d; deploy it in the package, with PolicyIn=package\n",
			size, advancedTier)
	}
}

func runPolicyCheck(cmd *cobra.Command, file, deploymentFile string) error {
	p, _, err := readPolicyFile(cmd, file, deploymentFile)
	if err != nil {
		return err
	}
	for _, w := range p.Warnings() {
		cli.Note(cmd, "warning: %s: %s", title(file), w)
	}
	// The parser only needs to know which rules there are, not what they decide.
	rules := p.Explain(node.Facts{}, node.Cluster{}, time.Time{}).Rules
	names := make([]string, len(rules))
	for i, r := range rules {
		names[i] = r.Rule
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: good\nrules: %s\nsha256: %s\n%s", title(file), strings.Join(names, ", "), p.SHA256, tier(p.Size))
	return err
}

// readPolicyFile reads a policy file, and the names of its deployment's cluster.
func readPolicyFile(cmd *cobra.Command, file, deploymentFile string) (*policy.Policy, node.Cluster, error) {
	limits, cluster, err := readLimits(deploymentFile)
	if err != nil {
		return nil, cluster, err
	}
	data, err := readFile(file, cmd.InOrStdin())
	if err != nil {
		return nil, cluster, fmt.Errorf("read the policy: %w", err)
	}
	p, err := policy.Parse(data, limits)
	if err != nil {
		return nil, cluster, fmt.Errorf("%s: %w", title(file), err)
	}
	if deploymentFile == "" {
		cli.Note(cmd, "accounts, regions and lifetimes not checked; pass --deployment")
	}
	return p, cluster, nil
}

// readLimits reads what a deployment allows, and no other file that the deployment names.
// Without a deployment, everything is allowed.
func readLimits(file string) (policy.Limits, node.Cluster, error) {
	if file == "" {
		return policy.Unlimited(), node.Cluster{}, nil
	}
	data, err := readFile(file, nil)
	if err != nil {
		return policy.Limits{}, node.Cluster{}, fmt.Errorf("read the deployment's configuration: %w", err)
	}
	limits, cluster, err := deployment.Limits(data)
	if err != nil {
		return limits, cluster, fmt.Errorf("%s: %w", file, err)
	}
	return limits, cluster, nil
}

func title(file string) string {
	if file == "-" {
		return "standard input"
	}
	return file
}

// readFile reads a file, or the reader for the name "-", if there is one.
func readFile(name string, stdin io.Reader) ([]byte, error) {
	in := stdin
	if name != "-" || stdin == nil {
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer func() { _ = file.Close() }()
		in = file
	}
	data, err := io.ReadAll(io.LimitReader(in, maxFileBytes+1))
	if err == nil && len(data) > maxFileBytes {
		err = fmt.Errorf("%s: more than %d bytes", name, maxFileBytes)
	}
	return data, err
}

func policyExplainCommand() *cobra.Command {
	var e explaining
	cmd := &cobra.Command{
		Use: "explain FILE|- --instance FACTS.json|--live ID", Short: "explain what a policy decides for an instance",
		Long: policyExplainLong, Args: cli.OneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runPolicyExplain(cmd, args[0], e)
		},
	}
	deploymentFlag(cmd, &e.deployment)
	cmd.Flags().StringVar(&e.instance, "instance", "", "JSON `file` of what is known about the instance")
	cmd.Flags().StringVar(&e.live, "live", "", "ask EC2 about the instance with this `id`; needs --deployment")
	cmd.Flags().StringVar((*string)(&e.at.Account), "account", "", "with --live: the instance's `account`, if the deployment lists several")
	cmd.Flags().StringVar((*string)(&e.at.Region), "region", "", "with --live: the instance's `region`, if the deployment lists several")
	cmd.Flags().StringVar(&e.table, "table", "", "with --live: the ledger's DynamoDB `table`, by name or ARN")
	cmd.Flags().StringVar(&e.now, "now", "", "decide as of this `time`, such as 2026-11-27T08:00:00Z; default: the present time")
	return cmd
}

func runPolicyExplain(cmd *cobra.Command, file string, e explaining) error {
	now, err := e.check(cmd)
	if err != nil {
		return err
	}
	p, cluster, err := readPolicyFile(cmd, file, e.deployment)
	if err != nil {
		return err
	}
	facts, err := e.facts(cmd)
	if err != nil {
		return err
	}
	explained := p.Explain(facts, cluster, now)
	if _, err := io.WriteString(cmd.OutOrStdout(), explain(explained, facts)); err != nil {
		return err
	}
	if errors.Is(explained.Err, policy.ErrRefused) || errors.Is(explained.Err, policy.ErrIncomplete) {
		return &cli.Error{Err: explained.Err, Code: cli.Refused}
	}
	return explained.Err
}

// explain renders an explanation: a line for each rule, and then a line for each thing that
// the instance gets.
func explain(e policy.Explanation, f node.Facts) string {
	var b strings.Builder
	for _, v := range e.Rules {
		fmt.Fprintf(&b, "line %d: rule %q %s", v.Line, v.Rule, v.Outcome)
		if v.Why != "" {
			fmt.Fprintf(&b, ": %s", v.Why)
		}
		b.WriteByte('\n')
	}
	if e.Err != nil {
		return b.String()
	}
	show := func(what, value string) { fmt.Fprintf(&b, "%-12s %s\n", what+":", value) }
	d := e.Decision
	b.WriteByte('\n')
	show("rule", d.Rule)
	show("host name", d.Hostname)
	if d.Fallback != "" {
		show("if taken", d.Fallback)
	}
	id := ec2ref.Instance{Account: f.Account, Region: f.Region, ID: f.InstanceID}.NodeID()
	for _, name := range node.Principals(d.Hostname, id, "<cluster>", d.Names) {
		show("principal", name)
	}
	show("address", d.Address)
	show("lifetime", policy.Duration(d.Lifetime).String())
	for _, key := range slices.Sorted(maps.Keys(d.Labels)) {
		show("label", key+"="+d.Labels[key])
	}
	for _, key := range d.SkippedTags {
		show("no label", fmt.Sprintf("tag %q", key))
	}
	for _, note := range d.Notes {
		show("note", note)
	}
	return b.String()
}

func policySchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use: "schema", Short: "print the JSON schema of policy files, for editors",
		Long: policySchemaLong, Args: cli.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(policytemplates.Schema)
			return err
		},
	}
}
