package deployment

import (
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws/arn"
	"go.yaml.in/yaml/v3"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
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

// UnmarshalYAML reads either form. It checks for unknown keys itself, because the decoder
// does not pass on that setting.
func (a *account) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		return n.Decode(&a.ID)
	}
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: an account is twelve digits, in quotes, or id, role and external_id", n.Line)
	}
	for i := 0; i < len(n.Content); i += 2 {
		if key := n.Content[i]; !slices.Contains([]string{"id", "role", "external_id"}, key.Value) {
			return fmt.Errorf("line %d: field %s not found in an account", key.Line, key.Value)
		}
	}
	type plain account // without this method
	return n.Decode((*plain)(a))
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

// check names the wrong entry. The region is one of the signer's.
func (list accounts) check(region ec2ref.Region) error {
	if err := checkList("accounts", list.ids(), ec2ref.ParseAccount, "twelve digits, in quotes"); err != nil {
		return err
	}
	partition, err := region.Partition()
	if err != nil {
		return fmt.Errorf("regions: %w", err)
	}
	var own ec2ref.Account
	for _, a := range list {
		if err := a.check(partition); err != nil {
			return fmt.Errorf("accounts: %s: %w", a.ID, err)
		}
		if a.Role != "" {
			continue
		}
		if own != "" {
			return fmt.Errorf("accounts: %s and %s have no role; only the function's own account can go without", own, a.ID)
		}
		own = a.ID
	}
	return nil
}

func (a account) check(partition ec2ref.Partition) error {
	if a.Role == "" {
		if a.ExternalID != "" {
			return errors.New("external_id: not used without role")
		}
		return nil
	}
	role, err := arn.Parse(a.Role)
	if err != nil || role.Service != "iam" || role.Region != "" || !regexpRole.MatchString(role.Resource) || len(role.Resource) > maxRole {
		return fmt.Errorf("role: %q is not the ARN of an IAM role", a.Role)
	}
	// With a role in another account, that account's EC2 could confirm this account's
	// instances.
	if role.AccountID != string(a.ID) {
		return fmt.Errorf("role: %s is in account %s", a.Role, role.AccountID)
	}
	if role.Partition != string(partition) {
		return fmt.Errorf("role: %s is not in the regions' partition, %s", a.Role, partition)
	}
	if !regexpExternalID.MatchString(a.ExternalID) || len(a.ExternalID) > maxExternalID {
		return fmt.Errorf("external_id: needed with role; 2 to %d letters, digits and characters of _+=,.@:/-", maxExternalID)
	}
	return nil
}
