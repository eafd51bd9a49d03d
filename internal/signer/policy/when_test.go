package policy

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/strictyaml"
)

func whenPolicy(text string) string {
	return "version: 1\nrules:\n  - name: a\n    match: {ANY}\n    when: |-\n      " + text + "\n  - name: lax\n    match: {ANY}\n"
}

// Each row says which rule decides: a, whose condition is in the row; lax, which comes after
// it; or none, because the condition failed.
func TestWhen(t *testing.T) {
	tests := map[string]string{
		`account == "111122223333" && region == "us-west-2" && zone == "us-west-2a"`: "a",
		`vpc == "vpc-0a1b2c3d" && subnet == "subnet-0a1b2c3d"`:                       "a",
		`instance_id.startsWith("i-0a") && instance_profile.endsWith("/web/front")`:  "a",
		`image == "ami-0a1b2c3d" && image_owner == "444455556666"`:                   "a",
		`image_owner == account`:                                  "lax",
		`age <= duration("1h") && age > duration("59m")`:          "a",
		`enrolled || age < duration("30m")`:                       "lax",
		`launch_time == now - age`:                                "a",
		`now < timestamp("2000-01-01T00:00:00Z")`:                 "lax",
		`private_ip.matches("^10[.]") && public_ip != ""`:         "a",
		`ipv6 == "2001:db8::7" && private_dns != ""`:              "a",
		`tags["env"] in ["prod", "staging"]`:                      "a",
		`tags.env == "dev"`:                                       "lax",
		`has(tags.env) && !has(tags.team) && "Name" in tags`:      "a",
		`tags.get("team") == "" && tags.get("env") == "prod"`:     "a",
		`size(image_tags) == 0`:                                   "a",
		`tags["team"] == "a"`:                                     "", // no such tag
		`tags.env.matches(tags.Name + "(")`:                       "", // no such expression
		`int(tags.env) > 1`:                                       "", // no number
		`timestamp(tags.env) < timestamp("2026-01-01T00:00:00Z")`: "",
		`dyn(account) > 1`:                                        "",
	}
	for text, want := range tests {
		t.Run(text, func(t *testing.T) {
			d, err := mustParse(t, whenPolicy(text)).Decide(facts(), cluster(), clock())
			if d.Rule != want || (err != nil) != (want == "") {
				t.Fatalf("rule %q, error %v; want rule %q", d.Rule, err, want)
			}
			if err != nil && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), `rule "a": when:`)) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestWhenIsJudgedAfterTheMatch(t *testing.T) {
	p := mustParse(t, `{version: 1, rules: [{name: a, match: {ANY, tags: {team: ["*"]}}, when: 'tags.team == "x"'}, {name: b, match: {ANY}}]}`)
	if d, err := p.Decide(facts(), cluster(), clock()); err != nil || d.Rule != "b" {
		t.Errorf("rule %q, error %v; the condition was asked of an instance without the tag", d.Rule, err)
	}
}

func TestWhenRefusesAnAgeThatNobodyKnows(t *testing.T) {
	f := facts()
	for _, launch := range []time.Time{{}, clock().Add(time.Hour)} {
		f.LaunchTime = launch
		for _, when := range []string{`age < duration("1h")`, `launch_time < timestamp("2100-01-01T00:00:00Z")`} {
			if d, err := mustParse(t, whenPolicy(when)).Decide(f, cluster(), clock()); err == nil {
				t.Errorf("%s, launched %s: rule %q", when, launch, d.Rule)
			}
		}
	}
}

func TestWhenKnowsNoTagsOfAnotherAccountsImage(t *testing.T) {
	f := facts()
	f.ImageTags = map[string]string{"golden": "yes"}
	p := mustParse(t, whenPolicy(`image_tags.get("golden") == "yes"`))
	if d, err := p.Decide(f, cluster(), clock()); err != nil || d.Rule != "lax" {
		t.Errorf("rule %q, error %v", d.Rule, err)
	}
	f.ImageOwner = f.Account
	if d, err := p.Decide(f, cluster(), clock()); err != nil || d.Rule != "a" {
		t.Errorf("rule %q, error %v", d.Rule, err)
	}
}

func TestWhenWithoutTags(t *testing.T) {
	f := facts()
	f.Tags = nil
	if d, err := mustParse(t, whenPolicy(`tags.get("x") == "" && size(tags) == 0`)).Decide(f, cluster(), clock()); err != nil || d.Rule != "a" {
		t.Errorf("rule %q, error %v", d.Rule, err)
	}
}

func TestParseRefusesConditions(t *testing.T) {
	tests := map[string]struct{ text, want string }{
		"syntax":             {`account ==`, "the expression ends too early"},
		"unknown variable":   {`acount == "1"`, "unknown name acount; did you mean account?"},
		"unknown function":   {`lookup(account) == ""`, "unknown function lookup"},
		"types":              {`age < 3`, `write duration("2h")`},
		"no boolean":         {`tags`, "must return bool, not map"},
		"anything":           {`dyn(true)`, "must return bool, not dyn"},
		"loop all":           {`["a"].all(x, x == account)`, "loops are off"},
		"loop exists":        {`tags.exists(k, k == "a")`, "loops are off"},
		"loop map":           {`size(["a"].map(x, x)) == 1`, "loops are off"},
		"regular expression": {`account.matches("(")`, "this regular expression is not valid"},
		"large expression":   {`account.matches("a{1000}b{1000}")`, "program size 2002 exceeds"},
		"duration":           {`age < duration("1 day")`, "duration"},
		"too long":           {`account == "` + strings.Repeat("a", maxWhenBytes) + `"`, "bytes, more than"},
		"too deep":           {strings.Repeat("(", 500) + "true" + strings.Repeat(")", 500), "recursion"},
		"too deep, not":      {strings.Repeat("!", 1000) + "true", ""},
		"protocol buffers":   {`google.protobuf.BoolValue{value: true} == true || nope`, "nope"},
		"empty":              {`""`, "must return bool, not string"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(anyImage(whenPolicy(tt.text)), limits())
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), `line 6: rule "a": when: `) {
				t.Errorf("error %v; want %q", err, tt.want)
			}
			if err != nil && (len(err.Error()) > 2000 || strings.Contains(err.Error(), "\n")) {
				t.Errorf("error %q is no line", err)
			}
		})
	}
}

