package policy

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// A policy that parses never widens the limits, and always decides or refuses.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("../../../templates/policy/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatalf("examples %q, error %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(builtIn))
	f.Add(anyImage(tagPolicy))
	f.Add(anyImage(whenPolicy(`tags.get("env") == "prod" && age < duration("2h")`)))
	f.Add(anyImage("version: 1\nrules: [&a {name: a, match: {ANY}}, *a]"))
	f.Add(anyImage(`{version: 1, rules: [{name: a, match: {ANY}, labels: {static: {a: b}, tag_prefix: t/, allow_tags: ["*"], deny_tags: [a*]}}]}`))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte(strings.Repeat("long", 1000) + ": 1"))
	f.Add(anyImage("version: 1\nrules: [{name: a, match: {ANY, tags: {" + strings.Repeat("long", 1000) + ": []}}}]"))
	f.Add(anyImage("version: 1\nrules: [{name: " + strings.Repeat("long", 1000) + ", match: {ANY}}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse(data, limits())
		if err != nil {
			if len(err.Error()) > 2000 {
				t.Errorf("%d bytes of error", len(err.Error()))
			}
			return
		}
		for _, instance := range []node.Facts{facts(), bastion(), {Account: otherAccount, Region: "eu-west-1", InstanceID: otherID}} {
			instance.Tags = map[string]string{"Name": "a,b", hostnameTag: "bastion", "*": "x", "teleport.dev/account-id": "forged"}
			checkDecision(t, p, instance)
		}
	})
}

func checkDecision(t *testing.T, p *Policy, f node.Facts) {
	t.Helper()
	c := cluster()
	d, err := p.Decide(f, c, clock())
	if err != nil {
		return
	}
	if l := limits(); !slices.Contains(l.Accounts, f.Account) || !slices.Contains(l.Regions, f.Region) {
		t.Errorf("account %s in %s was admitted", f.Account, f.Region)
	}
	if d.Lifetime < ShortestLifetime || d.Lifetime > LongestLifetime {
		t.Errorf("lifetime %s", d.Lifetime)
	}
	checkGranted(t, d.Hostname, c)
	if label, _, _ := strings.Cut(d.Hostname, "."); d.Hostname != f.Tags[hostnameTag] && !strings.HasSuffix(label, f.InstanceID.String()) {
		t.Errorf("host name %q is neither the tag's nor ends in the id", d.Hostname)
	}
	for _, name := range d.Names {
		if !slices.Contains([]string{f.PrivateIP, f.PublicIP, f.IPv6, f.PrivateDNS}, name) {
			t.Errorf("%q is not the instance's own", name)
		}
	}
	for key, value := range node.Labels(f, c, d.Rule, nil) {
		if d.Labels[key] != value {
			t.Errorf("label %s is %q, want %q", key, d.Labels[key], value)
		}
	}
	if _, ok := d.Labels[node.Wildcard]; ok {
		t.Error("label * was given")
	}
}

// Any file gives either facts or an error of one bounded line, and the policy can evaluate the
// facts.
func FuzzParseFacts(f *testing.F) {
	f.Add([]byte(`{"account": "111122223333", "region": "us-west-2", "instance_id": "i-0a1b2c3d4e5f60718", "image_tags": {"golden": "yes"}, "launch_time": "2026-07-01T13:00:00+02:00"}`))
	f.Add([]byte(`{"account": "1", "region": "r", "instance_id": "i", "tags": {"a": "b", "a": "c"}}`))
	f.Add([]byte(`{"tags": {"a": {}}}`))
	p, err := Parse(anyImage(whenPolicy(`tags.get("env") == "" && age > duration("0s")`)), Unlimited())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		facts, err := node.ParseFacts(data)
		if err != nil {
			if len(err.Error()) > 1000 {
				t.Errorf("%d bytes of error", len(err.Error()))
			}
			return
		}
		if facts.Account == "" || facts.Region == "" || facts.InstanceID == "" {
			t.Errorf("facts %+v", facts)
		}
		p.Explain(facts, cluster(), clock())
	})
}
