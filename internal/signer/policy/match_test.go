package policy

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

const otherAccount = "999988887777"

// Each row is the content of a rule's match, the differences from facts(), and the start of
// the reason why the rule does not match, or "" if it does.
func TestMatch(t *testing.T) {
	same := func(*node.Facts) {}
	tests := map[string]struct {
		match  string
		mutate func(*node.Facts)
		unmet  string
	}{
		"account":                    {`ANY, accounts: ["111122223333"]`, same, ""},
		"other account":              {`ANY, accounts: ["444455556666"]`, same, `accounts: "111122223333" is not listed`},
		"account not the deployment": {`ANY`, func(f *node.Facts) { f.Account = otherAccount }, `accounts: "999988887777" is not listed`},
		"region not the deployment":  {`ANY`, func(f *node.Facts) { f.Region = "eu-west-1" }, `regions: "eu-west-1" is not listed`},
		"vpc":                        {`ANY, vpcs: [vpc-00000000, vpc-0a1b2c3d]`, same, ""},
		"other vpc":                  {`ANY, vpcs: [vpc-00000000]`, same, `vpcs: "vpc-0a1b2c3d" is not listed`},
		"no vpc":                     {`ANY, vpcs: [vpc-00000000]`, func(f *node.Facts) { f.VPC = "" }, `vpcs: "" is not listed`},
		"subnet":                     {`ANY, subnets: [subnet-0a1b2c3d]`, same, ""},
		"other subnet":               {`ANY, subnets: [subnet-00000000]`, same, "subnets:"},
		"image":                      {`ANY, images: [ami-0a1b2c3d]`, same, ""},
		"other image":                {`ANY, images: [ami-00000000]`, same, "images:"},

		"profile":                     {`ANY, instance_profiles: ["arn:aws:iam::111122223333:instance-profile/web/front"]`, same, ""},
		"profile by pattern":          {`ANY, instance_profiles: ["arn:aws:iam::111122223333:instance-profile/web/f*t"]`, same, ""},
		"profile's account":           {`ANY, instance_profiles: ["arn:aws:iam::444455556666:instance-profile/web/front"]`, same, "instance_profiles:"},
		"pattern ends at a slash":     {`ANY, instance_profiles: ["arn:aws:iam::111122223333:instance-profile/*"]`, same, "instance_profiles:"},
		"pattern needs its folder":    {`ANY, instance_profiles: ["arn:aws:iam::111122223333:instance-profile/web/*"]`, func(f *node.Facts) { f.InstanceProfile = "arn:aws:iam::111122223333:instance-profile/web" }, "instance_profiles:"},
		"no profile":                  {`ANY, instance_profiles: ["arn:aws:iam::111122223333:instance-profile/*"]`, func(f *node.Facts) { f.InstanceProfile = "" }, "instance_profiles: the instance has none"},
		"profile of another kind":     {`ANY, instance_profiles: ["arn:aws:iam::111122223333:instance-profile/*"]`, func(f *node.Facts) { f.InstanceProfile = "arn:aws:iam::111122223333:role/web" }, "instance_profiles:"},
		"owner listed":                {`image_owners: [listed], max_age: any`, same, ""},
		"owner not listed":            {`image_owners: [listed], max_age: any`, func(f *node.Facts) { f.ImageOwner = otherAccount }, "image_owners:"},
		"owner self":                  {`image_owners: [self], max_age: any`, func(f *node.Facts) { f.ImageOwner = f.Account }, ""},
		"owner not self":              {`image_owners: [self], max_age: any`, same, "image_owners:"},
		"owner by id":                 {`image_owners: [self, "999988887777"], max_age: any`, func(f *node.Facts) { f.ImageOwner = otherAccount }, ""},
		"owner unknown":               {`image_owners: [self, listed, "999988887777"], max_age: any`, func(f *node.Facts) { f.ImageOwner = "" }, "image_owners: the image's owner is unknown"},
		"owner unknown, as all":       {`image_owners: [self], max_age: any`, func(f *node.Facts) { f.ImageOwner, f.Account = "", "" }, "accounts:"},
		"owner waived":                {`image_owners: [any], max_age: any`, func(f *node.Facts) { f.ImageOwner = "" }, ""},
		"owner of a known instance":   {`image_owners: [listed], max_age: 1h`, func(f *node.Facts) { f.Enrolled, f.ImageOwner = true, otherAccount }, "image_owners:"},
		"age at the bound":            {`image_owners: [any], max_age: 1h`, same, ""},
		"age of days":                 {`image_owners: [any], max_age: 1d`, func(f *node.Facts) { f.LaunchTime = clock().Add(-24 * time.Hour) }, ""},
		"too old by days":             {`image_owners: [any], max_age: 1d`, func(f *node.Facts) { f.LaunchTime = clock().Add(-25 * time.Hour) }, "max_age:"},
		"too old":                     {`image_owners: [any], max_age: 59m`, same, "max_age: launched 1h ago, more than 59m"},
		"too old, enrolled":           {`image_owners: [any], max_age: 59m`, func(f *node.Facts) { f.Enrolled = true }, ""},
		"age waived":                  {`image_owners: [any], max_age: any`, func(f *node.Facts) { f.LaunchTime = time.Time{} }, ""},
		"launch unknown":              {`image_owners: [any], max_age: 2540400h`, func(f *node.Facts) { f.LaunchTime = time.Time{} }, "max_age: the launch time is unknown"},
		"launch unknown, enrolled":    {`image_owners: [any], max_age: 1h`, func(f *node.Facts) { f.LaunchTime, f.Enrolled = time.Time{}, true }, ""},
		"launch within the skew":      {`image_owners: [any], max_age: 1h`, func(f *node.Facts) { f.LaunchTime = clock().Add(node.MaxLaunchSkew) }, ""},
		"launch to come":              {`image_owners: [any], max_age: 1h`, func(f *node.Facts) { f.LaunchTime = clock().Add(node.MaxLaunchSkew + 1) }, "max_age: the launch time"},
		"tag":                         {`ANY, tags: {env: [staging, "pr*"]}`, same, ""},
		"tag of another value":        {`ANY, tags: {env: [staging]}`, same, `tags: the value of "env" is not listed`},
		"no such tag":                 {`ANY, tags: {team: ["*"]}`, same, `tags: there is no tag "team"`},
		"tag keys have letters' case": {`ANY, tags: {Env: ["*"]}`, same, "tags:"},
		"one tag of two":              {`ANY, tags: {Name: ["*"], env: [staging]}`, same, "tags:"},
		"tag empty":                   {`ANY, tags: {env: ["*"]}`, func(f *node.Facts) { f.Tags["env"] = "" }, ""},
		"image tag":                   {`ANY, image_tags: {golden: ["yes"]}`, func(f *node.Facts) { f.ImageOwner, f.ImageTags = f.Account, map[string]string{"golden": "yes"} }, ""},
		"image tag missing":           {`ANY, image_tags: {golden: ["yes"]}`, func(f *node.Facts) { f.ImageOwner = f.Account }, "image_tags:"},
		"image tag, foreign image":    {`ANY, image_tags: {golden: ["yes"]}`, func(f *node.Facts) { f.ImageTags = map[string]string{"golden": "yes"} }, "image_tags: the image does not belong"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := facts()
			tt.mutate(&f)
			p := mustParse(t, "version: 1\nrules:\n  - name: a\n    match: {"+tt.match+"}")
			v := p.Explain(f, cluster(), clock()).Rules[0]
			switch {
			case tt.unmet == "" && v.Outcome != Matched:
				t.Errorf("%s: %s", v.Outcome, v.Why)
			case tt.unmet != "" && (v.Outcome != Unmatched || !strings.HasPrefix(v.Why, tt.unmet)):
				t.Errorf("%s: %s; want %s", v.Outcome, v.Why, tt.unmet)
			}
		})
	}
}

