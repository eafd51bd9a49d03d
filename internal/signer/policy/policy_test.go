package policy

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

const (
	account = "111122223333"
	ownID   = "i-0a1b2c3d4e5f60718"
	otherID = "i-0123456789abcdef0"
)

func limits() Limits {
	return Limits{
		Accounts:    []ec2ref.Account{account, "444455556666"},
		Regions:     []ec2ref.Region{"us-west-2", "hm-test-1"},
		MaxLifetime: LongestLifetime,
	}
}

func facts() node.Facts {
	return node.Facts{
		Account: account, Region: "us-west-2", InstanceID: ownID,
		AccountName: "web team", AccountPath: "/Workloads/Production",
		Zone: "us-west-2a", VPC: "vpc-0a1b2c3d", Subnet: "subnet-0a1b2c3d",
		InstanceProfile: "arn:aws:iam::" + account + ":instance-profile/web/front",
		Image:           "ami-0a1b2c3d", ImageOwner: "444455556666",
		LaunchTime: clock().Add(-time.Hour),
		PrivateIP:  "10.0.0.7", PublicIP: "192.0.2.7", IPv6: "2001:db8::7", PrivateDNS: "ip-10-0-0-7.us-west-2.compute.internal",
		Tags: map[string]string{"Name": "Web Server", "env": "prod"},
	}
}

func clock() time.Time { return time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC) }

func cluster() node.Cluster {
	return node.Cluster{Name: "teleport.example.com", Proxy: "proxy.example.com", Signer: "hallmark.example.com"}
}

// anyImage writes out ANY, which waives what each rule must say.
func anyImage(text string) []byte {
	return []byte(strings.ReplaceAll(text, "ANY", "image_owners: [any], max_age: any"))
}

func mustParse(t *testing.T, text string) *Policy {
	t.Helper()
	p, err := Parse(anyImage(text), limits())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDefaultDecision(t *testing.T) {
	p, err := Default(limits())
	if err != nil {
		t.Fatal(err)
	}
	d, err := p.Decide(facts(), cluster(), clock())
	if err != nil {
		t.Fatal(err)
	}
	if d.Rule != "default" || d.Hostname != "web-server-"+ownID || d.Address != "10.0.0.7:22" || d.Lifetime != 168*time.Hour {
		t.Errorf("decision: %+v", d)
	}
	want := map[string]string{
		"teleport.dev/instance-id": ownID, "teleport.dev/account-id": account, "teleport.dev/aws-region": "us-west-2",
		"hallmark/signer": "hallmark.example.com", "hallmark/account": account, "hallmark/vpc": "vpc-0a1b2c3d",
		"hallmark/image-owner": "444455556666", "hallmark/rule": "default",
		"aws/Name": "Web Server", "aws/env": "prod",
	}
	if !maps.Equal(d.Labels, want) {
		t.Errorf("labels: %v, want %v", d.Labels, want)
	}
}

func TestDefaultLifetimeIsWithinTheDeployments(t *testing.T) {
	l := limits()
	l.MaxLifetime = 24 * time.Hour
	p, err := Default(l)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := p.Decide(facts(), cluster(), clock()); err != nil || d.Lifetime != 24*time.Hour {
		t.Errorf("lifetime %s, error %v; want the deployment's 24h", d.Lifetime, err)
	}
}

func TestFirstMatchingRuleWins(t *testing.T) {
	p := mustParse(t, `
version: 1
rules:
  - name: elsewhere
    match: {ANY, regions: [hm-test-1]}
  - name: public
    match: {ANY, accounts: ["111122223333"], regions: [us-west-2]}
    hostname: "{region}-web-{tag:env}-{instance-id}"
    address: public
    port: 2222
    certificate_lifetime: 48h
    labels:
      static: {team: infra, tag_env: static wins}
      tag_prefix: tag_
      allow_tags: ["Na*", "e*"]
      deny_tags: [Name]
  - name: rest
    match: {ANY}
`)
	d, err := p.Decide(facts(), cluster(), clock())
	if err != nil {
		t.Fatal(err)
	}
	if d.Rule != "public" || d.Hostname != "us-west-2-web-prod-"+ownID || d.Address != "192.0.2.7:2222" || d.Lifetime != 48*time.Hour {
		t.Errorf("decision: %+v", d)
	}
	if d.Labels["team"] != "infra" || d.Labels["tag_env"] != "static wins" || d.Labels["hallmark/rule"] != "public" {
		t.Errorf("labels: %v", d.Labels)
	}
	if _, denied := d.Labels["tag_Name"]; denied {
		t.Errorf("denied tag became a label: %v", d.Labels)
	}
}

func TestRefusals(t *testing.T) {
	tests := map[string]struct {
		rule   string
		mutate func(*node.Facts)
		kind   error
		want   string
	}{
		"no rule matches":   {"{name: a, match: {ANY, regions: [hm-test-1]}}", func(*node.Facts) {}, ErrRefused, "no rule matches"},
		"no public address": {"{name: a, match: {ANY}, address: public}", func(f *node.Facts) { f.PublicIP = "" }, ErrIncomplete, "no public address"},
		"no ipv6 address":   {"{name: a, match: {ANY}, address: ipv6}", func(f *node.Facts) { f.IPv6 = "" }, ErrIncomplete, "no ipv6 address"},
		"id is no label":    {"{name: a, match: {ANY}}", func(f *node.Facts) { f.InstanceID = "i-0A.example" }, ErrRefused, "not one lower-case DNS label"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := facts()
			tt.mutate(&f)
			_, err := mustParse(t, "version: 1\nrules: ["+tt.rule+"]").Decide(f, cluster(), clock())
			if !errors.Is(err, tt.kind) || errors.Is(err, ErrRefused) && errors.Is(err, ErrIncomplete) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v; want %v with %q", err, tt.kind, tt.want)
			}
		})
	}
}

