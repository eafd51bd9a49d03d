package deployment

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity/identitytest"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment/deploymenttest"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
)

// Each row is what somebody who may write one of the two files, but not both, might try. A
// person who may only edit the policy must stay within the deployment.
func TestAttackConfiguration(t *testing.T) {
	with := func(old, replacement string) string {
		changed := strings.Replace(deploymenttest.Minimal, old, replacement, 1)
		if changed == deploymenttest.Minimal {
			t.Fatalf("%q is not in the file", old)
		}
		return changed
	}
	region := func(name string) string { return with("us-west-2", `"`+name+`"`) }
	account := func(settings string) string { return with(`"111122223333"`, settings) }
	pem := certificate(t)
	for name, test := range map[string]struct{ text, want string }{
		"a shipped region overridden":      {deploymenttest.Minimal + "region_certificates: {us-west-2: " + pem + "}", "region_certificates"},
		"a region that is a host":          {region("evil.example/"), "regions:"},
		"a region with a user":             {region("us-west-2@evil.example"), "regions:"},
		"a region with a slash":            {region("us-west-2/x"), "regions:"},
		"a region with a line feed":        {region(`us-west-2\nHost: evil.example`), "regions:"},
		"a region in another case":         {region("US-WEST-2"), "regions:"},
		"an added region that is a host":   {deploymenttest.Minimal + "region_certificates: {\"evil.example/\": " + pem + "}", "region_certificates"},
		"an added region with an at sign":  {deploymenttest.Minimal + "region_certificates: {\"us-west-9@evil\": " + pem + "}", "region_certificates"},
		"lifetime 0":                       {deploymenttest.Minimal + "max_certificate_lifetime: 0s", "max_certificate_lifetime"},
		"lifetime below 0":                 {deploymenttest.Minimal + "max_certificate_lifetime: -1h", "max_certificate_lifetime"},
		"lifetime without end":             {deploymenttest.Minimal + "max_certificate_lifetime: 87600h", "max_certificate_lifetime"},
		"every account":                    {account(`"*"`), "accounts:"},
		"role of another account":          {account(`{id: "111122223333", role: "arn:aws:iam::999999999999:role/r", external_id: abc}`), "is in account 999999999999"},
		"role of another partition":        {account(`{id: "111122223333", role: "arn:aws-cn:iam::111122223333:role/r", external_id: abc}`), "partition"},
		"role without external id":         {account(`{id: "111122223333", role: "arn:aws:iam::111122223333:role/r"}`), "external_id"},
		"a user for a role":                {account(`{id: "111122223333", role: "arn:aws:iam::111122223333:user/r", external_id: abc}`), "role"},
		"audience that matches everything": {with("hallmark.example.com", `"*"`), "audience"},
		"a source list of nobody":          {deploymenttest.Minimal + "allow_sources: []", "allow_sources"},
		"a source that is a host":          {deploymenttest.Minimal + "allow_sources: [evil.example]", "allow_sources"},
		"a key twice":                      {deploymenttest.Minimal + "regions: [us-east-1]", "already defined"},
		"an alias":                         {with(`["111122223333"]`, `&a ["111122223333"]`) + "allow_sources: *a", ""},
	} {
		t.Run("deployment: "+name, func(t *testing.T) {
			if _, err := parseDeployment([]byte(test.text)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}

	limits := policy.Limits{Accounts: []ec2ref.Account{"111122223333"}, Regions: []ec2ref.Region{"us-west-2"}, MaxLifetime: 48 * time.Hour}
	const match = "match: {image_owners: [self], max_age: 24h}"
	for name, test := range map[string]struct{ rule, want string }{
		"a rule that is fine":                 {"{name: a, " + match + "}", ""},
		"an account that is not listed":       {`{name: a, match: {accounts: ["999999999999"], image_owners: [self], max_age: 24h}}`, "can only narrow"},
		"a region that is not listed":         {"{name: a, match: {regions: [us-east-1], image_owners: [self], max_age: 24h}}", "can only narrow"},
		"a region with an at sign":            {`{name: a, match: {regions: ["us-west-2@evil"], image_owners: [self], max_age: 24h}}`, "regions"},
		"a region with a slash":               {`{name: a, match: {regions: ["us-west-2/"], image_owners: [self], max_age: 24h}}`, "regions"},
		"every account, by an empty list":     {"{name: a, match: {accounts: [], image_owners: [self], max_age: 24h}}", "accounts"},
		"no provenance":                       {"{name: a, match: {max_age: 24h}}", "image_owners"},
		"no age":                              {"{name: a, match: {image_owners: [self]}}", "max_age"},
		"age 0":                               {"{name: a, match: {image_owners: [self], max_age: 0s}}", "max_age"},
		"lifetime 0":                          {"{name: a, " + match + ", certificate_lifetime: 0s}", "certificate_lifetime"},
		"lifetime below 0":                    {"{name: a, " + match + ", certificate_lifetime: -1h}", "certificate_lifetime"},
		"lifetime beyond the deployment's":    {"{name: a, " + match + ", certificate_lifetime: 49h}", "can only narrow"},
		"host name without the instance id":   {"{name: a, " + match + `, hostname: "{tag:Name}"}`, "hostname"},
		"host name with the id in front":      {"{name: a, " + match + `, hostname: "{instance-id}-{tag:Name}"}`, "hostname"},
		"host name with a dot":                {"{name: a, " + match + `, hostname: "a.{instance-id}"}`, "hostname"},
		"pattern that lifts its own anchors":  {"{name: a, " + match + `, teleport_hostname: {pattern: "a)|(.*"}}`, "pattern"},
		"suffix of AWS":                       {"{name: a, " + match + ", teleport_hostname: {pattern: a, suffixes: [.ec2.internal]}}", "suffixes"},
		"principal of one's own choice":       {"{name: a, " + match + ", principals: [bastion]}", "principals"},
		"static label of the signer":          {"{name: a, " + match + `, labels: {static: {hallmark/account: "999999999999"}}}`, "static"},
		"static label of Teleport":            {"{name: a, " + match + ", labels: {static: {teleport.dev/origin: x}}}", "static"},
		"static label for every key":          {"{name: a, " + match + `, labels: {static: {"*": x}}}`, "static"},
		"label collisions by an empty prefix": {"{name: a, " + match + `, labels: {tag_prefix: ""}}`, "tag_prefix"},
		"a prefix that is the signer's":       {"{name: a, " + match + ", labels: {tag_prefix: hallmark/}}", "tag_prefix"},
		"a prefix that begins the signer's":   {"{name: a, " + match + ", labels: {tag_prefix: hall}}", "tag_prefix"},
		"a prefix that begins Teleport's":     {"{name: a, " + match + ", labels: {tag_prefix: teleport.}}", "tag_prefix"},
		"another Teleport":                    {"{name: a, " + match + `, teleport: {address: "evil.example:443"}}`, "teleport"},
		"a role to assume":                    {"{name: a, " + match + `, role: "arn:aws:iam::999999999999:role/r"}`, "role"},
		"a condition that loops":              {"{name: a, " + match + `, when: "[1,2].all(x, [1,2].all(y, x > y))"}`, "when"},
		"a condition that is no truth":        {"{name: a, " + match + `, when: "account"}`, "when"},
		"a key without a value":               {"{name: a, match: {accounts: , image_owners: [self], max_age: 24h}}", "empty value"},
		"an alias":                            {"{name: a, match: &m {image_owners: [self], max_age: 24h}}", "aliases"},
		"a key twice":                         {"{name: a, " + match + ", " + match + "}", "already defined"},
	} {
		t.Run("policy: "+name, func(t *testing.T) {
			_, err := policy.Parse([]byte("version: 1\nrules:\n- "+test.rule), limits)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

// certificate is one that would be good for a made-up region, in YAML.
func certificate(t *testing.T) string {
	t.Helper()
	region, err := identitytest.NewRegion("hm-test-1")
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(string(region.CertificatePEM()))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
