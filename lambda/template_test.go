package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/hallmark-ssh/hallmark/internal/policy"
)

var update = flag.Bool("update", false, "write the golden files")

// Whoever widens what the function or the member accounts' role may do has to
// change this list with it.
func TestPermissionsOfTheTemplates(t *testing.T) {
	var got strings.Builder
	for _, name := range []string{"template.yaml", "templates/member-account/role.yaml"} {
		fmt.Fprintf(&got, "%s\n", name)
		resources := field(readTemplate(t, name), "Resources")
		for i := 0; i < len(resources.Content); i += 2 {
			describe(&got, resources.Content[i].Value, resources.Content[i+1])
		}
	}
	golden := filepath.Join("testdata", "permissions.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("the templates' permissions differ from %s; if that is meant, run the test with -update.\n%s", golden, got.String())
	}
}

// describe writes every statement below a resource, and resources that are a
// permission in themselves.
func describe(w *strings.Builder, name string, resource *yaml.Node) {
	if field(resource, "Type").Value == "AWS::Lambda::Permission" {
		fmt.Fprintf(w, "\n%s: %s\n", name, flow(field(resource, "Properties")))
	}
	if url := field(field(resource, "Properties"), "FunctionUrlConfig"); url.Kind != 0 {
		fmt.Fprintf(w, "\n%s: function URL %s\n", name, flow(url))
	}
	walk(resource, name, func(path string, n *yaml.Node) {
		for _, list := range []string{"Statement", "ManagedPolicyArns"} {
			if statements := field(n, list); statements.Kind != 0 {
				fmt.Fprintf(w, "\n%s:\n", path)
				for _, s := range statements.Content {
					fmt.Fprintf(w, "  %s\n", flow(s))
				}
			}
		}
	})
}

// walk visits every mapping, with a path of the keys and policy names above it.
func walk(n *yaml.Node, path string, visit func(path string, n *yaml.Node)) {
	if name := field(n, "PolicyName"); name.Kind != 0 {
		path += " " + name.Value
	}
	if n.Kind == yaml.MappingNode {
		visit(path, n)
	}
	if n.Tag == "!If" {
		path += " if " + n.Content[0].Value
	}
	for i, child := range n.Content {
		below := path
		if n.Kind == yaml.MappingNode && i%2 == 1 && n.Content[i-1].Value == "AssumeRolePolicyDocument" {
			below += " trust"
		}
		walk(child, below, visit)
	}
}

// flow renders a node on one line, CloudFormation's tags as they are.
func flow(n *yaml.Node) string {
	var parts []string
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i < len(n.Content); i += 2 {
			parts = append(parts, n.Content[i].Value+": "+flow(n.Content[i+1]))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	case yaml.SequenceNode:
		for _, child := range n.Content {
			parts = append(parts, flow(child))
		}
		return strings.TrimSpace(tag(n) + " [" + strings.Join(parts, ", ") + "]")
	default:
		return strings.TrimSpace(tag(n) + " " + n.Value)
	}
}

func tag(n *yaml.Node) string {
	if strings.HasPrefix(n.Tag, "!!") {
		return ""
	}
	return n.Tag
}

func readTemplate(t *testing.T, name string) *yaml.Node {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return root.Content[0]
}

// field returns a mapping's value for the key, an empty node if there is none.
func field(n *yaml.Node, keys ...string) *yaml.Node {
	for _, key := range keys {
		i := -1
		if n.Kind == yaml.MappingNode {
			i = slices.IndexFunc(n.Content, func(k *yaml.Node) bool { return k.Value == key })
		}
		if i < 0 || i%2 == 1 {
			return new(yaml.Node)
		}
		n = n.Content[i+1]
	}
	return n
}

// The policy that a new deployment starts with is the one that it would have
// without any.
func TestTheTemplatesPolicyIsTheDefault(t *testing.T) {
	limits := policy.Limits{Accounts: []string{testAccount}, Regions: []string{"us-west-2"}, MaxLifetime: policy.LongestLifetime}
	text := field(readTemplate(t, "template.yaml"), "Parameters", "PolicyText", "Default").Value
	got, err := policy.Parse([]byte(text), limits)
	if err != nil {
		t.Fatal(err)
	}
	want, err := policy.Default(limits)
	if err != nil {
		t.Fatal(err)
	}
	if got.SHA256 != want.SHA256 {
		t.Errorf("PolicyText is not the built-in policy:\n%s", text)
	}
}

func TestTheLedgersTableIsKept(t *testing.T) {
	table := field(readTemplate(t, "template.yaml"), "Resources", "LedgerTable")
	for _, want := range []struct {
		path  []string
		value string
	}{
		{[]string{"DeletionPolicy"}, "Retain"},
		{[]string{"UpdateReplacePolicy"}, "Retain"},
		{[]string{"Properties", "DeletionProtectionEnabled"}, "true"},
		{[]string{"Properties", "PointInTimeRecoverySpecification", "PointInTimeRecoveryEnabled"}, "true"},
		{[]string{"Properties", "SSESpecification", "SSEEnabled"}, "true"},
		{[]string{"Properties", "TimeToLiveSpecification", "AttributeName"}, "expires"},
		{[]string{"Properties", "BillingMode"}, "PAY_PER_REQUEST"},
	} {
		if got := field(table, want.path...).Value; got != want.value {
			t.Errorf("%s is %q, want %q", strings.Join(want.path, "."), got, want.value)
		}
	}
}
