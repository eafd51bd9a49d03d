package policy

import (
	"strings"
	"testing"
)

func TestParseRefuses(t *testing.T) {
	rules := func(r string) string { return "version: 1\nrules:\n  - " + r + "\n" }
	tests := map[string]struct{ text, want string }{
		"empty":               {"", "empty"},
		"not YAML":            {"{", "line 1"},
		"two documents":       {rules("name: a") + "---\n" + rules("name: b"), "more than one"},
		"too long":            {strings.Repeat("#", maxFileBytes+1), "bytes"},
		"no version":          {"rules: [{name: a, match: {ANY}}]", "line 1: version is missing; write version: 1"},
		"later version":       {"version: 2\nrules: [{name: a, match: {ANY}}]", "version is 2"},
		"no rules":            {"version: 1", "line 1: rules is missing; list 1 to 100 rules"},
		"unknown key":         {rules("name: a\n    shade: red"), `line 4: rule "a": unknown key shade; the keys here are name, match, when`},
		"unknown nested key":  {rules("name: a\n    match:\n      vpc: [x]"), `line 5: rule "a": match: unknown key vpc; did you mean vpcs?`},
		"repeated key":        {rules("name: a\n    port: 1\n    port: 2"), `line 5: rule "a": key port already defined on line 4; remove one`},
		"key without value":   {rules("name: a\n    port:"), `line 4: rule "a": port: empty value`},
		"alias":               {"version: 1\nrules: [&r {name: a, match: {ANY}}, *r]", "anchors and aliases"},
		"wrong type":          {rules("name: a\n    port: ssh"), "line 4"},
		"no name":             {rules("port: 22"), "line 3: rule 1: name is missing"},
		"bad name":            {rules("name: A b"), `line 3: rule "A b": name:`},
		"repeated name":       {rules("{name: a, match: {ANY}}\n  - name: a"), `line 4: rule "a": name: the rule on line 3 has the same name`},
		"foreign account":     {rules(`{name: a, match: {ANY, accounts: ["999999999999"]}}`), `"999999999999" is not in the deployment's list`},
		"foreign region":      {rules("{name: a, match: {ANY, regions: [eu-west-1]}}"), `"eu-west-1" is not in the deployment's list`},
		"no accounts":         {rules("{name: a, match: {ANY, accounts: []}}"), "matches nothing"},
		"hostname without id": {rules(`{name: a, match: {ANY}, hostname: "{tag:Name}"}`), "hostname: must end in {instance-id}"},
		"address":             {rules("{name: a, match: {ANY}, address: dns}"), "address:"},
		"port 0":              {rules("{name: a, match: {ANY}, port: 0}"), "port: 0"},
		"port too high":       {rules("{name: a, match: {ANY}, port: 65536}"), "port: 65536"},
		"lifetime too long":   {rules("{name: a, match: {ANY}, certificate_lifetime: 721h}"), "longer than the deployment's"},
		"lifetime too short":  {rules("{name: a, match: {ANY}, certificate_lifetime: 59m}"), "shorter than"},
		"lifetime zero":       {rules("{name: a, match: {ANY}, certificate_lifetime: 0s}"), "shorter than"},
		"lifetime no unit":    {rules("{name: a, match: {ANY}, certificate_lifetime: 168}"), "line 3"},
		"static *":            {rules(`{name: a, match: {ANY}, labels: {static: {"*": x}}}`), "any label"},
		"static reserved":     {rules(`{name: a, match: {ANY}, labels: {static: {hallmark/x: x}}}`), "the signer sets this label"},
		"static discovery":    {rules(`{name: a, match: {ANY}, labels: {static: {teleport.dev/x: x}}}`), "the signer sets this label"},
		"static bad key":      {rules(`{name: a, match: {ANY}, labels: {static: {"a b": x}}}`), "not a label key"},
		"static bad value":    {rules(`{name: a, match: {ANY}, labels: {static: {a: "\e[0m"}}}`), "not plain text"},
		"prefix empty":        {rules(`{name: a, match: {ANY}, labels: {tag_prefix: ""}}`), "tag_prefix"},
		"prefix of reserved":  {rules(`{name: a, match: {ANY}, labels: {tag_prefix: "tele"}}`), "tag_prefix"},
		"prefix reserved":     {rules(`{name: a, match: {ANY}, labels: {tag_prefix: hallmark/tag/}}`), "tag_prefix"},
		"prefix bad":          {rules(`{name: a, match: {ANY}, labels: {tag_prefix: "a b"}}`), "tag_prefix"},
		"empty glob":          {rules(`{name: a, match: {ANY}, labels: {deny_tags: [""]}}`), "deny_tags"},
		"no image owners":     {rules("name: a\n    match:\n      max_age: 24h"), `line 4: rule "a": match.image_owners: required`},
		"no age":              {rules("name: a\n    match:\n      image_owners: [self]"), `line 4: rule "a": match.max_age: required`},
		"no match":            {rules("name: a"), `line 3: rule "a": match.image_owners: required`},
		"owner any and more":  {rules("{name: a, match: {image_owners: [any, self], max_age: any}}"), "match.image_owners:"},
		"owner by name":       {rules("{name: a, match: {image_owners: [amazon], max_age: any}}"), "match.image_owners:"},
		"no owner":            {rules("{name: a, match: {image_owners: [], max_age: any}}"), "matches nothing"},
		"age of weeks":        {rules("name: a\n    match:\n      image_owners: [any]\n      max_age: 1w"), "line 6: rule \"a\": match.max_age:"},
		"age zero":            {rules("{name: a, match: {image_owners: [any], max_age: 0s}}"), "match.max_age:"},
		"age without unit":    {rules("{name: a, match: {image_owners: [any], max_age: 24}}"), "match.max_age:"},
		"vpc":                 {rules("name: a\n    match:\n      ANY_BLOCK\n      vpcs:\n        - vpc-0a1b2c3d\n        - vpc-x"), `line 9: rule "a": match.vpcs: "vpc-x" is not a VPC id, such as vpc-0123456789abcdef0`},
		"no vpcs":             {rules("{name: a, match: {ANY, vpcs: []}}"), "match.vpcs: an empty list"},
		"subnet":              {rules("{name: a, match: {ANY, subnets: [vpc-0a1b2c3d]}}"), "match.subnets:"},
		"image":               {rules(`{name: a, match: {ANY, images: ["ami-*"]}}`), "match.images:"},
		"too many images":     {rules("{name: a, match: {ANY, images: [" + strings.Repeat("ami-0a1b2c3d,", maxEntries+1) + "]}}"), "match.images: 101 entries"},
		"account form":        {rules("{name: a, match: {ANY, accounts: [prod]}}"), "match.accounts:"},
		"profile name":        {rules("{name: a, match: {ANY, instance_profiles: [web]}}"), "match.instance_profiles:"},
		"profile star early":  {rules(`{name: a, match: {ANY, instance_profiles: ["arn:aws:iam::111122223333:instance-profile/*/web"]}}`), "match.instance_profiles:"},
		"profile any account": {rules(`{name: a, match: {ANY, instance_profiles: ["arn:aws:iam::*:instance-profile/web"]}}`), "match.instance_profiles:"},
		"role":                {rules(`{name: a, match: {ANY, instance_profiles: ["arn:aws:iam::111122223333:role/web"]}}`), "match.instance_profiles:"},
		"no tags":             {rules("{name: a, match: {ANY, tags: {}}}"), "match.tags: 0 tags"},
		"tag without values":  {rules("name: a\n    match:\n      ANY_BLOCK\n      tags:\n        env: [a]\n        team: []"), `line 9: rule "a": match.tags.team: an empty list`},
		"tag not a list":      {rules("{name: a, match: {ANY, tags: {env: prod}}}"), "line 3"},
		"image tag":           {rules(`{name: a, match: {ANY, image_tags: {env: [""]}}}`), "match.image_tags.env: pattern"},
		"pattern missing":     {rules("{name: a, match: {ANY}, teleport_hostname: {}}"), "teleport_hostname: pattern is missing"},
		"pattern not closed":  {rules("name: a\n    match: {ANY}\n    teleport_hostname:\n      suffixes: []\n      pattern: '('"), `line 7: rule "a": teleport_hostname.pattern:`},
		"pattern unanchored":  {rules("{name: a, match: {ANY}, teleport_hostname: {pattern: 'a)|(b'}}"), "teleport_hostname.pattern:"},
		"suffix without dot":  {rules("{name: a, match: {ANY}, teleport_hostname: {pattern: a, suffixes: [corp.example]}}"), "begin with a dot"},
		"suffix of digits":    {rules("{name: a, match: {ANY}, teleport_hostname: {pattern: a, suffixes: [.0.0.1]}}"), "an IP address"},
		"suffix of AWS":       {rules("{name: a, match: {ANY}, teleport_hostname: {pattern: a, suffixes: [.us-west-2.compute.internal]}}"), "AWS assigns the names"},
		"suffix of AWS China": {rules("{name: a, match: {ANY}, teleport_hostname: {pattern: a, suffixes: [.cn-north-1.compute.amazonaws.com.cn]}}"), "AWS assigns the names"},
		"suffix of AWS EU":    {rules("{name: a, match: {ANY}, teleport_hostname: {pattern: a, suffixes: [.eusc-de-east-1.compute.amazonaws.eu]}}"), "AWS assigns the names"},
		"suffix of AWS ISO":   {rules("{name: a, match: {ANY}, teleport_hostname: {pattern: a, suffixes: [.c2s.ic.gov]}}"), "AWS assigns the names"},
		"suffix localhost":    {rules("{name: a, match: {ANY}, teleport_hostname: {pattern: a, suffixes: [.localhost]}}"), "always mean the machine itself"},
		"suffix upper case":   {rules("{name: a, match: {ANY}, teleport_hostname: {pattern: a, suffixes: [.Corp.example]}}"), "not a lower-case DNS label"},
		"suffix empty":        {rules("{name: a, match: {ANY}, teleport_hostname: {pattern: a, suffixes: [.]}}"), "not a lower-case DNS label"},
		"suffix too long":     {rules("{name: a, match: {ANY}, teleport_hostname: {pattern: a, suffixes: [" + strings.Repeat(".abcdefghi", 20) + "]}}"), "bytes of domain"},
		"principal":           {rules("{name: a, match: {ANY}, principals: [private_ip, dns]}"), `principals: "dns"`},
		"principal twice":     {rules("{name: a, match: {ANY}, principals: [ipv6, ipv6]}"), "twice"},
		"when of a string":    {rules("name: a\n    match: {ANY}\n    when: account"), `line 5: rule "a": when: expression must return bool, not string`},
		"static at its line":  {rules("name: a\n    match: {ANY}\n    labels:\n      static:\n        a: b\n        hallmark/x: y"), `line 8: rule "a": labels.static.hallmark/x:`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			text := strings.ReplaceAll(tt.text, "ANY_BLOCK", "image_owners: [any]\n      max_age: any")
			_, err := Parse(anyImage(text), limits())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v; want %q", err, tt.want)
			}
			if err != nil && len(err.Error()) > 2000 {
				t.Errorf("%d bytes of error", len(err.Error()))
			}
		})
	}
}

func TestParseRefusesWithoutALongestLifetime(t *testing.T) {
	for _, l := range []Limits{{}, {MaxLifetime: LongestLifetime + 1}} {
		if _, err := Default(l); err == nil {
			t.Errorf("limits %+v were accepted; a lifetime of 0 never ends", l)
		}
	}
}

func TestAnEmptyAllowListAllowsNoTag(t *testing.T) {
	d, err := mustParse(t, "version: 1\nrules: [{name: a, match: {ANY}, labels: {allow_tags: []}}]").Decide(facts(), cluster(), clock())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := d.Labels["aws/Name"]; ok {
		t.Errorf("labels: %v", d.Labels)
	}
}

func TestSHA256IsOfTheExactBytes(t *testing.T) {
	a, b := mustParse(t, builtIn), mustParse(t, builtIn+"# comment\n")
	if a.SHA256 == b.SHA256 || len(a.SHA256) != 64 {
		t.Errorf("hashes %s and %s", a.SHA256, b.SHA256)
	}
}
