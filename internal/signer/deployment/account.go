package deployment

import (
	"regexp"

	"github.com/aws/aws-sdk-go-v2/aws/arn"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/strictyaml"
)

// account is an AWS account whose instances may enroll: its number, optionally with the
// role to assume there. The role belongs to the deployment and not to the policy: it
// determines which account's EC2 the signer trusts.
type account struct {
	ID         ec2ref.Account `yaml:"id"`
	Role       string         `yaml:"role"`
	ExternalID string         `yaml:"external_id"`
}

// accounts is the deployment's list.
type accounts []account

// UnmarshalText reads the short form, the number alone. It implements
// encoding.TextUnmarshaler.
func (a *account) UnmarshalText(text []byte) error {
	a.ID = ec2ref.Account(text)
	return nil
}

var (
	// IAM API Reference, AssumeRole: RoleArn and ExternalId.
	regexpRole       = regexp.MustCompile(`^role/([\x21-\x7e]+/)?[A-Za-z0-9_+=,.@-]{1,64}$`)
	regexpExternalID = regexp.MustCompile(`^[A-Za-z0-9_+=,.@:/-]{2,}$`)
)

// These are AssumeRole's limits, and the limit for a role's path and name together.
// Counting in a regular expression would slow down every cold start.
const (
	maxExternalID = 1224
	maxRole       = len("role/") + 511 + 64
)

func (list accounts) ids() []ec2ref.Account {
	ids := make([]ec2ref.Account, len(list))
	for i, a := range list {
		ids[i] = a.ID
	}
	return ids
}

func (list accounts) inventory() []inventory.Account {
	converted := make([]inventory.Account, len(list))
	for i, a := range list {
		converted[i] = inventory.Account(a)
	}
	return converted
}

// check adds what is wrong with the entries. The region is one of the signer's, or empty if
// none is good.
func (list accounts) check(region ec2ref.Region, at strictyaml.Value) {
	checkList(list.ids(), parseAccount, "an account of 12 digits, in quotes", at)
	var own ec2ref.Account
	for i, a := range list {
		if a.ID == "" {
			at.Entry(i).Key("id").Missing("write the account's 12 digits, in quotes")
		}
		a.check(region, at.Entry(i))
		if _, err := ec2ref.ParseAccount(string(a.ID)); err != nil || a.Role != "" {
			continue
		}
		if own != "" && own != a.ID {
			at.Entry(i).Failf("%s and %s have no role; only the function's own account can go without", own, a.ID)
		}
		own = a.ID
	}
}

// parseAccount lets pass a number that is missing: its error is another one.
func parseAccount(text string) (ec2ref.Account, error) {
	if text == "" {
		return "", nil
	}
	return ec2ref.ParseAccount(text)
}

func (a account) check(region ec2ref.Region, at strictyaml.Value) {
	if a.Role == "" {
		if a.ExternalID != "" {
			at.Key("external_id").Failf("not used without role")
		}
		return
	}
	checkExternalID(a.ExternalID, at.Key("external_id"))
	id := a.ID
	if _, err := ec2ref.ParseAccount(string(id)); err != nil {
		id = "" // a role in an account that cannot be would be no fix
	}
	checkRole(a.Role, id, region, at.Key("role"))
}

func checkExternalID(id string, at strictyaml.Value) {
	switch {
	case id == "":
		at.Failf("needed with role; write the external id of the role's trust policy")
	case !regexpExternalID.MatchString(id) || len(id) > maxExternalID:
		at.Failf("%.100q is not an external id: 2 to %d letters, digits and characters of _+=,.@:/-", id, maxExternalID)
	}
}

// checkRole checks the ARN of a role in that account, or in any if it is empty.
func checkRole(text string, account ec2ref.Account, region ec2ref.Region, at strictyaml.Value) {
	role, err := arn.Parse(text)
	if err != nil || role.Service != "iam" || role.Region != "" || !regexpRole.MatchString(role.Resource) || len(role.Resource) > maxRole {
		at.Failf("%.200q is not the ARN of an IAM role, such as arn:aws:iam::111122223333:role/hallmark-member", text)
		return
	}
	// With a role in another account, that account's EC2 could confirm this account's
	// instances.
	if account != "" && role.AccountID != string(account) {
		at.Failf("%s is in account %s; write a role in account %s", text, role.AccountID, account)
	}
	if partition, err := region.Partition(); err == nil && role.Partition != string(partition) {
		at.Failf("%s is not in the regions' partition, %s", text, partition)
	}
}
