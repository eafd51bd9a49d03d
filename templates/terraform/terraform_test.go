// Package terraform compares the Terraform configuration with the stack's template.
package terraform

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/tryfunc"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
	"go.yaml.in/yaml/v3"
)

// template is the part of template.yaml that the Terraform configuration repeats.
type template struct {
	Metadata struct {
		Interface struct {
			ParameterLabels map[string]struct {
				Default string `yaml:"default"`
			} `yaml:"ParameterLabels"`
		} `yaml:"AWS::CloudFormation::Interface"`
	} `yaml:"Metadata"`
	Parameters map[string]struct {
		Type    string  `yaml:"Type"`
		Default *string `yaml:"Default"`
	} `yaml:"Parameters"`
	Outputs map[string]struct {
		Description string `yaml:"Description"`
		Condition   string `yaml:"Condition"`
	} `yaml:"Outputs"`
}

func readTemplate(t *testing.T) template {
	t.Helper()
	data, err := os.ReadFile("../../template.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var read template
	if err := yaml.Unmarshal(data, &read); err != nil {
		t.Fatal(err)
	}
	if len(read.Parameters) < 20 || len(read.Outputs) < 10 {
		t.Fatalf("%d parameters and %d outputs in template.yaml", len(read.Parameters), len(read.Outputs))
	}
	return read
}

// blocks returns the blocks of all .tf files, by type and last label.
func blocks(t *testing.T) map[string]map[string]*hclsyntax.Body {
	t.Helper()
	found := make(map[string]map[string]*hclsyntax.Body)
	parser := hclparse.NewParser()
	names, err := filepath.Glob("*.tf")
	if err != nil || len(names) == 0 {
		t.Fatalf("Terraform files %q, error %v", names, err)
	}
	for _, name := range names {
		file, problems := parser.ParseHCLFile(name)
		if problems.HasErrors() {
			t.Fatal(problems)
		}
		for _, block := range file.Body.(*hclsyntax.Body).Blocks {
			if found[block.Type] == nil {
				found[block.Type] = make(map[string]*hclsyntax.Body)
			}
			label := ""
			if n := len(block.Labels); n > 0 {
				label = block.Labels[n-1]
			}
			found[block.Type][label] = block.Body
		}
	}
	return found
}

// name converts a CloudFormation name to Terraform's style.
func name(cloudFormation string) string {
	return strings.ToLower(regexp.MustCompile(`([a-z0-9])([A-Z])`).ReplaceAllString(cloudFormation, "${1}_${2}"))
}

func TestVariablesAreTheParameters(t *testing.T) {
	variables, read := blocks(t)["variable"], readTemplate(t)
	for parameter, p := range read.Parameters {
		variable := variables[name(parameter)]
		if variable == nil {
			t.Errorf("parameter %s has no variable %s", parameter, name(parameter))
			continue
		}
		want := map[string]string{"String": "string", "Number": "number", "CommaDelimitedList": "list(string)"}[p.Type]
		if got := source(t, variable.Attributes["type"]); got != want {
			t.Errorf("variable %s is a %s, want %s", name(parameter), got, want)
		}
		if _, optional := variable.Attributes["default"]; optional != (p.Default != nil) {
			t.Errorf("variable %s is optional: %t; parameter %s is optional: %t", name(parameter), optional, parameter, p.Default != nil)
		}
		if got, want := text(t, variable.Attributes["description"]), read.Metadata.Interface.ParameterLabels[parameter].Default; got != want {
			t.Errorf("variable %s is described as %q, parameter %s as %q", name(parameter), got, parameter, want)
		}
	}
	if extra := len(variables) - len(read.Parameters); extra != 2 { // the stack's name, the template's address
		t.Errorf("%d variables have no parameter, want 2", extra)
	}
}

// source returns the text of an attribute's expression.
func source(t *testing.T, a *hclsyntax.Attribute) string {
	t.Helper()
	if a == nil {
		return ""
	}
	data, err := os.ReadFile(a.SrcRange.Filename)
	if err != nil {
		t.Fatal(err)
	}
	return string(a.Expr.Range().SliceBytes(data))
}

// text returns the value of an attribute that is a plain string.
func text(t *testing.T, a *hclsyntax.Attribute) string {
	t.Helper()
	if a == nil {
		return ""
	}
	value, problems := a.Expr.Value(nil)
	if problems.HasErrors() {
		t.Fatal(problems)
	}
	return value.AsString()
}

func TestOutputsAreTheStacks(t *testing.T) {
	outputs := blocks(t)["output"]
	for output, o := range readTemplate(t).Outputs {
		body := outputs[name(output)]
		if body == nil {
			t.Errorf("output %s is missing", name(output))
			continue
		}
		want := `aws_cloudformation_stack.hallmark.outputs["` + output + `"]`
		if o.Condition != "" { // some stacks do not have it
			want = `lookup(aws_cloudformation_stack.hallmark.outputs, "` + output + `", null)`
		}
		if got := source(t, body.Attributes["value"]); got != want {
			t.Errorf("output %s is %s, want %s", name(output), got, want)
		}
		if got := text(t, body.Attributes["description"]); got != o.Description {
			t.Errorf("output %s is described as %q, the stack's as %q", name(output), got, o.Description)
		}
		delete(outputs, name(output))
	}
	for extra := range outputs {
		t.Errorf("template.yaml has no output %s", extra)
	}
}

// The stack gets each parameter whose variable is set, and no other, so that the template's
// defaults apply.
func TestParametersOfTheStack(t *testing.T) {
	all := blocks(t)
	stack := all["resource"]["hallmark"]
	for attribute, want := range map[string]string{
		"name": "var.name", "template_url": "var.template_url", "capabilities": `["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"]`,
	} {
		if got := source(t, stack.Attributes[attribute]); got != want {
			t.Errorf("%s is %s, want %s", attribute, got, want)
		}
	}
	parameters := readTemplate(t).Parameters
	given := map[string]cty.Value{
		"String":             cty.StringVal("text"),
		"Number":             cty.NumberIntVal(7),
		"CommaDelimitedList": cty.ListVal([]cty.Value{cty.StringVal("a"), cty.StringVal("b")}),
	}
	want := map[string]string{"String": "text", "Number": "7", "CommaDelimitedList": "a,b"}
	kinds := map[string]cty.Type{"String": cty.String, "Number": cty.Number, "CommaDelimitedList": cty.List(cty.String)}
	full, empty := make(map[string]cty.Value), make(map[string]cty.Value)
	for parameter, p := range parameters {
		full[name(parameter)], empty[name(parameter)] = given[p.Type], cty.NullVal(kinds[p.Type])
	}
	got := evaluate(t, stack.Attributes["parameters"], full)
	if len(got) != len(parameters) {
		t.Errorf("%d parameters, want %d", len(got), len(parameters))
	}
	for parameter, p := range parameters {
		if got[parameter] != want[p.Type] {
			t.Errorf("parameter %s is %q, want %q", parameter, got[parameter], want[p.Type])
		}
	}
	if got := evaluate(t, stack.Attributes["parameters"], empty); len(got) != 0 {
		t.Errorf("with no variable set, the stack gets %v", got)
	}
}

// evaluate computes an attribute and converts it to a map of strings, as Terraform does.
func evaluate(t *testing.T, a *hclsyntax.Attribute, variables map[string]cty.Value) map[string]string {
	t.Helper()
	value, problems := a.Expr.Value(&hcl.EvalContext{
		Variables: map[string]cty.Value{"var": cty.ObjectVal(variables)},
		Functions: map[string]function.Function{"join": stdlib.JoinFunc, "try": tryfunc.TryFunc},
	})
	if problems.HasErrors() {
		t.Fatal(problems)
	}
	texts, err := convert.Convert(value, cty.Map(cty.String))
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for key, v := range texts.AsValueMap() {
		got[key] = v.AsString()
	}
	return got
}
