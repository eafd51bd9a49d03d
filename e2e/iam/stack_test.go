//go:build e2e

package iam

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/e2e/cfn"
)

const (
	account = "111122223333"
	region  = "us-west-2"

	member       = "222233334444"
	memberRole   = "arn:aws:iam::" + member + ":role/hallmark-member"
	otherLedger  = "arn:aws:dynamodb:eu-west-1:" + account + ":table/shared-ledger"
	enrollSecret = "arn:aws:secretsmanager:" + region + ":" + account + ":secret:hallmark-enroll-AbCdEf"
	fleetSecret  = "arn:aws:secretsmanager:" + region + ":" + account + ":secret:hallmark-fleet-AbCdEf"
	organization = "o-a1b2c3d4e5"
	management   = "333344445555"
	readerRole   = "arn:aws:iam::" + management + ":role/hallmark-organization"
	// organizationRole is the role of a member of the organization.
	organizationRole = "arn:aws:iam::" + member + ":role/" + memberRoleName
	memberRoleName   = "hallmark-org-member"
	endpoint         = "vpce-0a1b2c3d4e5f60718"
)

// variants are the ways to deploy the template that change who may do what.
func variants() map[string]map[string]string {
	return map[string]map[string]string{
		"public URL":           {},
		"probed machines":      {"ProbeMachines": "yes"},
		"in a VPC":             {"VpcSubnetIds": "subnet-0a1b2c3d4e5f60718", "VpcSecurityGroupIds": "sg-0a1b2c3d4e5f60718"},
		"URL with IAM":         {"UrlAuthType": "AWS_IAM"},
		"URL for organization": {"UrlAuthType": "AWS_IAM", "UrlOrganizationId": organization, "EventOrganizationId": organization},
		"private API":          {"Entry": "private-api", "VpcEndpointIds": endpoint},
		"private API with IAM": {"Entry": "private-api", "VpcEndpointIds": endpoint, "UrlAuthType": "AWS_IAM", "UrlOrganizationId": organization},
		"invocations":          {"Entry": "invoke", "UrlOrganizationId": organization},
		"members and secrets": {
			"MemberRoleArns": memberRole, "EventAccountIds": member, "TeleportSecretArn": enrollSecret, "FleetSecretArn": fleetSecret,
		},
		"organization": {
			"OrganizationId": organization, "OrganizationRoleName": memberRoleName, "OrganizationReaderRoleArn": readerRole,
		},
		"members by pattern":                {"MemberRoleArns": "arn:aws:iam::*:role/hallmark-member"},
		"packaged policy, another's ledger": {"PolicyIn": "package", "LedgerTableArn": otherLedger},
	}
}

// stack is the expanded template, with a name for everything.
type stack struct {
	*cfn.Stack
	parameters map[string]string
	simulator  *simulator
	// trust has the trust policies of the roles that the functions assume, by the names that
	// recordings use.
	trust map[string]document
}

func expand(t *testing.T, parameters map[string]string) *stack {
	t.Helper()
	parameters = maps.Clone(parameters)
	parameters["Audience"] = "hallmark.example.com"
	return expandIn(t, account, "template.yaml", parameters)
}

// expandIn expands a template of an account, with a path below the repository's root.
func expandIn(t *testing.T, account, path string, parameters map[string]string) *stack {
	t.Helper()
	s, err := cfn.Expand(t.Context(), filepath.Join("..", "..", path),
		cfn.Place{StackName: "hallmark", Region: region, Account: account}, parameters)
	if err != nil {
		t.Fatal(err)
	}
	return &stack{Stack: s, parameters: parameters}
}

// TestTemplate judges each variant of the template.
func TestTemplate(t *testing.T) {
	sim := startSimulator(t)
	trust := make(map[string]document)
	for _, r := range memberRoles(t) {
		for _, name := range r.names {
			trust[name] = documentOf(t, r.property(r.role, "AssumeRolePolicyDocument"))
		}
	}
	for name, parameters := range variants() {
		t.Run(name, func(t *testing.T) {
			s := expand(t, parameters)
			s.simulator, s.trust = sim, trust
			for name, check := range map[string]func(*testing.T, *stack){
				"functions may do what they do":     checkFunctionsMayDoWhatTheyDo,
				"functions need each permission":    checkFunctionsNeedEachPermission,
				"functions may do nothing else":     checkFunctionsMayDoNothingElse,
				"who may take on the roles":         checkWhoMayTakeOnTheRoles,
				"who may put events into the queue": checkWhoMayPutEventsIntoTheQueue,
				"who may put events on the bus":     checkWhoMayPutEventsOnTheBus,
				"who may call the functions":        checkWhoMayCallTheFunctions,
				"who may call the API":              checkWhoMayCallTheAPI,
			} {
				t.Run(name, func(t *testing.T) { check(t, s) })
			}
		})
	}
}

