package policy

import (
	"strings"
	"testing"
)

// Each row is two rules. The second is shadowed, or not.
func TestShadowedRules(t *testing.T) {
	for _, test := range []struct {
		first, second string
		shadowed      bool
	}{
		{"ANY", "ANY", true},
		{"ANY", "image_owners: [self], max_age: 1h, tags: {env: [prod]}", true},
		{"image_owners: [self], max_age: any", "ANY", false},
		{"image_owners: [self], max_age: 1d", "image_owners: [self], max_age: 24h", true},
		{"image_owners: [self], max_age: 1h", "image_owners: [self], max_age: 2h", false},
		{"image_owners: [listed], max_age: any", "image_owners: [self], max_age: any", true},
		{"image_owners: [listed], max_age: any", `image_owners: ["444455556666"], max_age: any`, true},
		{"image_owners: [listed], max_age: any", `image_owners: ["999999999999"], max_age: any`, false},
		{`image_owners: ["111122223333", "444455556666"], max_age: any`, "image_owners: [listed], max_age: any", true},
		{`image_owners: ["111122223333", "444455556666"], max_age: any`, "image_owners: [self], max_age: any", true},
		{`image_owners: ["111122223333"], max_age: any`, "image_owners: [self], max_age: any", false},
		{"image_owners: [self], max_age: any", `accounts: ["444455556666"], image_owners: ["444455556666"], max_age: any`, true},
		{"image_owners: [self], max_age: any", `image_owners: ["444455556666"], max_age: any`, false},
		{`ANY, accounts: ["111122223333"]`, "ANY", false},
		{`ANY, accounts: ["111122223333", "444455556666"]`, "ANY", true},
		{"ANY, regions: [us-west-2, hm-test-1]", "ANY, regions: [hm-test-1]", true},
		{"ANY, regions: [us-west-2]", "ANY, regions: [hm-test-1]", false},
		{"ANY, vpcs: [vpc-0a1b2c3d]", "ANY", false},
		{"ANY, vpcs: [vpc-0a1b2c3d, vpc-11111111]", "ANY, vpcs: [vpc-11111111]", true},
		{"ANY, subnets: [subnet-0a1b2c3d]", "ANY, vpcs: [vpc-0a1b2c3d]", false},
		{"ANY, images: [ami-0a1b2c3d]", "ANY, images: [ami-0a1b2c3d, ami-11111111]", false},
		{`ANY, instance_profiles: ["arn:aws:iam::111122223333:instance-profile/web*"]`, `ANY, instance_profiles: ["arn:aws:iam::111122223333:instance-profile/web-*"]`, true},
		{`ANY, instance_profiles: ["arn:aws:iam::111122223333:instance-profile/web-*"]`, `ANY, instance_profiles: ["arn:aws:iam::111122223333:instance-profile/web*"]`, false},
		{`ANY, instance_profiles: ["arn:aws:iam::111122223333:instance-profile/*"]`, `ANY, instance_profiles: ["arn:aws:iam::111122223333:instance-profile/a/b"]`, false},
		{`ANY, tags: {env: ["*"]}`, "ANY, tags: {env: [prod], team: [a]}", true},
		{"ANY, tags: {env: [prod], team: [a]}", "ANY, tags: {env: [prod]}", false},
		{`ANY, tags: {env: ["p*d"]}`, `ANY, tags: {env: ["p*"]}`, false},
		{"ANY, tags: {golden: [y]}", "ANY, image_tags: {golden: [y]}", false},
		{"ANY, image_tags: {golden: [y]}", "ANY, image_tags: {golden: [y]}, regions: [us-west-2]", true},
	} {
		for order := range 2 { // a rule between changes nothing
			between := []string{"", "  - name: other\n    match: {ANY, tags: {x: [y]}}\n"}[order]
			p := mustParse(t, "version: 1\nrules:\n  - name: first\n    match: {"+test.first+"}\n"+between+"  - name: second\n    match: {"+test.second+"}\n")
			shadowed := false
			for _, w := range p.Warnings() {
				shadowed = shadowed || w.Rule == "second" && strings.Contains(w.Text, `never matches: rule "first" on line 3`)
			}
			if shadowed != test.shadowed {
				t.Errorf("{%s}, then {%s}: shadowed is %v, want %v", test.first, test.second, shadowed, test.shadowed)
			}
		}
	}
}

