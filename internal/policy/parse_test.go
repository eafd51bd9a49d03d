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
		"no version":          {"rules: [{name: a}]", "version is 0"},
		"later version":       {"version: 2\nrules: [{name: a}]", "version is 2"},
		"no rules":            {"version: 1", "0 rules"},
		"unknown key":         {rules("name: a\n    shade: red"), "line 4: field shade"},
		"unknown nested key":  {rules("name: a\n    match:\n      vpc: [x]"), "line 5: field vpc"},
		"repeated key":        {rules("name: a\n    port: 1\n    port: 2"), "already defined"},
		"key without value":   {rules("name: a\n    port:"), "line 4: a key or an entry without a value"},
		"alias":               {"version: 1\nrules: [&r {name: a}, *r]", "anchors and aliases"},
		"wrong type":          {rules("name: a\n    port: ssh"), "line 4"},
		"no name":             {rules("port: 22"), "name:"},
		"bad name":            {rules("name: A b"), `line 3: rule "A b": name:`},
		"repeated name":       {rules("name: a\n  - name: a"), `line 4: rule "a": name: another rule has it`},
		"foreign account":     {rules(`{name: a, match: {accounts: ["999999999999"]}}`), `"999999999999" is not in the deployment's list`},
		"foreign region":      {rules("{name: a, match: {regions: [eu-west-1]}}"), `"eu-west-1" is not in the deployment's list`},
		"no accounts":         {rules("{name: a, match: {accounts: []}}"), "matches nothing"},
		"hostname without id": {rules(`{name: a, hostname: "{tag:Name}"}`), "hostname: must end in {instance-id}"},
		"address":             {rules("{name: a, address: dns}"), "address:"},
		"port 0":              {rules("{name: a, port: 0}"), "port: 0"},
		"port too high":       {rules("{name: a, port: 65536}"), "port: 65536"},
		"lifetime too long":   {rules("{name: a, certificate_lifetime: 721h}"), "longer than the deployment's"},
		"lifetime too short":  {rules("{name: a, certificate_lifetime: 59m}"), "shorter than"},
		"lifetime zero":       {rules("{name: a, certificate_lifetime: 0s}"), "shorter than"},
		"lifetime no unit":    {rules("{name: a, certificate_lifetime: 168}"), "line 3"},
		"static *":            {rules(`{name: a, labels: {static: {"*": x}}}`), "any label"},
		"static reserved":     {rules(`{name: a, labels: {static: {hallmark/x: x}}}`), "the signer's to set"},
		"static discovery":    {rules(`{name: a, labels: {static: {teleport.dev/x: x}}}`), "the signer's to set"},
		"static bad key":      {rules(`{name: a, labels: {static: {"a b": x}}}`), "not a label key"},
		"static bad value":    {rules(`{name: a, labels: {static: {a: "\e[0m"}}}`), "not plain text"},
		"prefix empty":        {rules(`{name: a, labels: {tag_prefix: ""}}`), "tag_prefix"},
		"prefix of reserved":  {rules(`{name: a, labels: {tag_prefix: "tele"}}`), "tag_prefix"},
		"prefix reserved":     {rules(`{name: a, labels: {tag_prefix: hallmark/tag/}}`), "tag_prefix"},
		"prefix bad":          {rules(`{name: a, labels: {tag_prefix: "a b"}}`), "tag_prefix"},
		"empty glob":          {rules(`{name: a, labels: {deny_tags: [""]}}`), "deny_tags"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(tt.text), limits())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v; want %q", err, tt.want)
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
	d, err := mustParse(t, "version: 1\nrules: [{name: a, labels: {allow_tags: []}}]").Decide(facts(), cluster())
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

// A policy that parses never widens the limits, and always decides or refuses.
func FuzzParse(f *testing.F) {
	f.Add([]byte(builtIn))
	f.Add([]byte("version: 1\nrules: [{name: a, match: {accounts: [\"111122223333\"]}, hostname: \"x-{tag:Name}-{instance-id}\", address: ipv6, labels: {static: {a: b}, tag_prefix: t/, allow_tags: [\"*\"]}, certificate_lifetime: 2h}]"))
	f.Add([]byte("version: 1\nrules: [&a {name: a}, *a]"))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse(data, limits())
		if err != nil {
			return
		}
		d, err := p.Decide(facts(), cluster())
		if err != nil {
			return
		}
		if d.Lifetime < ShortestLifetime || d.Lifetime > LongestLifetime {
			t.Errorf("lifetime %s", d.Lifetime)
		}
		if err := checkHostname(d.Hostname, facts(), cluster()); err != nil {
			t.Error(err)
		}
		if d.Labels["hallmark/account"] != account || d.Labels["teleport.dev/instance-id"] != ownID {
			t.Errorf("labels: %v", d.Labels)
		}
	})
}
