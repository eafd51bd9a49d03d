package policy

import (
	"regexp/syntax"
	"strings"
	"testing"

	"cel.dev/cel-go/common/types"

	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// Anyone who may set a tag may choose a pattern, a text or both. Their cost is bounded, and
// above the bound the condition fails.
func TestPatternsOfTagsAreBounded(t *testing.T) {
	many := func(term string, n int) string { return strings.TrimSuffix(strings.Repeat(term+" || ", n), " || ") }
	for name, tt := range map[string]struct {
		text, pattern, when string
		want                string // of the error
	}{
		"a small pattern":           {"web-7", "^web-[0-9]+$", `tags.a.matches(tags.b)`, ""},
		"as a function":             {"web-7", "^web-[0-9]+$", `matches(tags.a, tags.b)`, ""},
		"a long program":            {"a", strings.Repeat("a{1000}", 36), `tags.a.matches(tags.b)`, "program size"},
		"nested repetitions":        {"a", "((a{10}){10}){10}", `tags.a.matches(tags.b)`, "program size"},
		"many long programs":        {"a", strings.Repeat("a{1000}", 36), many(`tags.a.matches(tags.b)`, 60), "cost limit"},
		"many patterns":             {strings.Repeat("a", 256), strings.Repeat("(a|aa)*", 30) + "x", many(`tags.a.matches(tags.b)`, 60), "cost limit"},
		"a pattern that is invalid": {"a", "(", `tags.a.matches(tags.b)`, "missing closing"},
		"a long pattern":            {"a", strings.Repeat("a", maxWhenBytes+1), `tags.a.matches(tags.b)`, "bytes, more than"},
		"a long text":               {strings.Repeat("a", 1<<20), "(a|aa|aaa)+b", `tags.a.matches(tags.b)`, "cost limit"},
		"a pattern of the policy":   {strings.Repeat("a", 1<<20), "", `tags.a.matches("(a|aa|aaa)+b")`, "cost limit"},
	} {
		t.Run(name, func(t *testing.T) {
			env, err := expressions()
			if err != nil {
				t.Fatal(err)
			}
			e, wrong := compile(env, tt.when)
			if wrong != nil {
				t.Fatal(wrong)
			}
			ok, err := e.holds(node.Facts{Tags: map[string]string{"a": tt.text, "b": tt.pattern}}, clock())
			if tt.want == "" && (err != nil || !ok) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%v, error %v; want %q", ok, err, tt.want)
			}
		})
	}
}

// A condition full of patterns that the policy itself contains is never too costly to read.
func TestPatternsOfThePolicyCanBePaidFor(t *testing.T) {
	if cost := matchCost(0, maxWhenBytes, 0); cost > maxWhenCost {
		t.Errorf("cost %d, more than %d", cost, maxWhenCost)
	}
}

// The estimate is never far below the size of the program that Go builds.
func TestProgramSize(t *testing.T) {
	for _, pattern := range []string{
		"", "a", "abc", "a*", "(a|aa)*", strings.Repeat("(a|aa)*", 30) + "x", "(?i)hello", "[a-z]+@[a-z]{2,63}", "a{100}", "(a{10}){10}", `^\pL+$`, "a|b|cd|e*",
	} {
		parsed, err := syntax.Parse(pattern, syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		built, err := types.RegexProgramSize(pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := programSize(parsed); 2*got < built-2 {
			t.Errorf("%q: %d, but it has %d instructions", pattern, got, built)
		}
	}
}