func (s *stack) has(resource string) bool {
	_, there := s.Resources[resource]
	return there
}

// arn returns the ARN of a resource of the stack.
func (s *stack) arn(resource string) string { return s.name(resource, "Arn") }

// name returns what a reference to a resource means, as CloudFormation documents it for the
// resource's type.
func (s *stack) name(resource, attribute string) string {
	id := "hallmark-" + resource
	at := func(service, format string) string {
		return fmt.Sprintf("arn:aws:%s:%s:%s:", service, region, account) + fmt.Sprintf(format, id)
	}
	switch kind := s.Resources[resource].Type + " " + attribute; kind {
	case "AWS::DynamoDB::Table Arn":
		return at("dynamodb", "table/%s")
	case "AWS::SQS::Queue Arn":
		return at("sqs", "%s")
	case "AWS::Lambda::Function Arn":
		return at("lambda", "function:%s")
	case "AWS::Logs::LogGroup Arn": // ends with :*, unlike others
		return at("logs", "log-group:%s:*")
	case "AWS::IAM::Role Arn":
		return "arn:aws:iam::" + account + ":role/" + id
	case "AWS::Events::Rule Arn":
		if bus, onBus := s.Resources[resource].Properties["EventBusName"]; onBus {
			return at("events", "rule/"+fmt.Sprint(cfn.Resolve(bus, s.name))+"/%s")
		}
		return at("events", "rule/%s")
	case "AWS::Events::EventBus Arn":
		return at("events", "event-bus/hallmark-members")
	case "AWS::Events::EventBus ":
		return "hallmark-members"
	case "AWS::SSM::Parameter ":
		return "/hallmark/hallmark/policy"
	case "AWS::ApiGateway::RestApi ":
		return "a1b2c3d4e5"
	case "AWS::Lambda::Function ", "AWS::Logs::LogGroup ", "AWS::SQS::Queue ", "AWS::IAM::Role ":
		return id
	default:
		panic("no name for " + resource + ", " + kind)
	}
}

// property resolves a property of a resource.
func (s *stack) property(resource, property string) any {
	return cfn.Resolve(s.Resources[resource].Properties[property], s.name)
}

// documentOf reads a policy document from a template.
func documentOf(t *testing.T, v any) document {
	t.Helper()
	m, ok := v.(map[string]any)
	if !ok {
		t.Fatalf("this is no policy document: %v", v)
	}
	d := document{Version: fmt.Sprint(m["Version"])}
	for _, s := range anyList(m["Statement"]) {
		d.Statement = append(d.Statement, s.(map[string]any))
	}
	return d
}

// anyList returns a list, or a list of the one value.
func anyList(v any) []any {
	if list, ok := v.([]any); ok {
		return list
	}
	return []any{v}
}

// rolePolicies are the inline policies of a role, by name.
func (s *stack) rolePolicies(t *testing.T, role string) map[string]document {
	t.Helper()
	policies := make(map[string]document)
	for _, p := range anyList(s.property(role, "Policies")) {
		m := p.(map[string]any)
		policies[fmt.Sprint(m["PolicyName"])] = documentOf(t, m["PolicyDocument"])
	}
	return policies
}

// whole returns one document with the statements of all.
func whole(policies map[string]document) document {
	var all []map[string]any
	for _, name := range slices.Sorted(maps.Keys(policies)) {
		all = append(all, policies[name].Statement...)
	}
	return policy(all...)
}

// functions are the stack's functions, by the name that recordings use.
func functions() map[string]string {
	return map[string]string{"enroll": "EnrollFunction", "fleet": "FleetFunction"}
}

// session is a function's role while the function uses it.
func session(function string) string {
	name := strings.TrimSuffix(functions()[function], "Function")
	return "arn:aws:sts::" + account + ":assumed-role/hallmark-" + name + "Role/hallmark-" + name + "Function"
}
