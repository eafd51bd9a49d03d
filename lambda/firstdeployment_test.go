package main

import (
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
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
