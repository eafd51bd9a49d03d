package policy

import (
	"errors"
	"fmt"
	"reflect"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// Bounds of an expression. Without macros that loop, the work grows only with the text and the
// facts; the cost, in CEL's own units, is a second limit.
const (
	maxWhenBytes     = 2048
	maxWhenDepth     = 50
	maxWhenCost      = 100_000
	maxRegexpProgram = 1000
)

// expression is a condition in the Common Expression Language (https://cel.dev):
// typed, without loops or side effects, and with bounded cost.
type expression struct {
	program cel.Program
	// facts are the names of the variables that it uses.
	facts map[string]bool
}

// expressions returns the environment for conditions: variables for the facts, the standard
// functions, and the function get of a map of tags. It has only the macro has, because all,
// exists, map and filter are loops.
func expressions() (*cel.Env, error) {
	options := []cel.EnvOption{
		withBoundedMatches(),
		cel.ClearMacros(),
		cel.Macros(cel.HasMacro),
		cel.ParserExpressionSizeLimit(maxWhenBytes),
		cel.ParserRecursionLimit(maxWhenDepth),
		cel.ASTValidators(cel.ValidateRegexProgramSizeLimit(maxRegexpProgram), cel.ValidateRegexLiterals(), cel.ValidateDurationLiterals(), cel.ValidateTimestampLiterals()),
		cel.Function("get", cel.MemberOverload("tags_get", []*cel.Type{tagsType(), cel.StringType}, cel.StringType, cel.BinaryBinding(getTag))),
		cel.Variable("age", cel.DurationType),
		cel.Variable("now", cel.TimestampType),
	}
	for name, field := range new(node.Facts).Fields() {
		options = append(options, cel.Variable(name, typeOf(field)))
	}
	return cel.NewCustomEnv(options...)
}

func tagsType() *cel.Type { return cel.MapType(cel.StringType, cel.StringType) }

// typeOf returns the type of a fact in conditions.
func typeOf(field any) *cel.Type {
	switch field.(type) {
	case *bool:
		return cel.BoolType
	case *time.Time:
		return cel.TimestampType
	case *map[string]string:
		return tagsType()
	}
	return cel.StringType // also a type of ec2ref
}

// getTag returns a tag's value, or "" where tags[key] would be an error.
func getTag(tags, key ref.Val) ref.Val {
	m, ok := tags.(traits.Mapper)
	if !ok {
		return types.MaybeNoSuchOverloadErr(tags)
	}
	if value, ok := m.Find(key); ok {
		return value
	}
	return types.String("")
}

// compile checks the text and the type of its result. It returns everything that is
// wrong with it.
func compile(env *cel.Env, text string) (*expression, []wrongWhen) {
	if len(text) > maxWhenBytes {
		return nil, []wrongWhen{{err: fmt.Errorf("%d bytes, more than %d", len(text), maxWhenBytes)}}
	}
	checked, issues := env.Compile(text)
	if issues.Err() != nil {
		return nil, wrongOf(issues, text)
	}
	if t := checked.OutputType(); !t.IsExactType(cel.BoolType) {
		return nil, []wrongWhen{{err: fmt.Errorf("expression must return bool, not %s", t)}}
	}
	program, err := env.Program(checked, cel.CostLimit(maxWhenCost), cel.CostTracking(costs{}), cel.EvalOptions(cel.OptPartialEval))
	if err != nil {
		return nil, []wrongWhen{{err: err}}
	}
	return &expression{program: program, facts: variablesOf(checked)}, nil
}

// variablesOf returns the names of the variables in a checked expression.
func variablesOf(checked *cel.Ast) map[string]bool {
	names := make(map[string]bool)
	ast.PostOrderVisit(checked.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() == ast.IdentKind {
			names[e.AsIdent()] = true
		}
	}))
	return names
}

// lacks reports whether the expression uses an address that EC2 does not show now, or the launch
// time of an enrolled instance: its result may then change by itself. For the image, see holds.
func (e *expression) lacks(f node.Facts) bool {
	gaps := map[string]bool{
		"private_ip":  f.PrivateIP == "",
		"public_ip":   f.PublicIP == "",
		"ipv6":        f.IPv6 == "",
		"private_dns": f.PrivateDNS == "",
		"age":         f.Enrolled && f.LaunchTime.IsZero(),
		"launch_time": f.Enrolled && f.LaunchTime.IsZero(),
	}
	for name := range e.facts {
		if gaps[name] {
			return true
		}
	}
	return false
}

// errUnknown is the outcome of an expression that depends on something unknown about the
// image or the account. An unknown owner is not "", and unknown tags may exist.
var errUnknown = errors.New("it depends on the image's owner or tags, or on the account's name or path, which are unknown")

// unknown are the variables whose values are not known.
func unknown(f node.Facts) []*cel.AttributePatternType {
	var patterns []*cel.AttributePatternType
	if f.ImageOwner == "" {
		patterns = append(patterns, cel.AttributePattern("image_owner"), cel.AttributePattern("image_owner_member"))
	}
	if f.AccountName == "" {
		patterns = append(patterns, cel.AttributePattern("account_name"))
	}
	if f.AccountPath == "" {
		patterns = append(patterns, cel.AttributePattern("account_path"))
	}
	if f.ImageOwner == "" || f.ImageOwner == f.Account && f.ImageTags == nil {
		patterns = append(patterns, cel.AttributePattern("image_tags"))
	}
	return patterns
}

// holds evaluates the expression. An error is neither true nor false.
func (e *expression) holds(f node.Facts, now time.Time) (bool, error) {
	known, err := cel.PartialVars(values(f, now), unknown(f)...)
	if err != nil {
		return false, err
	}
	result, _, err := e.program.Eval(known)
	if err != nil {
		return false, err
	}
	if types.IsUnknown(result) {
		return false, errUnknown
	}
	holds, ok := result.Value().(bool)
	if !ok {
		return false, fmt.Errorf("it gave %s", result.Type().TypeName())
	}
	return holds, nil
}

// values returns the value of each variable: of each fact, by its name, and of the times.
func values(f node.Facts, now time.Time) map[string]any {
	if ownImage(f, now).why != "" {
		f.ImageTags = nil
	}
	values := map[string]any{"now": now}
	for name, field := range f.Fields() {
		switch value := reflect.ValueOf(field).Elem(); value.Kind() {
		case reflect.String: // also a type of ec2ref
			values[name] = value.String()
		case reflect.Map:
			values[name] = nonNil(value.Interface().(map[string]string))
		default:
			values[name] = value.Interface()
		}
	}
	// Without a known launch, an expression that uses one of these is an error.
	delete(values, "launch_time")
	if age, known := f.Age(now); known {
		values["age"], values["launch_time"] = age, f.LaunchTime
	}
	return values
}

func nonNil(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