func TestIPv6AddressIsBracketed(t *testing.T) {
	d, err := mustParse(t, "version: 1\nrules: [{name: a, match: {ANY}, address: ipv6}]").Decide(facts(), cluster(), clock())
	if err != nil || d.Address != "[2001:db8::7]:22" {
		t.Errorf("address %q, error %v", d.Address, err)
	}
}

func TestTagsNeverSetReservedLabels(t *testing.T) {
	p := mustParse(t, `{version: 1, rules: [{name: a, match: {ANY}, labels: {tag_prefix: "x", static: {team: infra}}}]}`)
	f := facts()
	f.Tags = map[string]string{
		"*": "any", "has space": "1", "naïve": "1", "ok": "1", "ctl": "a\x1b[2J", "bytes": "\xff",
		"long": strings.Repeat("v", node.MaxLabelValueBytes+1), "aws:autoscaling:groupName": "asg",
	}
	d, err := p.Decide(f, cluster(), clock())
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"*", "bytes", "ctl", "has space", "long", "naïve"}; !slices.Equal(d.SkippedTags, want) {
		t.Errorf("skipped %q, want %q", d.SkippedTags, want)
	}
	if d.Labels["xok"] != "1" || d.Labels["xaws:autoscaling:groupName"] != "asg" {
		t.Errorf("labels: %v", d.Labels)
	}
}

// No valid prefix gives a reserved key, but the renderer must refuse one anyway.
func TestFixedLabelsWinWhateverThePrefix(t *testing.T) {
	r := rule{name: "a", address: addressPrivate, port: 22, labels: labelRules{
		allow: []glob{"*"}, static: map[string]string{"hallmark/account": "forged"},
	}}
	f := facts()
	f.Tags = map[string]string{"teleport.dev/account-id": "forged", "teleport.internal/x": "forged", "hallmark/x": "forged"}
	d, err := r.decide(f, cluster())
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range d.Labels {
		if value == "forged" {
			t.Errorf("label %s is a tag's", key)
		}
	}
}

func TestUnknownFactsGiveNoLabel(t *testing.T) {
	f := facts()
	f.ImageOwner, f.VPC = "", ""
	d, err := mustParse(t, "version: 1\nrules: [{name: a, match: {ANY}}]").Decide(f, cluster(), clock())
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"hallmark/image-owner", "hallmark/vpc"} {
		if value, ok := d.Labels[key]; ok {
			t.Errorf("label %s = %q of an unknown fact", key, value)
		}
	}
}

// Different keys give different labels, whatever else they share. A static label wins over a
// tag, and the decision notes that.
func TestLabelsDoNotCollide(t *testing.T) {
	p := mustParse(t, `{version: 1, rules: [{name: a, match: {ANY}, labels: {tag_prefix: "x", static: {xteam: static, xother: static}}}]}`)
	f := facts()
	f.Tags = map[string]string{"team": "tag", "Team": "1", "xteam": "2", "team ": "3", "aws/team": "4"}
	for range 20 {
		d, err := p.Decide(f, cluster(), clock())
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"xteam": "static", "xother": "static", "xTeam": "1", "xxteam": "2", "xaws/team": "4"}
		maps.Copy(want, node.Labels(f, cluster(), "a", nil))
		if !maps.Equal(d.Labels, want) {
			t.Fatalf("labels %v, want %v", d.Labels, want)
		}
		if !slices.Equal(d.SkippedTags, []string{"team "}) || len(d.Notes) != 1 || !strings.HasPrefix(d.Notes[0], `tag "team": `) {
			t.Fatalf("skipped %q, notes %q", d.SkippedTags, d.Notes)
		}
	}
}

func TestTagLabelsAreBounded(t *testing.T) {
	f := facts()
	f.Tags = make(map[string]string)
	for i := range 200 {
		f.Tags[strings.Repeat("k", i+1)] = "v"
	}
	d, err := mustParse(t, builtIn).Decide(f, cluster(), clock())
	if err != nil {
		t.Fatal(err)
	}
	if got := len(d.Labels) - len(node.Labels(f, cluster(), "default", nil)); got != maxTagLabels {
		t.Errorf("%d labels of tags, want %d", got, maxTagLabels)
	}
}

func TestGlob(t *testing.T) {
	tests := []struct {
		glob glob
		s    string
		want bool
	}{
		{"*", "", true}, {"*", "a/b", true}, {"a", "a", true}, {"a", "ab", false}, {"a*", "ab", true},
		{"*b", "ab", true}, {"*b", "ba", false}, {"a*c", "abc", true}, {"a*a", "a", false},
		{"a*b*c", "axxbyyc", true}, {"a*b*c", "axxc", false}, {"**", "x", true}, {"?", "x", false},
		{"*ab*ab", "ab", false}, {"*ab*ab", "abab", true},
	}
	for _, tt := range tests {
		if got := tt.glob.matches(tt.s); got != tt.want {
			t.Errorf("%q matches %q: %v, want %v", tt.glob, tt.s, got, tt.want)
		}
	}
}