// Accounts of an organization may enroll that the deployment does not list, and they change.
func TestShadowedRulesWithAnOrganization(t *testing.T) {
	const both = `["111122223333", "444455556666"]`
	limits := limits()
	limits.Organization = true
	for _, test := range []struct {
		first, second string
		shadowed      bool
	}{
		{"ANY, accounts: " + both, "ANY", false},
		{"ANY", "ANY, accounts: " + both, true},
		{"ANY", `ANY, accounts: ["777788889999"]`, true},
		{"image_owners: " + both + ", max_age: any", "image_owners: [listed], max_age: any", false},
		{"image_owners: " + both + ", max_age: any", "image_owners: [self], max_age: any", false},
		{"image_owners: " + both + ", max_age: any", "accounts: " + both + ", image_owners: [self], max_age: any", true},
		{"image_owners: [listed], max_age: any", "image_owners: [self], max_age: any", true},
	} {
		text := strings.ReplaceAll("version: 1\nrules:\n  - name: first\n    match: {"+test.first+"}\n  - name: second\n    match: {"+test.second+"}\n",
			"ANY", "image_owners: [any], max_age: any")
		p, err := Parse([]byte(text), limits)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(p.Warnings()) > 0; got != test.shadowed {
			t.Errorf("{%s}, then {%s}: warnings %v, want %v", test.first, test.second, p.Warnings(), test.shadowed)
		}
	}
}

// A condition makes a rule narrower by what nobody can tell from the file.
func TestConditionsShadow(t *testing.T) {
	for _, test := range []struct {
		first, second string
		shadowed      bool
	}{
		{"", "enrolled", true},
		{"enrolled", "", false},
		{"enrolled", "enrolled", true},
		{"enrolled", "!enrolled", false},
	} {
		when := func(text string) string {
			if text == "" {
				return ""
			}
			return "    when: '" + text + "'\n"
		}
		p := mustParse(t, "version: 1\nrules:\n  - name: a\n    match: {ANY}\n"+when(test.first)+"  - name: b\n    match: {ANY}\n"+when(test.second))
		if got := len(p.Warnings()) > 0; got != test.shadowed {
			t.Errorf("%q, then %q: warnings %v, want %v", test.first, test.second, p.Warnings(), test.shadowed)
		}
	}
}

func TestUnknownTagKeys(t *testing.T) {
	for text, want := range map[string]string{
		"match: {ANY, tags: {name: [a]}}":                                        `tag key "name": did you mean "Name"?`,
		"match: {ANY, tags: {env: [a]}, image_tags: {Env: [b]}}":                 `tag key "env": did you mean "Env"?`,
		"match: {ANY}\n    hostname: '{tag:NAME}-{instance-id}'":                 `tag key "NAME": did you mean "Name"?`,
		"match: {ANY}\n    when: 'tags.get(\"teleport-hostname\") == \"a\"'":     `did you mean "TeleportHostname"?`,
		"match: {ANY}\n    when: 'tags[\"aws:autoscaling:groupname\"] == \"a\"'": `did you mean "aws:autoscaling:groupName"?`,
		"match: {ANY, tags: {Name: [a], env: [b]}}\n    when: '\"env\" in tags'": "",
		"match: {ANY, tags: {role1: [a], role2: [b]}}":                           "",
	} {
		warnings := mustParse(t, "version: 1\nrules:\n  - name: a\n    "+text+"\n").Warnings()
		if want == "" && len(warnings) > 0 || want != "" && (len(warnings) != 1 || !strings.Contains(warnings[0].String(), `line 3: rule "a": `) || !strings.Contains(warnings[0].Text, want)) {
			t.Errorf("%s: warnings %v, want %q", text, warnings, want)
		}
	}
}
