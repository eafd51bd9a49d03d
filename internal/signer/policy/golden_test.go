package policy

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/golden"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

var update = flag.Bool("update", false, "write the golden files")

// TestGoldenDecisions shows the production example at work, decision by decision.
func TestGoldenDecisions(t *testing.T) {
	text, err := os.ReadFile("../../../templates/policy/production.yaml")
	if err != nil {
		t.Fatal(err)
	}
	p, err := Parse(text, limits())
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]func(*node.Facts){
		"bastion":                 func(*node.Facts) {},
		"bastion-with-a-suffix":   func(f *node.Facts) { f.Tags[hostnameTag] = "bastion-2.corp.example.com" },
		"bastion-by-another-name": func(f *node.Facts) { f.Tags[hostnameTag] = "bastion-1\nproxy" },
		"bastion-too-old":         func(f *node.Facts) { f.LaunchTime = f.LaunchTime.Add(-time.Hour) },
		"bastion-too-old-but-enrolled": func(f *node.Facts) {
			f.LaunchTime, f.Enrolled = f.LaunchTime.Add(-time.Hour), true
		},
		"bastion-without-a-public-address": func(f *node.Facts) { f.PublicIP = "" },
		"web":                              web,
		"web-in-another-vpc":               func(f *node.Facts) { web(f); f.VPC = "vpc-00000000" },
		"web-without-env":                  func(f *node.Facts) { web(f); delete(f.Tags, "env") },
		"web-of-a-copied-image":            func(f *node.Facts) { web(f); f.ImageOwner = "444455556666" },
		"web-with-bad-tags": func(f *node.Facts) {
			web(f)
			f.Tags["Name"] = "a,b *\n" + otherID
			f.Tags["team-secret"], f.Tags["team-\u0430"], f.Tags["team:x"] = "s", "look-alike", "\x1b[2J"
		},
		"migration": func(f *node.Facts) {
			*f = node.Facts{
				Account: account, Region: "us-west-2", InstanceID: ownID, IPv6: "2001:db8::7",
				Tags: map[string]string{"hallmark-migration": "2026-07", "*": "any", "teleport.dev/x": "y"},
			}
		},
		"nobody": func(f *node.Facts) { *f = node.Facts{Account: "444455556666", Region: "us-west-2", InstanceID: ownID} },
	}
	for name, mutate := range tests {
		t.Run(name, func(t *testing.T) {
			f := bastion()
			mutate(&f)
			e := p.Explain(f, cluster(), clock())
			if d, err := p.Decide(f, cluster(), clock()); (err == nil) != (e.Err == nil) || d.Rule != e.Decision.Rule {
				t.Errorf("decided %+v, %v; explained %+v, %v", d, err, e.Decision, e.Err)
			}
			compareGolden(t, name, e)
		})
	}
}

func bastion() node.Facts {
	f := facts()
	f.VPC, f.Subnet, f.Image = "vpc-0123456789abcdef0", "subnet-0123456789abcdef0", "ami-0123456789abcdef0"
	f.InstanceProfile = "arn:aws:iam::" + account + ":instance-profile/bastion/west"
	f.Tags = map[string]string{"Name": "Bastion", hostnameTag: "bastion-1"}
	return f
}

func web(f *node.Facts) {
	*f = facts()
	f.VPC, f.ImageOwner, f.ImageTags = "vpc-0123456789abcdef0", account, map[string]string{"golden": "yes", "release": "2026.07"}
	f.LaunchTime = clock().Add(-5 * time.Minute)
	f.Tags = map[string]string{"Name": "Shop", "env": "prod", "tier": "web-front", "team": "storefront", "cost": "1"}
}

func compareGolden(t *testing.T, name string, e Explanation) {
	t.Helper()
	shown := struct {
		Rules    []Verdict
		Refusal  string    `json:",omitempty"`
		Decision *Decision `json:",omitempty"`
	}{Rules: e.Rules, Decision: &e.Decision}
	if e.Err != nil {
		shown.Refusal, shown.Decision = e.Err.Error(), nil
	}
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(shown); err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, filepath.Join("testdata", "decisions", name+".json"), []byte(b.String()), *update)
}
