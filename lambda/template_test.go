package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/hallmark-ssh/hallmark/e2e/cfn"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/golden"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy/live"
)

var update = flag.Bool("update", false, "write the golden files")

// templates are all templates that CloudFormation gets.
var templates = []string{
	"template.yaml", "templates/member-account/role.yaml", "templates/member-account/events.yaml", "templates/member-account/organization.yaml", "templates/autoscaling/fleet.yaml",
}

// A change that lets the functions, the queues, the bus or the member accounts' roles do more,
// or lets others do more with them, has to change this list too.
func TestPermissionsOfTheTemplates(t *testing.T) {
	var got strings.Builder
	for _, name := range templates {
		fmt.Fprintf(&got, "%s\n", name)
		resources := field(readTemplate(t, name), "Resources")
		for i := 0; i < len(resources.Content); i += 2 {
			describe(&got, resources.Content[i].Value, resources.Content[i+1])
		}
	}
	compare(t, "permissions.golden", got.String())
}

// compare compares text with a golden file.
func compare(t *testing.T, name, got string) {
	t.Helper()
	golden.Compare(t, filepath.Join("testdata", name), []byte(got), *update)
}

// describe writes every statement below a resource, and resources that are themselves
// permissions.
func describe(w *strings.Builder, name string, resource *yaml.Node) {
	properties := field(resource, "Properties")
	switch field(resource, "Type").Value {
	case "AWS::Lambda::Permission":
		fmt.Fprintf(w, "\n%s: %s\n", name, flow(properties))
	case "AWS::Lambda::Url":
		fmt.Fprintf(w, "\n%s: function URL %s\n", name, flow(field(properties, "AuthType")))
	case "AWS::ApiGateway::Method":
		fmt.Fprintf(w, "\n%s: %s, authorization %s\n", name, flow(field(properties, "HttpMethod")), flow(field(properties, "AuthorizationType")))
	}
	walk(resource, name, func(path string, n *yaml.Node) {
		for _, list := range []string{"Statement", "ManagedPolicyArns"} {
			statements := field(n, list)
			if statements.Kind == 0 {
				continue
			}
			fmt.Fprintf(w, "\n%s:\n", path)
			all := statements.Content
			if statements.Kind == yaml.MappingNode { // a bus's policy has one
				all = []*yaml.Node{statements}
			}
			for _, s := range all {
				fmt.Fprintf(w, "  %s\n", flow(s))
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

// flow renders a node on one line, and leaves CloudFormation's tags unchanged.
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

// field returns a mapping's value for the key, or an empty node if there is none.
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

// The initial policy of a new deployment is the one that it would have without any.
func TestTheTemplatesPolicyIsTheDefault(t *testing.T) {
	limits := policy.Limits{Accounts: []ec2ref.Account{testAccount}, Regions: []ec2ref.Region{"us-west-2"}, MaxLifetime: policy.LongestLifetime}
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
		{[]string{"DeletionPolicy"}, "RetainExceptOnCreate"}, // a failed first deployment must leave no orphan
		{[]string{"UpdateReplacePolicy"}, "Retain"},
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

// expanded returns the template after AWS's own SAM transform, which is what gets deployed.
func expanded(t *testing.T) []byte {
	t.Helper()
	text, err := cfn.Transform(t.Context(), filepath.Join("..", "template.yaml"), nil)
	if errors.Is(err, cfn.ErrNoTranslator) && os.Getenv("HALLMARK_TEST_STRICT") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestExpandedTemplate(t *testing.T) {
	compare(t, "expanded.golden.json", string(expanded(t)))
}

// These are resources that a flood of requests or a forged event could otherwise use up.
func TestTheFunctionsShareNothing(t *testing.T) {
	var template struct {
		Resources map[string]struct {
			Type       string
			Properties map[string]any
		}
	}
	if err := json.Unmarshal(expanded(t), &template); err != nil {
		t.Fatal(err)
	}
	enroll, fleet := template.Resources["EnrollFunction"].Properties, template.Resources["FleetFunction"].Properties
	for _, property := range []string{"Role", "ReservedConcurrentExecutions", "Handler", "LoggingConfig"} {
		if a, b := fmt.Sprint(enroll[property]), fmt.Sprint(fleet[property]); a == b || a == "<nil>" || b == "<nil>" {
			t.Errorf("%s: %s and %s", property, a, b)
		}
	}
	for name, resource := range template.Resources {
		on := fmt.Sprint(resource.Properties["FunctionName"], resource.Properties["TargetFunctionArn"])
		isFleets := strings.Contains(on, "FleetFunction")
		switch resource.Type {
		case "AWS::Lambda::Url":
			if isFleets {
				t.Errorf("%s: the fleet function has a URL", name)
			}
		case "AWS::Lambda::Permission":
			if isFleets && (resource.Properties["Principal"] != "events.amazonaws.com" || resource.Properties["SourceArn"] == nil) {
				t.Errorf("%s: %v", name, resource.Properties)
			}
		case "AWS::Lambda::EventSourceMapping":
			if !isFleets {
				t.Errorf("%s: %v", name, resource.Properties)
			}
		}
	}
}

// A URL without authentication has to let everybody call it, and a URL with it must not.
func TestWhoMayCallTheURL(t *testing.T) {
	var template struct {
		Resources map[string]struct {
			Type, Condition string
			Properties      map[string]any
		}
	}
	if err := json.Unmarshal(expanded(t), &template); err != nil {
		t.Fatal(err)
	}
	public := make(map[any]bool) // actions
	for name, resource := range template.Resources {
		p := resource.Properties
		if resource.Type != "AWS::Lambda::Permission" || p["Principal"] != "*" || p["PrincipalOrgID"] != nil {
			continue
		}
		if public[p["Action"]] = true; resource.Condition != "IsPublic" {
			t.Errorf("%s: with condition %q", name, resource.Condition)
		}
		if p["Action"] == "lambda:InvokeFunction" && p["InvokedViaFunctionUrl"] != true {
			t.Errorf("%s: anybody may invoke the function without its URL", name)
		}
	}
	// A direct invocation can claim anything about itself, so only the entry that expects one
	// allows any.
	for name, resource := range template.Resources {
		p := resource.Properties
		if resource.Type != "AWS::Lambda::Permission" || p["Action"] != "lambda:InvokeFunction" || p["InvokedViaFunctionUrl"] == true {
			continue
		}
		switch fmt.Sprint(p["Principal"]) {
		case "apigateway.amazonaws.com", "events.amazonaws.com":
			if p["SourceArn"] == nil {
				t.Errorf("%s: any API or rule may invoke the function", name)
			}
		default:
			if resource.Condition != "InvokedByOrganization" {
				t.Errorf("%s: with condition %q", name, resource.Condition)
			}
		}
	}
	if !public["lambda:InvokeFunctionUrl"] || !public["lambda:InvokeFunction"] || len(public) != 2 {
		t.Errorf("the public URL permits %v", public)
	}
}

// Three places say how long a message is hidden, how long it is processed, and what the
// function's own code allows.
func TestTimesFitTogether(t *testing.T) {
	resources := field(readTemplate(t, "template.yaml"), "Resources")
	seconds := func(path ...string) time.Duration {
		d, err := time.ParseDuration(field(resources, path...).Value + "s")
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	hidden, timeout := seconds("EventQueue", "Properties", "VisibilityTimeout"), seconds("FleetFunction", "Properties", "Timeout")
	if hidden < 6*batchTime || hidden < timeout {
		t.Errorf("a message is hidden for %s, a batch may take %s and the function %s", hidden, batchTime, timeout)
	}
	if timeout < 5*spare {
		t.Errorf("a sweep has %s of an invocation's %s", timeout-spare, timeout)
	}
}

// The stack offers each way in that the function knows, and no other.
func TestEntriesOfTheTemplate(t *testing.T) {
	var offered []entry.Kind
	if err := field(readTemplate(t, "template.yaml"), "Parameters", "Entry", "AllowedValues").Decode(&offered); err != nil {
		t.Fatal(err)
	}
	if known := entry.Kinds(); !slices.Equal(offered, known) {
		t.Errorf("the template offers %v, and the function knows %v", offered, known)
	}
}

// With a wrong metric name, alarms and dashboard would never show anything.
func TestMetricsOfTheAlarmsAreWritten(t *testing.T) {
	written := map[string]bool{"policy_alarms": true, "login_left_s": true} // of the filters; TestLoginIsWatched
	for _, line := range []string{"enroll/testdata/granted.json", "upkeep/testdata/events.json", "upkeep/testdata/sweep.json", "organization/testdata/reading.json"} {
		var record struct {
			AWS struct {
				CloudWatchMetrics []struct{ Metrics []struct{ Name string } }
			} `json:"_aws"`
		}
		data, err := os.ReadFile(filepath.Join("..", "internal", "signer", filepath.FromSlash(line)))
		if err == nil {
			err = json.Unmarshal(data, &record)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, directive := range record.AWS.CloudWatchMetrics {
			for _, metric := range directive.Metrics {
				written[metric.Name] = true
			}
		}
	}
	// A filter uses the event, never the message.
	filters := 0
	walk(readTemplate(t, "template.yaml"), "", func(_ string, n *yaml.Node) {
		pattern := field(n, "FilterPattern").Value
		if strings.Contains(pattern, "$.msg") {
			t.Errorf("filter %s goes by a message", pattern)
		}
		if strings.Contains(pattern, "$.event") {
			filters++
			if want := fmt.Sprintf(`{ ($.event = "%s") || ($.event = "%s") }`, live.EventRejected, live.EventReset); pattern != want {
				t.Errorf("filter %s, want %s", pattern, want)
			}
		}
	})
	if filters != 2 {
		t.Errorf("%d filters go by an event, want one for each function", filters)
	}
	asked := 0
	check := func(name string) {
		asked++
		if !written[name] {
			t.Errorf("metric %s is in the template, and nothing writes it", name)
		}
	}
	template := readTemplate(t, "template.yaml")
	walk(template, "", func(_ string, n *yaml.Node) {
		if strings.Contains(flow(field(n, "Namespace")), "Hallmark") {
			check(field(n, "MetricName").Value)
		}
	})
	body := dashboardBody(t)
	for _, match := range regexp.MustCompile(`"Hallmark","([a-z_0-9]+)"|MetricName=\\"([a-z]+)`).FindAllStringSubmatch(body, -1) {
		check(match[1] + match[2])
	}
	if asked < 20 {
		t.Errorf("only %d metrics were found in the template", asked)
	}
}
