package deployment

import (
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/awscall"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	organizations "github.com/hallmark-ssh/hallmark/internal/signer/organization"
	"github.com/hallmark-ssh/hallmark/internal/signer/stored"
	"github.com/hallmark-ssh/hallmark/internal/strictyaml"
)

// organization is an AWS organization whose accounts may enroll instances, in addition to
// the list of accounts. Like that list, it belongs to the deployment and not to the policy.
type organization struct {
	ID string `yaml:"id"`
	// ReaderRole is the role that lists the accounts, in the management account or one of a
	// delegated administrator.
	ReaderRole string   `yaml:"reader_role"`
	AllowUnits []string `yaml:"allow_units"`
	DenyUnits  []string `yaml:"deny_units"`
	// MemberRole is the name of the role to assume in each account, with its path if it has
	// one. accountPlaceholder stands for the account's number.
	MemberRole string `yaml:"member_role"`
	// ExternalID is the external id of all these roles.
	ExternalID string `yaml:"external_id"`
}

const accountPlaceholder = "{account}"

var (
	// AWS Organizations API Reference, Organization and OrganizationalUnit.
	regexpOrganization = regexp.MustCompile(`^o-[a-z0-9]{10,32}$`)
	regexpUnit         = regexp.MustCompile(`^ou-[0-9a-z]{4,32}-[a-z0-9]{8,32}$`)
)

// maxScope bounds the units of a list.
const maxScope = 100

// anyAccount stands for an account's number where the form of a role is checked.
const anyAccount = ec2ref.Account("000000000000")

// check adds what is wrong with the settings. The region is one of the signer's.
func (o *organization) check(region ec2ref.Region, at strictyaml.Value) {
	required(at.Key("id"), "write the organization's, such as o-a1b2c3d4e5", o.checkID)
	required(at.Key("reader_role"), "write the ARN of the role that lists the accounts", func(at strictyaml.Value) { checkRole(o.ReaderRole, "", region, at) })
	required(at.Key("member_role"), "write the name of the role in each account, such as hallmark-member", o.checkMemberRole)
	required(at.Key("external_id"), "write the external id of the roles' trust policies", func(at strictyaml.Value) { checkExternalID(o.ExternalID, at) })
	checkUnits(o.AllowUnits, at.Key("allow_units"))
	checkUnits(o.DenyUnits, at.Key("deny_units"))
}

// required checks a setting, or adds that it is missing, with what to write.
func required(setting strictyaml.Value, fix string, check func(at strictyaml.Value)) {
	if !setting.Present() {
		setting.Missing(fix)
		return
	}
	check(setting)
}

func (o *organization) checkID(at strictyaml.Value) {
	if !regexpOrganization.MatchString(o.ID) {
		at.Failf("%.100q is not the id of an organization, such as o-a1b2c3d4e5", o.ID)
	}
}

func (o *organization) checkMemberRole(at strictyaml.Value) {
	if strings.HasPrefix(o.MemberRole, accountPlaceholder) {
		// In the function's IAM policy, * stands for the number. It must not admit every role.
		at.Failf("begin with a name, such as hallmark-%s", accountPlaceholder)
		return
	}
	name := "role/" + strings.ReplaceAll(o.MemberRole, accountPlaceholder, string(anyAccount))
	if strings.HasPrefix(o.MemberRole, "arn:") || !regexpRole.MatchString(name) || len(name) > maxRole {
		at.Failf("%.200q is not the name of a role; write the name alone, such as hallmark-member", o.MemberRole)
	}
}

// checkUnits refuses an empty list, which looks like "none" but would mean "all".
func checkUnits(units []string, at strictyaml.Value) {
	switch {
	case units != nil && len(units) == 0:
		at.Failf("empty; leave it out")
	case len(units) > maxScope:
		at.Failf("%d units, more than %d", len(units), maxScope)
	}
	for i, unit := range units {
		if !regexpUnit.MatchString(unit) {
			at.Entry(i).Failf("%.100q is not the id of an organizational unit, such as ou-ab12-c3d4e5f6", unit)
		} else if slices.Contains(units[:i], unit) {
			at.Entry(i).Failf("%q is listed twice; remove one", unit)
		}
	}
}

