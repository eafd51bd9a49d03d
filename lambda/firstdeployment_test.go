package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/hallmark-ssh/hallmark/e2e/cfn"
)

// CloudFormation refuses a template whose rules call any other function, and cfn-lint does
// not notice (CloudFormation user guide, "Rule-specific intrinsic functions").
func TestRulesUseOnlyRuleFunctions(t *testing.T) {
	permitted := []string{
		"!And", "!Contains", "!EachMemberEquals", "!EachMemberIn", "!Equals", "!If", "!Not", "!Or", "!Ref", "!RefAll", "!ValueOf", "!ValueOfAll",
	}
	for _, name := range templates {
		var visit func(n *yaml.Node)
		visit = func(n *yaml.Node) {
			if strings.HasPrefix(n.Tag, "!") && !strings.HasPrefix(n.Tag, "!!") && !slices.Contains(permitted, n.Tag) {
				t.Errorf("%s:%d: rules take no %s", name, n.Line, n.Tag)
			}
			for i, child := range n.Content {
				if n.Kind == yaml.MappingNode && i%2 == 0 && strings.HasPrefix(child.Value, "Fn::") &&
					!slices.Contains(permitted, "!"+strings.TrimPrefix(child.Value, "Fn::")) {
					t.Errorf("%s:%d: rules take no %s", name, child.Line, child.Value)
				}
				visit(child)
			}
		}
		visit(field(readTemplate(t, name), "Rules"))
	}
}

// If any of these changes, CloudFormation overwrites the policy in force with the stack's
// first one: the resource's handler writes every property, including the value.
func TestThePolicyParameterNeverChanges(t *testing.T) {
	parameter := field(readTemplate(t, "template.yaml"), "Resources", "PolicyParameter")
	const want = `{Name: !Sub /hallmark/${AWS::StackName}/policy, ` +
		`Description: Hallmark's policy. A change counts within a minute; a broken one keeps the last good one., ` +
		`Type: String, Tier: Intelligent-Tiering, Value: !Ref PolicyText}`
	if got := flow(field(parameter, "Properties")); got != want {
		t.Errorf("the policy parameter's properties are\n%s\nand were released as\n%s", got, want)
	}
	for _, attribute := range []struct{ name, want string }{{"DeletionPolicy", "RetainExceptOnCreate"}, {"UpdateReplacePolicy", "Retain"}} {
		if got := field(parameter, attribute.name).Value; got != attribute.want {
			t.Errorf("%s is %q, want %q", attribute.name, got, attribute.want)
		}
	}
}

// Resources that outlive the stack must go when its first deployment fails: an orphan blocks
// the second attempt, or stays and costs money.
func TestAFailedFirstDeploymentLeavesNothing(t *testing.T) {
	resources := field(readTemplate(t, "template.yaml"), "Resources")
	kept := 0
	for i := 0; i < len(resources.Content); i += 2 {
		name, resource := resources.Content[i].Value, resources.Content[i+1]
		switch policy := field(resource, "DeletionPolicy").Value; policy {
		case "":
		case "RetainExceptOnCreate":
			kept++
		default:
			t.Errorf("%s has DeletionPolicy %s", name, policy)
		}
	}
	if kept < 4 {
		t.Errorf("%d resources outlive the stack, want the table, the policy and both log groups", kept)
	}
	// CloudFormation cannot roll back a protected table.
	protection := field(resources, "LedgerTable", "Properties", "DeletionProtectionEnabled")
	if got := flow(protection); got != "!If [ProtectsLedger, true, false]" {
		t.Errorf("the table's deletion protection is %s", got)
	}
	if got := field(readTemplate(t, "template.yaml"), "Parameters", "ProtectLedger", "Default").Value; got != "no" {
		t.Errorf("ProtectLedger is %q at first", got)
	}
}

// With a concurrency of 0 the property is left out; a literal 0 would stop the function.
func TestNoReservedConcurrency(t *testing.T) {
	template := readTemplate(t, "template.yaml")
	for function, of := range map[string]struct{ condition, parameter string }{
		"EnrollFunction": {"ReservesEnroll", "ReservedConcurrency"},
		"FleetFunction":  {"ReservesFleet", "FleetReservedConcurrency"},
	} {
		want := "!If [" + of.condition + ", !Ref " + of.parameter + ", !Ref AWS::NoValue]"
		if got := flow(field(template, "Resources", function, "Properties", "ReservedConcurrentExecutions")); got != want {
			t.Errorf("%s reserves %s, want %s", function, got, want)
		}
		want = "!Not [!Equals [!Ref " + of.parameter + ", 0]]"
		if got := flow(field(template, "Conditions", of.condition)); got != want {
			t.Errorf("%s is %s, want %s", of.condition, got, want)
		}
		if field(template, "Parameters", of.parameter, "MinValue").Value != "0" {
			t.Errorf("%s cannot be 0", of.parameter)
		}
	}
}