// The cost limit backs up the other limits: it works even if text and facts are larger than
// AWS allows tags to be.
func TestWhenHasABoundedCost(t *testing.T) {
	f := facts()
	f.Tags["env"] = strings.Repeat("a", 1<<20)
	_, err := mustParse(t, whenPolicy(`tags.env.matches("(a|aa|aaa)+b")`)).Decide(f, cluster(), clock())
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "cost limit") {
		t.Errorf("error %v; want the cost limit", err)
	}
}

func TestPolicyWithoutConditionsMakesNoEnvironment(t *testing.T) {
	b := builder{limits: limits()}
	owners, age := []string{anything}, anything
	d := ruleDocument{Name: "a", Match: matchDocument{ImageOwners: owners, MaxAge: &age}}
	if b.rule(d, nowhere()); b.env != nil {
		t.Error("there is an environment without a condition")
	}
	text := "true"
	d.When = &text
	if r := b.rule(d, nowhere()); r.when == nil || b.env == nil {
		t.Error("there is no environment for a condition")
	}
}

// nowhere is a place in an empty file.
func nowhere() strictyaml.Value {
	return strictyaml.Decode(nil, new(fileDocument), strictyaml.Options{}).Top()
}

func BenchmarkParse(b *testing.B) {
	for name, text := range map[string]string{"default": builtIn, "when": whenPolicy(`tags.get("env") == "prod"`)} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := Parse(anyImage(text), limits()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDecide(b *testing.B) {
	for name, text := range map[string]string{
		"default": builtIn,
		"when":    whenPolicy(`tags.get("env") == "prod" && (enrolled || age < duration("2h"))`),
	} {
		b.Run(name, func(b *testing.B) {
			p, err := Parse(anyImage(text), limits())
			if err != nil {
				b.Fatal(err)
			}
			f, c := facts(), cluster()
			for b.Loop() {
				if _, err := p.Decide(f, c, clock()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
