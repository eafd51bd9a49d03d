package policy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
)

// wrongWhen is something that is wrong with an expression, at a byte of its text.
type wrongWhen struct {
	offset int
	err    error
}

// maxWrong bounds what is reported about one expression.
const maxWrong = 5

// wrongOf returns what is wrong with an expression in words for its author, who may not
// know CEL. What follows from a mistake of syntax or from a loop is left out.
func wrongOf(issues *cel.Issues, text string) []wrongWhen {
	if strings.TrimSpace(text) == "" {
		return []wrongWhen{{err: errors.New("the expression is empty; write one, or remove when")}}
	}
	var all []wrongWhen
	var variables []string // of loops
	for _, e := range issues.Errors() {
		at := wordAt(text, offsetOf(text, e.Location.Line(), e.Location.Column()))
		if found := regexpLoop.FindStringSubmatch(text[at:]); found != nil {
			variables = append(variables, found[1])
		}
		if found := regexpUndeclared.FindStringSubmatch(e.Message); found != nil && slices.Contains(variables, found[1]) {
			continue
		}
		message, last := plainIssue(strings.TrimSpace(e.Message), text, at)
		all = append(all, wrongWhen{at, fmt.Errorf("%.300s", message)})
		if last || len(all) == maxWrong {
			break
		}
	}
	return all
}

// offsetOf returns the byte at a line, from 1, and a column, from 0.
func offsetOf(text string, line, column int) int {
	offset := 0
	for ; line > 1; line-- {
		end := strings.IndexByte(text[offset:], '\n')
		if end < 0 {
			break
		}
		offset += end + 1
	}
	for range column {
		if offset >= len(text) || text[offset] == '\n' {
			break
		}
		offset += len(string([]rune(text[offset:min(len(text), offset+4)])[0]))
	}
	return offset
}

// wordAt returns the beginning of the name of a function, of which CEL reports the
// parenthesis.
func wordAt(text string, at int) int {
	if at >= len(text) || text[at] != '(' {
		return at
	}
	begin := len(strings.TrimRightFunc(text[:at], isNameRune))
	if begin == at {
		return at
	}
	return begin
}

func isNameRune(r rune) bool {
	return r == '_' || r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z'
}

var (
	regexpLoop       = regexp.MustCompile(`^[a-zA-Z_]+\(\s*([a-zA-Z_][a-zA-Z_0-9]*)\s*,`)
	regexpUndeclared = regexp.MustCompile(`^undeclared reference to '([^']*)'(?:.*\(did you mean '([^']*)')?`)
	regexpOverload   = regexp.MustCompile(`^found no matching overload for '([^']*)' applied to '(.*)'`)
	regexpExpected   = regexp.MustCompile(`^expected type '([^']*)' but found '([^']*)'`)
	regexpProblem    = regexp.MustCompile(`(?s)^Syntax error: (?:token recognition error at: |mismatched input |extraneous input |no viable alternative at input )'(.*?)'(?: expecting .*)?$`)
)

// loops are the macros of CEL that a condition cannot use.
func loops() []string {
	return []string{"all", "exists", "exists_one", "existsOne", "map", "filter", "transformList", "transformMap", "transformMapEntry"}
}

// plainIssue returns an issue in plain words, and whether what follows it tells nothing
// more.
func plainIssue(message, text string, at int) (plain string, last bool) {
	if found := regexpUndeclared.FindStringSubmatch(message); found != nil {
		return undeclared(found[1], found[2], text[at:])
	}
	if found := regexpOverload.FindStringSubmatch(message); found != nil {
		return noOverload(found[1], found[2]), false
	}
	if found := regexpExpected.FindStringSubmatch(message); found != nil {
		return fmt.Sprintf("this must be of type %s, not %s", found[1], found[2]), false
	}
	switch {
	case strings.HasPrefix(message, "Syntax error: missing ')'"):
		return "a closing ) is missing", true
	case strings.HasPrefix(message, "reserved identifier: if"):
		return "write only the condition, without if", true
	case strings.HasPrefix(message, "invalid duration argument"):
		return `this is not a duration; write duration("90m") or duration("48h")`, false
	case strings.HasPrefix(message, "invalid timestamp argument"):
		return `this is not a time; write timestamp("2026-01-31T00:00:00Z")`, false
	case strings.HasPrefix(message, "invalid matches argument"):
		return "this regular expression is not valid, or too large (RE2 syntax)", false
	case strings.HasPrefix(message, "invalid argument to has()"):
		return "has takes a tag, as in has(tags.env)", false
	case strings.Contains(message, "recursion"):
		return fmt.Sprintf("the expression is nested too deeply: more than %d levels of recursion", maxWhenDepth), true
	case strings.HasPrefix(message, "Syntax error: "):
		return badSyntax(message, text, at), true
	}
	return message, false
}