// stackIn evaluates the template for a region and parameters.
func stackIn(t *testing.T, region string, parameters map[string]string) (*cfn.Stack, error) {
	t.Helper()
	parameters = maps.Clone(parameters)
	parameters["Audience"] = "hallmark.example.com"
	place := cfn.Place{StackName: "hallmark", Region: region, Account: string(testAccount)}
	s, err := cfn.Expand(t.Context(), filepath.Join("..", "template.yaml"), place, parameters)
	if errors.Is(err, cfn.ErrNoTranslator) && os.Getenv("HALLMARK_TEST_STRICT") == "" {
		t.Skip(err)
	}
	return s, err
}

// GovCloud refuses functions whose own log lines are JSON (AWS GovCloud (US) User Guide, "AWS
// Lambda"). Log levels need JSON.
func TestLogsInGovCloud(t *testing.T) {
	for region, want := range map[string]string{
		"us-gov-west-1": "Text <nil> <nil>", "us-west-2": "JSON INFO INFO",
	} {
		s, err := stackIn(t, region, map[string]string{"Entry": "invoke"})
		if err != nil {
			t.Fatal(err)
		}
		for _, function := range []string{"EnrollFunction", "FleetFunction"} {
			logging, _ := s.Resources[function].Properties["LoggingConfig"].(map[string]any)
			if got := fmt.Sprintf("%v %v %v", logging["LogFormat"], logging["ApplicationLogLevel"], logging["SystemLogLevel"]); got != want {
				t.Errorf("%s: %s logs %s, want %s", region, function, got, want)
			}
			if logging["LogGroup"] == nil {
				t.Errorf("%s: %s has no log group of its own", region, function)
			}
		}
	}
}

// Lambda wants both or neither: a list with an empty text is a group that does not exist.
func TestSubnetsNeedSecurityGroups(t *testing.T) {
	const subnets, groups = "subnet-0a1b2c3d4e5f60718,subnet-0a1b2c3d4e5f60719", "sg-0a1b2c3d4e5f60718"
	for _, test := range []struct {
		subnets, groups, refused string
		inVPC                    bool
	}{
		{},
		{subnets: subnets, groups: groups, inVPC: true},
		{subnets: subnets, refused: "VpcSubnetIds needs VpcSecurityGroupIds"},
		{groups: groups, refused: "VpcSecurityGroupIds needs VpcSubnetIds"},
	} {
		s, err := stackIn(t, "us-west-2", map[string]string{"VpcSubnetIds": test.subnets, "VpcSecurityGroupIds": test.groups})
		if test.refused != "" {
			if err == nil || !strings.Contains(err.Error(), test.refused) {
				t.Errorf("subnets %q and groups %q: error %v, want %q", test.subnets, test.groups, err, test.refused)
			}
			continue
		}
		if err != nil {
			t.Errorf("subnets %q and groups %q: %v", test.subnets, test.groups, err)
			continue
		}
		for _, function := range []string{"EnrollFunction", "FleetFunction"} {
			if _, inVPC := s.Resources[function].Properties["VpcConfig"]; inVPC != test.inVPC {
				t.Errorf("subnets %q: %s is in a VPC: %t", test.subnets, function, inVPC)
			}
		}
	}
}

// IAM refuses a policy whose resource is not an ARN, but only after CloudFormation has begun.
func TestARNsAreChecked(t *testing.T) {
	const secret = "arn:aws:secretsmanager:us-west-2:111122223333:secret:"
	for _, parameter := range []string{"TeleportSecretArn", "FleetSecretArn"} {
		pattern := regexp.MustCompile(field(readTemplate(t, "template.yaml"), "Parameters", parameter, "AllowedPattern").Value)
		for value, want := range map[string]bool{
			"": true, secret + "hallmark/enroll-AbCdEf": true, strings.Replace(secret, "aws:", "aws-us-gov:", 1) + "a_b+c=d.e@f-AbCdEf": true,
			"hallmark/enroll": false, secret: false, secret + "*": false, "*": false,
		} {
			if pattern.MatchString(value) != want {
				t.Errorf("%s %q: accepted %t", parameter, value, !want)
			}
		}
	}
}
