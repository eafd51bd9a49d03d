// Package cfn expands a template as CloudFormation does before it creates anything: AWS's
// own SAM translator, then the parameters, the conditions and the rules.
package cfn

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

//go:embed expand.py
var program string

// ErrNoTranslator says that the SAM translator is not installed.
var ErrNoTranslator = errors.New("python3 does not find samtranslator: run 'make setup'")

// Transform returns the template, as JSON, as AWS's SAM translator expands it. Nil parameters
// mean the defaults.
func Transform(ctx context.Context, template string, parameters map[string]string) ([]byte, error) {
	values, err := json.Marshal(parameters)
	if err != nil {
		return nil, err
	}
	// Go reads the template, not Python: otherwise "go test" would not notice that it changed,
	// and repeat the old result.
	source, err := os.ReadFile(template)
	if err != nil {
		return nil, err
	}
	args := []string{"-c", program}
	if parameters != nil {
		args = append(args, string(values))
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, "python3", args...)
	cmd.Env = append(os.Environ(), "AWS_DEFAULT_REGION=us-west-2")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(source), &out, &errs
	err = cmd.Run()
	switch {
	case err == nil:
		return out.Bytes(), nil
	case cmd.ProcessState == nil || cmd.ProcessState.ExitCode() == 3: // see expand.py
		return nil, fmt.Errorf("%w: %w %s", ErrNoTranslator, err, errs.String())
	default:
		return nil, fmt.Errorf("the SAM transform refuses %s: %w\n%s", template, err, errs.String())
	}
}

// Place says where a stack is created.
type Place struct{ StackName, Region, Account string }

// Stack is an expanded template. Its values refer only to its own resources.
type Stack struct {
	Resources map[string]Resource
	Outputs   map[string]any
}

// Resource is one resource of a stack.
type Resource struct {
	Type       string
	Properties map[string]any
	DependsOn  any
}

// Expand expands the template for a place and parameters. It returns an error if the
// parameters break one of the template's rules.
func Expand(ctx context.Context, template string, p Place, parameters map[string]string) (*Stack, error) {
	text, err := Transform(ctx, template, parameters)
	if err != nil {
		return nil, err
	}
	var t struct {
		Parameters map[string]struct {
			Type    string
			Default any
		}
		Conditions map[string]any
		Rules      map[string]struct {
			RuleCondition any
			Assertions    []struct {
				Assert            any
				AssertDescription string
			}
		}
		Resources map[string]struct {
			Type, Condition string
			Properties      map[string]any
			DependsOn       any
		}
		Outputs map[string]struct {
			Condition string
			Value     any
		}
	}
	if err := json.Unmarshal(text, &t); err != nil {
		return nil, fmt.Errorf("read the expanded template: %w", err)
	}
	partition, err := ec2ref.Region(p.Region).Partition()
	if err != nil {
		return nil, err
	}
	host, err := ec2ref.STS.Host(ec2ref.Region(p.Region))
	if err != nil {
		return nil, err
	}
	e := &evaluation{conditions: t.Conditions, values: map[string]any{
		"AWS::StackName": p.StackName, "AWS::Region": p.Region, "AWS::AccountId": p.Account,
		"AWS::Partition": string(partition), "AWS::URLSuffix": strings.TrimPrefix(host, "sts."+p.Region+"."), "AWS::NoValue": noValue{},
	}}
	for name, parameter := range t.Parameters {
		value, set := parameters[name]
		switch {
		case !set && parameter.Default == nil:
			return nil, fmt.Errorf("parameter %s has no value", name)
		case !set:
			value = fmt.Sprint(parameter.Default)
		}
		e.values[name] = value
		if parameter.Type == "CommaDelimitedList" {
			e.values[name] = list(strings.Split(value, ","))
		}
	}
	for name := range parameters {
		if _, ok := t.Parameters[name]; !ok {
			return nil, fmt.Errorf("the template has no parameter %s", name)
		}
	}
	for name, rule := range t.Rules {
		if rule.RuleCondition != nil && !e.truth(rule.RuleCondition) {
			continue
		}
		for _, a := range rule.Assertions {
			if !e.truth(a.Assert) {
				return nil, fmt.Errorf("rule %s: %s", name, a.AssertDescription)
			}
		}
	}
	s := &Stack{Resources: make(map[string]Resource), Outputs: make(map[string]any)}
	for name, r := range t.Resources {
		if r.Condition == "" || e.condition(r.Condition) {
			properties, _ := e.value(r.Properties).(map[string]any)
			s.Resources[name] = Resource{Type: r.Type, Properties: properties, DependsOn: r.DependsOn}
		}
	}
	for name, o := range t.Outputs {
		if o.Condition == "" || e.condition(o.Condition) {
			s.Outputs[name] = e.value(o.Value)
		}
	}
	return s, e.err
}

func list(texts []string) []any {
	values := make([]any, len(texts))
	for n, text := range texts {
		values[n] = text
	}
	return values
}

// noValue is AWS::NoValue, which removes what has it as its value.
type noValue struct{}

