package policy

import (
	"regexp"
	"regexp/syntax"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/env"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// A regular expression in a condition may come from a tag, so anyone who may set the tag
// chooses it. Go's regular expressions take time in proportion to text and program, and a
// short one may have a long program ("a{1000}"). So both are bounded before anything is built,
// and their cost counts toward the condition's cost limit, which ends the evaluation.

const (
	// stepsPerCost is how many steps of a regular expression cost one unit.
	stepsPerCost = 10
	// costPerPatternByte pays for reading a pattern. A condition full of patterns that the
	// policy itself contains stays below the limit.
	costPerPatternByte = 40
)

// withBoundedMatches is CEL's standard library with a matches function of bounded cost.
func withBoundedMatches() cel.EnvOption {
	const function = "matches"
	texts := []*cel.Type{cel.StringType, cel.StringType}
	library := cel.StdLib(cel.StdLibSubset(env.NewLibrarySubset().AddExcludedFunctions(env.NewFunction(function))))
	bounded := cel.Function(function,
		cel.Overload("matches", texts, cel.BoolType),
		cel.MemberOverload("matches_string", texts, cel.BoolType),
		cel.SingletonBinaryBinding(matches))
	return func(e *cel.Env) (*cel.Env, error) {
		e, err := library(e)
		if err != nil {
			return nil, err
		}
		return bounded(e)
	}
}

// matches reports whether the pattern matches somewhere in the text.
func matches(text, pattern ref.Val) ref.Val {
	t, isText := text.(types.String)
	p, isPattern := pattern.(types.String)
	if !isText || !isPattern {
		return types.MaybeNoSuchOverloadErr(text)
	}
	if len(p) > maxWhenBytes {
		return types.NewErr("the regular expression has %d bytes, more than %d", len(p), maxWhenBytes)
	}
	parsed, err := syntax.Parse(string(p), syntax.Perl)
	if err != nil {
		return types.WrapErr(err)
	}
	size := programSize(parsed)
	if size > maxRegexpProgram {
		return types.NewErr("the regular expression has a program size of %d, more than %d", size, maxRegexpProgram)
	}
	if matchCost(len(t), len(p), size) > maxWhenCost {
		return types.NewErr("the regular expression alone would exceed the cost limit")
	}
	compiled, err := regexp.Compile(string(p))
	if err != nil {
		return types.WrapErr(err)
	}
	return types.Bool(compiled.MatchString(string(t)))
}

// matchCost is the cost of matching a text against a pattern of that length and program.
func matchCost(text, pattern, program int) uint64 {
	return uint64(pattern*costPerPatternByte + text*program/stepsPerCost) //nolint:gosec // lengths
}

// programSize estimates the number of instructions in a regular expression's program, without
// building it: the program repeats them for each repetition.
func programSize(re *syntax.Regexp) int {
	size := 1
	switch re.Op {
	case syntax.OpLiteral:
		size = len(re.Rune)
	case syntax.OpCapture:
		size = 2
	case syntax.OpAlternate:
		size = len(re.Sub)
	default: // one instruction
	}
	for _, sub := range re.Sub {
		size += programSize(sub)
	}
	if re.Op == syntax.OpRepeat {
		size *= max(re.Max, re.Min, 1)
	}
	return size
}

// costs tells CEL what a call of matches costs. CEL itself knows what other functions cost.
type costs struct{}

// CallCost implements cost.ActualCostEstimator.
func (costs) CallCost(function, _ string, args []ref.Val, _ ref.Val) *uint64 {
	if function != "matches" || len(args) != 2 {
		return nil
	}
	text, _ := args[0].(types.String)
	pattern, _ := args[1].(types.String)
	cost := matchCost(len(text), len(pattern), 1)
	if len(pattern) <= maxWhenBytes {
		if parsed, err := syntax.Parse(string(pattern), syntax.Perl); err == nil {
			cost = matchCost(len(text), len(pattern), min(programSize(parsed), maxRegexpProgram))
		}
	}
	return &cost
}
