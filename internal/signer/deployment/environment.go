package deployment

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/enroll"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy/live"
	"github.com/hallmark-ssh/hallmark/internal/signer/stored"
	"github.com/hallmark-ssh/hallmark/internal/signer/upkeep"
)

// environment is the configuration outside deployment.yaml: the names of resources that
// the same template creates.
type environment struct {
	// table is the ledger's DynamoDB table, by name, or by ARN if it is in another region
	// of the account. Empty means that the ledger is in memory.
	table string
	// parameter is the SSM parameter that holds the policy, by name or ARN. Empty means
	// that the policy is deployed with the program.
	parameter string
	// entry is how requests reach the function; the default is its URL.
	entry entry.Kind
	// audience is the audience that the stack's alarms assume. Empty means unknown.
	audience string
	// probes says that the fleet function has a route to the machines, and probes them.
	probes bool
	// organization is the organization that the stack's roles are for, or empty.
	organization string
	// isFunction says that the program runs in Lambda.
	isFunction bool
}

// readEnvironment refuses a memory ledger inside Lambda: each cold start would lose it,
// and each of the function's environments would have its own. A stolen identity role or a
// copied host key could then enroll through another environment.
func readEnvironment() (environment, error) {
	e := environment{
		table:     os.Getenv("HALLMARK_LEDGER_TABLE"),
		parameter: os.Getenv("HALLMARK_POLICY_PARAMETER"),
		audience:  os.Getenv("HALLMARK_AUDIENCE"),
		entry:     entry.URL,

		organization: os.Getenv("HALLMARK_ORGANIZATION"),
		isFunction:   os.Getenv("AWS_LAMBDA_FUNCTION_NAME") != "",
	}
	if text := os.Getenv("HALLMARK_ENTRY"); text != "" {
		var err error
		if e.entry, err = entry.Parse(text); err != nil {
			return e, fmt.Errorf("HALLMARK_ENTRY: %w", err)
		}
	}
	if text := os.Getenv("HALLMARK_PROBE_MACHINES"); text != "" {
		var err error
		if e.probes, err = strconv.ParseBool(text); err != nil {
			return e, fmt.Errorf("HALLMARK_PROBE_MACHINES: %q is neither true nor false", text)
		}
	}
	if function := os.Getenv("AWS_LAMBDA_FUNCTION_NAME"); function != "" && e.table == "" {
		return e, fmt.Errorf("function %s has no ledger that lasts: set HALLMARK_LEDGER_TABLE to the name or ARN of its "+
			"DynamoDB table, with a string partition key pk (template.yaml has it)", function)
	}
	if e.parameter != "" && e.table == "" {
		return e, errors.New("HALLMARK_POLICY_PARAMETER needs HALLMARK_LEDGER_TABLE, where the last good policy is kept")
	}
	return e, nil
}

// checkAudience stops the stack's alarms from watching metrics of another audience, which
// would never fire.
func (e environment) checkAudience(audience string) error {
	if e.audience != "" && e.audience != audience {
		return fmt.Errorf("the stack's parameter Audience (HALLMARK_AUDIENCE) is %q, and audience in deployment.yaml is %q: make them the same",
			e.audience, audience)
	}
	return nil
}

// checkOrganization refuses an organization that the stack's roles and schedule are not
// for: the list of its accounts would never be read.
func (e environment) checkOrganization(id string) error {
	if (e.isFunction || e.organization != "") && e.organization != id {
		return fmt.Errorf("the stack's parameter OrganizationId (HALLMARK_ORGANIZATION) is %q, and organization.id in deployment.yaml is %q: make them the same",
			e.organization, id)
	}
	return nil
}

// checkEntry refuses settings that do not work with the entry: they would only seem to
// protect the function.
func (d *deployment) checkEntry(kind entry.Kind) error {
	known := kind.Sender()
	switch {
	case !known.Source && len(d.AllowSources) > 0:
		return fmt.Errorf("allow_sources: with the entry %s (HALLMARK_ENTRY), requests have no source: remove the list; IAM decides who may invoke the function", kind)
	case !known.IAM && d.URLAuth == urlAuthIAM:
		return fmt.Errorf("url_auth: with the entry %s (HALLMARK_ENTRY), Lambda itself checks who invokes the function: remove the setting", kind)
	case !known.Endpoint && len(d.endpoints) > 0:
		return fmt.Errorf("allow_sources: %s is a VPC endpoint, and with the entry %s (HALLMARK_ENTRY), requests come through none: "+
			"list networks, or set the stack's Entry to private-api", d.endpoints[0], kind)
	}
	return nil
}

// ledgers is a ledger for either function.
type ledgers interface {
	enroll.Ledger
	enroll.Refusals
	upkeep.Ledger
	upkeep.Records
	upkeep.HealthLedger
	enroll.HealthLedger
}

// ledger returns the ledger, and the client of its table, nil if it is in memory.
func (e environment) ledger(cfg aws.Config) (ledgers, *dynamoDB) {
	if e.table == "" {
		return new(ledger.Memory), nil
	}
	client := newDynamoDB(cfg, e.table)
	return ledger.NewDynamoDB(client, tableName(e.table), Now), client
}

// OpenLedger returns the ledger in a DynamoDB table, by the table's name or ARN.
func OpenLedger(cfg aws.Config, table string) *ledger.DynamoDB {
	return ledger.NewDynamoDB(newDynamoDB(cfg, table), tableName(table), Now)
}

// policy returns the source of the current policy.
func (e environment) policy(d *deployment, cfg aws.Config, table *dynamoDB, log *slog.Logger) (func(context.Context) (*policy.Policy, error), error) {
	if e.parameter == "" {
		return func(context.Context) (*policy.Policy, error) { return d.policy, nil }, nil
	}
	if d.PolicyFile != "" {
		return nil, errors.New("policy_file and HALLMARK_POLICY_PARAMETER are both set, and there can be one policy: remove one (template.yaml: PolicyIn)")
	}
	cfg.Region = RegionOf(e.parameter, cfg.Region)
	url, err := endpoint(ec2ref.SSM, ec2ref.Region(cfg.Region))
	if err != nil {
		return nil, fmt.Errorf("HALLMARK_POLICY_PARAMETER: %w", err)
	}
	return live.New(live.Config{
		Fetch:    live.Parameter{AWS: cfg, Endpoint: url, Name: e.parameter, Now: Now}.Fetch,
		LastGood: stored.Text{Client: table, Table: tableName(e.table), Name: policyItem + d.Audience},
		Limits:   d.limits(),
		Now:      Now,
		Log:      log,
	}).Current, nil
}

// endpoint returns the URL of an AWS service in a region, or the value of the SDK's
// variable for the service.
func endpoint(service ec2ref.Service, region ec2ref.Region) (string, error) {
	if other := os.Getenv("AWS_ENDPOINT_URL_" + strings.ToUpper(string(service))); other != "" {
		return other, nil
	}
	host, err := service.Host(region)
	return "https://" + host + "/", err
}

// tableName returns the name in a table's ARN, or the name itself.
func tableName(table string) string {
	if parsed, err := arn.Parse(table); err == nil {
		return strings.TrimPrefix(parsed.Resource, "table/")
	}
	return table
}

// RegionOf returns the region in an ARN, or the given default if the name is not an ARN.
// All signers of a cluster share one ledger in one home region: in a table replicated
// between regions, the last of two claims wins, not the first.
func RegionOf(name, otherwise string) string {
	if parsed, err := arn.Parse(name); err == nil && parsed.Region != "" {
		return parsed.Region
	}
	return otherwise
}