// evaluation replaces everything that depends on parameters and conditions.
type evaluation struct {
	values     map[string]any // of parameters and pseudo parameters
	conditions map[string]any
	err        error // the first one
}

func (e *evaluation) fail(format string, args ...any) {
	if e.err == nil {
		e.err = fmt.Errorf(format, args...)
	}
}

func (e *evaluation) condition(name string) bool {
	c, ok := e.conditions[name]
	if !ok {
		e.fail("there is no condition %q", name)
	}
	return ok && e.truth(c)
}

// function returns the name of the intrinsic function in a value, and its argument.
func function(v any) (name string, argument any) {
	m, ok := v.(map[string]any)
	if !ok || len(m) != 1 {
		return "", nil
	}
	for key, argument := range m {
		if key == "Ref" || key == "Condition" || strings.HasPrefix(key, "Fn::") {
			return key, argument
		}
	}
	return "", nil
}

// truth evaluates a condition, or a rule's assertion.
func (e *evaluation) truth(v any) bool {
	name, argument := function(v)
	arguments, _ := argument.([]any)
	all := func(want bool) bool {
		return !slices.ContainsFunc(arguments, func(a any) bool { return e.truth(a) != want })
	}
	switch {
	case name == "Condition":
		if _, isName := argument.(string); isName {
			return e.condition(argument.(string))
		}
	case name == "Fn::And" && len(arguments) > 1:
		return all(true)
	case name == "Fn::Or" && len(arguments) > 1:
		return !all(false)
	case name == "Fn::Not" && len(arguments) == 1:
		return !e.truth(arguments[0])
	case name == "Fn::Equals" && len(arguments) == 2:
		return fmt.Sprint(e.value(arguments[0])) == fmt.Sprint(e.value(arguments[1]))
	case name == "Fn::Contains" && len(arguments) == 2:
		values, _ := e.value(arguments[0]).([]any)
		return slices.Contains(values, e.value(arguments[1]))
	}
	e.fail("this is no condition: %v", v)
	return false
}

// value replaces everything in a value except the references to resources.
func (e *evaluation) value(v any) any {
	switch name, argument := function(v); name {
	case "Ref":
		if value, ok := e.values[fmt.Sprint(argument)]; ok {
			return value
		}
		return v
	case "Fn::If":
		branches, _ := argument.([]any)
		if len(branches) != 3 {
			e.fail("Fn::If with %d arguments", len(branches))
			return nil
		}
		if e.condition(fmt.Sprint(branches[0])) {
			return e.value(branches[1])
		}
		return e.value(branches[2])
	case "Fn::Join":
		return e.join(argument)
	case "Fn::Sub":
		return e.sub(argument)
	}
	switch v := v.(type) {
	case map[string]any:
		kept := make(map[string]any, len(v))
		for key, child := range v {
			if child = e.value(child); child != (noValue{}) {
				kept[key] = child
			}
		}
		return kept
	case []any:
		kept := make([]any, 0, len(v))
		for _, child := range v {
			if child = e.value(child); child != (noValue{}) {
				kept = append(kept, child)
			}
		}
		return kept
	}
	return v
}

// join joins texts. It remains a function if one of them depends on a resource.
func (e *evaluation) join(argument any) any {
	pair, _ := argument.([]any)
	if len(pair) != 2 {
		e.fail("Fn::Join with %d arguments", len(pair))
		return nil
	}
	parts, _ := e.value(pair[1]).([]any)
	texts := make([]string, 0, len(parts))
	for _, part := range parts {
		text, ok := part.(string)
		if !ok {
			return map[string]any{"Fn::Join": []any{pair[0], parts}}
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, fmt.Sprint(pair[0]))
}

// sub replaces parameters in a text. It remains a function if the text also names a resource.
func (e *evaluation) sub(argument any) any {
	own := make(map[string]any)
	if pair, ok := argument.([]any); ok && len(pair) == 2 {
		own, _ = e.value(pair[1]).(map[string]any)
		argument = pair[0]
	}
	left := make(map[string]any)
	text := substitute(fmt.Sprint(argument), func(name string) (string, bool) {
		value, ok := own[name]
		if !ok {
			value, ok = e.values[name]
		}
		if text, isText := value.(string); ok && isText {
			return text, true
		}
		if ok {
			left[name] = value
		}
		return "", false
	})
	switch {
	case len(left) > 0:
		return map[string]any{"Fn::Sub": []any{text, left}}
	case strings.Contains(text, "${"):
		return map[string]any{"Fn::Sub": text}
	}
	return text
}

// substitute replaces each ${name} that value knows.
func substitute(text string, value func(name string) (string, bool)) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "${")
		name, after, closed := strings.Cut(rest, "}")
		b.WriteString(before)
		if !found || !closed {
			b.WriteString(text[len(before):])
			return b.String()
		}
		if replacement, ok := value(name); ok {
			b.WriteString(replacement)
		} else {
			b.WriteString("${" + name + "}")
		}
		text = after
	}
}
