package operator

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	policytemplates "github.com/hallmark-ssh/hallmark/templates/policy"
)

const (
	policyCheckUsage = `usage: hallmark-signer policy check FILE|- [--deployment FILE]

Says whether the policy is good, or what is wrong on which line.

  --deployment FILE  the signer's deployment.yaml, whose accounts, regions and longest
                     lifetime the policy may only narrow
`
	policyExplainUsage = `usage: hallmark-signer policy explain FILE|- --instance FACTS.json [--deployment FILE]

Says which rule decides on an instance, why those before it do not, and what the
instance would get. Nobody is asked: what EC2 would say is in FACTS.json. It takes
account, region and instance_id, and where a rule asks for them vpc, subnet, zone,
instance_profile, image, image_owner, image_tags, launch_time, enrolled, private_ip,
public_ip, ipv6, private_dns and tags. Exit code 4 means that the policy refuses.

  --instance FILE    what is known of the instance
  --deployment FILE  the signer's deployment.yaml
`
	policySchemaUsage = `usage: hallmark-signer policy schema

Prints the JSON schema of policy files. An editor with the YAML language server uses
it by a first line: # yaml-language-server: $schema=policy.schema.json
`
)

// maxFileBytes bounds what is read of a file; the parsers have bounds of their own.
const maxFileBytes = 1 << 20

func runPolicyCheck(_ context.Context, args []string, std streams) error {
	flags := flag.NewFlagSet("policy check", flag.ContinueOnError)
	deploymentFile := flags.String("deployment", "", "")
	files, err := parse(flags, args)
	if err != nil {
		return err
	}
	p, _, err := readPolicyFile(flags.Name(), files, *deploymentFile, std)
	if err != nil {
		return err
	}
	// What becomes of the rules is of no interest, only which there are.
	rules := p.Explain(policy.Facts{}, policy.Cluster{}, time.Time{}).Rules
	names := make([]string, len(rules))
	for i, r := range rules {
		names[i] = r.Rule
	}
	_, err = fmt.Fprintf(std.out, "%s: good\nrules: %s\nsha256: %s\n", title(files[0]), strings.Join(names, ", "), p.SHA256)
	return err
}

// readPolicyFile reads the one file of a command line, and tells the names that
// the deployment goes by.
func readPolicyFile(command string, files []string, deploymentFile string, std streams) (*policy.Policy, policy.Cluster, error) {
	if len(files) != 1 {
		return nil, policy.Cluster{}, usagef("%s: want one file, or - for standard input", command)
	}
	limits, cluster, err := readLimits(deploymentFile)
	if err != nil {
		return nil, cluster, err
	}
	data, err := readFile(files[0], std.in)
	if err != nil {
		return nil, cluster, fmt.Errorf("read the policy: %w", err)
	}
	p, err := policy.Parse(data, limits)
	if err != nil {
		return nil, cluster, fmt.Errorf("%s: %w", title(files[0]), err)
	}
	if deploymentFile == "" {
		fmt.Fprintln(std.err, "hallmark-signer: accounts, regions and lifetimes are not compared with a deployment's, which --deployment names")
	}
	return p, cluster, nil
}

// readLimits reads what a deployment allows, and no other file that it names. No
// deployment allows everything.
func readLimits(file string) (policy.Limits, policy.Cluster, error) {
	if file == "" {
		return policy.Unlimited(), policy.Cluster{}, nil
	}
	data, err := readFile(file, nil)
	if err != nil {
		return policy.Limits{}, policy.Cluster{}, fmt.Errorf("read the deployment's configuration: %w", err)
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

// readFile reads a file, or the reader, if there is one, for the name "-".
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

func runPolicyExplain(_ context.Context, args []string, std streams) error {
	flags := flag.NewFlagSet("policy explain", flag.ContinueOnError)
	deploymentFile := flags.String("deployment", "", "")
	instance := flags.String("instance", "", "")
	files, err := parse(flags, args)
	if err != nil {
		return err
	}
	if *instance == "" {
		return usagef("policy explain: --instance is missing")
	}
	p, cluster, err := readPolicyFile(flags.Name(), files, *deploymentFile, std)
	if err != nil {
		return err
	}
	data, err := readFile(*instance, nil)
	if err != nil {
		return fmt.Errorf("read the instance's facts: %w", err)
	}
	facts, err := policy.ParseFacts(data)
	if err != nil {
		return fmt.Errorf("%s: %w", *instance, err)
	}
	e := p.Explain(facts, cluster, deployment.Now())
	if _, err := io.WriteString(std.out, explain(e, facts)); err != nil {
		return err
	}
	if errors.Is(e.Err, policy.ErrRefused) || errors.Is(e.Err, policy.ErrIncomplete) {
		return &failure{err: e.Err, code: exitRefused}
	}
	return e.Err
}

// explain renders an explanation: a line for each rule, and then one for each thing
// that the instance gets.
func explain(e policy.Explanation, f policy.Facts) string {
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
	for _, name := range principals(d, f) {
		show("principal", name)
	}
	show("address", d.Address)
	show("lifetime", d.Lifetime.String())
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

// principals are the certificates' names, of which the policy knows all but the
// cluster's.
func principals(d policy.Decision, f policy.Facts) []string {
	id := protocol.NodeID(f.Account, f.Region, f.InstanceID)
	return append([]string{d.Hostname, id, d.Hostname + ".<cluster>", id + ".<cluster>"}, d.Names...)
}

func runPolicySchema(_ context.Context, args []string, std streams) error {
	if err := parseNone(flag.NewFlagSet("policy schema", flag.ContinueOnError), args); err != nil {
		return err
	}
	_, err := std.out.Write(policytemplates.Schema)
	return err
}