// A deployment that names no account admits none, even if the policy leaves accounts out.
func TestNoLimitsAdmitNobody(t *testing.T) {
	p, err := Parse(anyImage("version: 1\nrules: [{name: a, match: {ANY}}]"), Limits{MaxLifetime: LongestLifetime})
	if err != nil {
		t.Fatal(err)
	}
	if d, err := p.Decide(facts(), cluster(), clock()); !errors.Is(err, ErrRefused) {
		t.Errorf("decision %+v, error %v", d, err)
	}
}

func TestUnlimited(t *testing.T) {
	p, err := Parse([]byte(`{version: 1, rules: [
		{name: a, match: {accounts: ["999988887777"], image_owners: [listed], max_age: any}},
		{name: b, match: {image_owners: [listed], max_age: any}},
	]}`), Unlimited())
	if err != nil {
		t.Fatal(err)
	}
	f := facts()
	if d, err := p.Decide(f, cluster(), clock()); err != nil || d.Rule != "b" {
		t.Errorf("decision %+v, error %v", d, err)
	}
	f.Account, f.Region = otherAccount, "eu-west-1"
	if d, err := p.Decide(f, cluster(), clock()); err != nil || d.Rule != "a" {
		t.Errorf("decision %+v, error %v", d, err)
	}
	f.ImageOwner = ""
	if d, err := p.Decide(f, cluster(), clock()); err == nil {
		t.Errorf("decision %+v for an image of nobody", d)
	}
	if _, err := Parse(anyImage("version: 1\nrules: [{name: a, match: {ANY, accounts: [prod]}}]"), Unlimited()); err == nil {
		t.Error("an account that is no number was accepted")
	}
}