// account returns the role to assume in an account of the organization.
func (o *organization) account(partition ec2ref.Partition, id ec2ref.Account) inventory.Account {
	name := strings.ReplaceAll(o.MemberRole, accountPlaceholder, string(id))
	return inventory.Account{ID: id, Role: fmt.Sprintf("arn:%s:iam::%s:role/%s", partition, id, name), ExternalID: o.ExternalID}
}

func (o *organization) scope() organizations.Scope {
	return organizations.Scope{Allow: o.AllowUnits, Deny: o.DenyUnits}
}

// organizationID returns the id of the organization, or "".
func (d *deployment) organizationID() string {
	if d.Organization == nil {
		return ""
	}
	return d.Organization.ID
}

// store returns where the organization's accounts are stored.
func (d *deployment) store(table *dynamoDB, name string) organizations.Store {
	return organizations.Store{
		Name: organizations.Item + d.Audience,
		Text: func(item string) organizations.Text {
			return stored.Text{Client: table, Table: tableName(name), Name: item}
		},
	}
}

// members returns the stored list of the organization's accounts, nil without one.
func (p *parts) members(log *slog.Logger) (*organizations.Members, error) {
	d := p.deployment
	if d.Organization == nil {
		return nil, nil
	}
	if p.table == nil {
		return nil, errors.New("organization: it needs HALLMARK_LEDGER_TABLE, where the list of its accounts is stored")
	}
	return &organizations.Members{Store: d.store(p.table, p.env.table), Scope: d.Organization.scope(), Log: log, Now: Now}, nil
}

// member returns how to find the role for an account of the organization, nil without one.
func (d *deployment) member(members *organizations.Members) func(ec2ref.Account) (inventory.Account, bool) {
	if members == nil {
		return nil
	}
	return func(id ec2ref.Account) (inventory.Account, bool) {
		partition, err := d.Regions[0].Partition()
		if err != nil || !members.Knows(id) {
			return inventory.Account{}, false
		}
		return d.Organization.account(partition, id), true
	}
}

// refresher returns what reads the organization.
func (p *parts) refresher(log *slog.Logger) (*organizations.Refresher, error) {
	d := p.deployment
	region, err := ec2ref.OrganizationsRegion(d.Regions[0])
	if err != nil {
		return nil, err
	}
	url, err := endpoint(ec2ref.Organizations, region)
	if err != nil {
		return nil, err
	}
	reader, err := arn.Parse(d.Organization.ReaderRole)
	if err != nil {
		return nil, err
	}
	role := inventory.Account{ID: ec2ref.Account(reader.AccountID), Role: d.Organization.ReaderRole, ExternalID: d.Organization.ExternalID}
	return &organizations.Refresher{
		Organization: organizations.Reader{
			Client:      awscall.Client{HTTP: p.aws.HTTPClient, Now: Now},
			Credentials: inventory.Credentials(sts.NewFromConfig(p.aws), role),
			Endpoint:    url,
			Region:      region,
			ID:          d.Organization.ID,
			Scope:       d.Organization.scope(),
		},
		Store:    d.store(p.table, p.env.table),
		Scope:    d.Organization.scope(),
		Audience: d.Audience,
		Log:      log,
		Now:      Now,
	}, nil
}

// Organization returns where a deployment stores its organization's accounts, and which of
// them may enroll instances. It reads no other file that deployment.yaml names.
func Organization(data []byte, cfg aws.Config, table string) (organizations.Store, organizations.Scope, error) {
	d, err := parseDeployment(data)
	if err != nil {
		return organizations.Store{}, organizations.Scope{}, err
	}
	if d.Organization == nil {
		return organizations.Store{}, organizations.Scope{}, errors.New("the deployment has no organization")
	}
	return d.store(newDynamoDB(cfg, table), table), d.Organization.scope(), nil
}
