package policy

import (
	"errors"
	"fmt"
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
	tags := cel.MapType(cel.StringType, cel.StringType)
	options := []cel.EnvOption{
		withBoundedMatches(),
		cel.ClearMacros(),
		cel.Macros(cel.HasMacro),
		cel.ParserExpressionSizeLimit(maxWhenBytes),
		cel.ParserRecursionLimit(maxWhenDepth),
		cel.ASTValidators(cel.ValidateRegexProgramSizeLimit(maxRegexpProgram), cel.ValidateRegexLiterals(), cel.ValidateDurationLiterals(), cel.ValidateTimestampLiterals()),
		cel.Function("get", cel.MemberOverload("tags_get", []*cel.Type{tags, cel.StringType}, cel.StringType, cel.BinaryBinding(getTag))),
		cel.Variable("age", cel.DurationType),
		cel.Variable("launch_time", cel.TimestampType),
		cel.Variable("now", cel.TimestampType),
		cel.Variable("enrolled", cel.BoolType),
		cel.Variable("image_owner_member", cel.BoolType),
		cel.Variable("tags", tags),
		cel.Variable("image_tags", tags),
	}
	for _, name := range []string{
		"account", "account_name", "account_path", "region", "zone", "vpc", "subnet", "instance_id", "instance_profile", "image", "image_owner",
		"private_ip", "public_ip", "ipv6", "private_dns",
	} {
		options = append(options, cel.Variable(name, cel.StringType))
	}
	return cel.NewCustomEnv(options...)
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

// lacks reports whether the expression uses an address that EC2 does not show now: its result
// may then change by itself. For the image, see holds.
func (e *expression) lacks(f node.Facts) bool {
	gaps := map[string]bool{
		"private_ip":  f.PrivateIP == "",
		"public_ip":   f.PublicIP == "",
		"ipv6":        f.IPv6 == "",
		"private_dns": f.PrivateDNS == "",
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
	imageTags := f.ImageTags
	if ownImage(f, now).why != "" {
		imageTags = nil
	}
	variables := map[string]any{
		"account":          f.Account.String(),
		"account_name":     f.AccountName,
		"account_path":     f.AccountPath,
		"region":           f.Region.String(),
		"zone":             f.Zone,
		"vpc":              f.VPC,
		"subnet":           f.Subnet,
		"instance_id":      f.InstanceID.String(),
		"instance_profile": f.InstanceProfile,
		"image":            f.Image,
		"image_owner":      f.ImageOwner.String(),

		"image_owner_member": f.ImageOwnerMember,

		"image_tags":  nonNil(imageTags),
		"enrolled":    f.Enrolled,
		"private_ip":  f.PrivateIP,
		"public_ip":   f.PublicIP,
		"ipv6":        f.IPv6,
		"private_dns": f.PrivateDNS,
		"tags":        nonNil(f.Tags),
		"now":         now,
	}
	// Without a known launch, an expression that uses one of these is an error.
	if age, known := f.Age(now); known {
		variables["age"], variables["launch_time"] = age, f.LaunchTime
	}
	known, err := cel.PartialVars(variables, unknown(f)...)
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

func nonNil(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