func TestExplain(t *testing.T) {
	p := mustParse(t, `version: 1
rules:
  - name: elsewhere
    match: {ANY, regions: [hm-test-1]}
  - name: here
    match: {ANY}
  - name: rest
    match: {ANY}
`)
	e := p.Explain(facts(), cluster(), clock())
	want := []Verdict{
		{Rule: "elsewhere", Line: 3, Outcome: Unmatched, Why: `regions: "us-west-2" is not listed`},
		{Rule: "here", Line: 5, Outcome: Matched},
		{Rule: "rest", Line: 7, Outcome: NotReached},
	}
	if fmt.Sprint(e.Rules) != fmt.Sprint(want) {
		t.Errorf("rules: %+v, want %+v", e.Rules, want)
	}
	d, err := p.Decide(facts(), cluster(), clock())
	if e.Err != nil || err != nil || fmt.Sprint(d) != fmt.Sprint(e.Decision) || d.Rule != "here" {
		t.Errorf("explained %+v, %v; decided %+v, %v", e.Decision, e.Err, d, err)
	}
}

// A rule that matches but can't be applied refuses the instance, rather than leave it to a
// rule that was not meant for it.
func TestAMatchingRuleIsFinal(t *testing.T) {
	p := mustParse(t, "version: 1\nrules: [{name: a, match: {ANY}, address: public}, {name: b, match: {ANY}}]")
	f := facts()
	f.PublicIP = ""
	e := p.Explain(f, cluster(), clock())
	if !errors.Is(e.Err, ErrIncomplete) || errors.Is(e.Err, ErrRefused) || e.Rules[1].Outcome != NotReached {
		t.Errorf("explained %+v", e)
	}
}

func TestRefusalSaysWhyOfEachRuleWithinBounds(t *testing.T) {
	text := "version: 1\nrules:\n"
	for i := range maxRules {
		text += fmt.Sprintf("  - {name: rule-%d, match: {ANY, instance_profiles: ['arn:aws:iam::111122223333:instance-profile/x']}}\n", i)
	}
	p := mustParse(t, text)
	f := facts()
	f.InstanceProfile = "\x1b[2J\n" + strings.Repeat("long", 1000)
	_, err := p.Decide(f, cluster(), clock())
	if !errors.Is(err, ErrRefused) {
		t.Fatal(err)
	}
	message := err.Error()
	for _, want := range []string{`"rule-0": instance_profiles: "\x1b[2J\nlong`, `; "rule-1": `, "more rules"} {
		if !strings.Contains(message, want) {
			t.Errorf("no %q in %s", want, message)
		}
	}
	if len(message) > maxSummaryBytes+200 || strings.ContainsAny(message, "\x1b\n") {
		t.Errorf("%d bytes: %q", len(message), message)
	}
}