func undeclared(name, meant, rest string) (plain string, last bool) {
	isFunction := strings.HasPrefix(strings.TrimPrefix(rest, name), "(")
	switch {
	case isFunction && slices.Contains(loops(), name):
		return fmt.Sprintf("loops are off, so there is no %s; name the tags or values one by one", name), false
	case name == "has":
		return "has takes a tag, as in has(tags.env)", false
	case meant != "":
		return fmt.Sprintf("unknown name %s; did you mean %s?", name, meant), false
	case isFunction:
		return "unknown function " + name, false
	}
	return fmt.Sprintf("unknown name %s; put a text in quotes, and see the variables in docs/policy.md", name), false
}

// noOverload says what an operator or function does not take.
func noOverload(function, types string) string {
	operator := strings.Trim(function, "_@")
	operands := strings.TrimSuffix(strings.TrimPrefix(types, "("), ")")
	left, right, _ := strings.Cut(operands, ", ")
	switch {
	case function == "!_":
		return fmt.Sprintf("! needs true or false, not %s", operands)
	case function == "@in":
		return fmt.Sprintf("in needs a list or a map on its right, not %s", right)
	case !strings.HasPrefix(function, "_"):
		return fmt.Sprintf("%s does not take %s", function, types)
	case (left == "duration" || left == "google.protobuf.Duration") && (right == "string" || right == "int"):
		return fmt.Sprintf(`%s cannot compare a duration with %s; write duration("2h")`, operator, right)
	}
	return fmt.Sprintf("%s does not work on %s and %s; both must be of one type", operator, left, right)
}

// badSyntax says what is wrong where CEL could not go on.
func badSyntax(message, text string, at int) string {
	token := ""
	if found := regexpProblem.FindStringSubmatch(message); found != nil {
		token = strings.TrimSpace(found[1])
	}
	before := strings.TrimSpace(text[:at])
	word := before[len(strings.TrimRightFunc(before, isNameRune)):]
	switch {
	case token == "=" || strings.HasPrefix(token, "= "):
		return "use == to compare"
	case token == "and" || token == "&" || token == "AND":
		return "use && for and"
	case token == "or" || token == "|" || token == "OR":
		return "use || for or"
	case word == "not" || word == "NOT":
		return "use ! for not"
	case strings.HasSuffix(before, "<") && token == ">":
		return "use != for not equal"
	case strings.HasPrefix(token, `"`) || strings.HasPrefix(token, "'"):
		return `this quote is not closed, or has an unknown escape after \`
	case strings.ContainsAny(token, "“”‘’„«»"):
		return `use straight quotes, "`
	case word != "" && strings.Trim(word, "0123456789") == "" && regexpUnit.MatchString(token):
		return fmt.Sprintf(`write duration("%s%s")`, word, token)
	case token == "<EOF>":
		return "the expression ends too early"
	case token == ")":
		return "this ) has no matching ("
	case token == ".in":
		return `write VALUE in ["A", "B"]`
	case token == "":
		return "not a valid expression: " + strings.ReplaceAll(strings.TrimPrefix(message, "Syntax error: "), "'<EOF>'", "the end")
	}
	return fmt.Sprintf("%s is not expected here", quote(token))
}

var regexpUnit = regexp.MustCompile(`^(ms|[smhd])$`)
