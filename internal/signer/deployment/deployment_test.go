package deployment

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment/deploymenttest"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

// anyPolicy is a valid policy file.
const anyPolicy = "version: 1\nrules: [{name: a, match: {image_owners: [self], max_age: 24h}}]"

func TestReadDeployment(t *testing.T) {
	path := deploymenttest.Write(t, map[string]string{
		"deployment.yaml": deploymenttest.Minimal + "max_certificate_lifetime: 2d\npolicy_file: policy.yaml\n",
		"policy.yaml":     anyPolicy,
		"identity.pem":    "identity",
	})
	d, err := readDeployment(path)
	if err != nil {
		t.Fatal(err)
	}
	if d.Audience != "hallmark.example.com" || time.Duration(d.MaxCertificateLifetime) != 48*time.Hour || d.policy == nil || d.keyring == nil {
		t.Errorf("deployment %+v", d)
	}
	want := teleport.IdentityFile(filepath.Join(filepath.Dir(path), "identity.pem"))
	if c, err := d.teleport("login", d.Teleport.Login, aws.Config{}, slog.New(slog.DiscardHandler)); err != nil || c.Address != "proxy.example.com:443" || c.Login != want {
		t.Errorf("teleport %+v, error %v", c, err)
	}
}

func TestDeploymentDefaults(t *testing.T) {
	d, err := readDeployment(deploymenttest.Write(t, map[string]string{"deployment.yaml": deploymenttest.Minimal, "identity.pem": ""}))
	if err != nil {
		t.Fatal(err)
	}
	if d.MaxCertificateLifetime != policy.Duration(policy.LongestLifetime) || d.policy.SHA256 == "" || d.sources != nil || d.URLAuth != urlAuthNone {
		t.Errorf("deployment %+v", d)
	}
}

func TestAccounts(t *testing.T) {
	d, err := parseDeployment([]byte(strings.Replace(deploymenttest.Minimal, `["111122223333"]`, `
  - 011122223333
  - id: "111122223333"
    role: arn:aws:iam::111122223333:role/hallmark/member
    external_id: hallmark.example.com
  - {id: 222233334444, role: "arn:aws:iam::222233334444:role/member", external_id: two}`, 1)))
	if err != nil {
		t.Fatal(err)
	}
	want := []inventory.Account{
		{ID: "011122223333"},
		{ID: "111122223333", Role: "arn:aws:iam::111122223333:role/hallmark/member", ExternalID: "hallmark.example.com"},
		{ID: "222233334444", Role: "arn:aws:iam::222233334444:role/member", ExternalID: "two"},
	}
	if got := d.Accounts.inventory(); !slices.Equal(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got := d.limits().Accounts; !slices.Equal(got, []ec2ref.Account{"011122223333", "111122223333", "222233334444"}) {
		t.Errorf("limits %v", got)
	}
}

func TestSecondLock(t *testing.T) {
	d, err := parseDeployment([]byte(deploymenttest.Minimal + "allow_sources: [192.0.2.0/24, \"2001:db8::/32\", 198.51.100.7/32]\nurl_auth: aws_iam\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(d.sources); got != "[192.0.2.0/24 2001:db8::/32 198.51.100.7/32]" || d.URLAuth != urlAuthIAM {
		t.Errorf("sources %s, url_auth %s", got, d.URLAuth)
	}
}

func TestParseDeploymentRefuses(t *testing.T) {
	with := func(old, replacement string) string {
		return strings.Replace(deploymenttest.Minimal, old, replacement, 1)
	}
	login := func(settings string) string { return with("method: identity-file, file: identity.pem", settings) }
	member := func(fields string) string { return with(`"111122223333"`, "{"+fields+"}") }
	const role = `id: "111122223333", external_id: x1, role: "arn:aws:iam::111122223333:role/member"`
	roleAs := func(arn string) string {
		return member(strings.Replace(role, "arn:aws:iam::111122223333:role/member", arn, 1))
	}
	tests := map[string]struct{ text, want string }{
		"empty":                {"", "empty"},
		"unknown key":          {deploymenttest.Minimal + "debug: true", "line 6: unknown key debug"},
		"unknown nested key":   {with("{address", "{insecure: true, address"), "line 5: teleport: unknown key insecure"},
		"two documents":        {deploymenttest.Minimal + "---\n" + deploymenttest.Minimal, "more than one"},
		"no audience":          {with("hallmark.example.com", `""`), "audience"},
		"audience with space":  {with("hallmark.example.com", `"a b"`), "audience"},
		"no accounts":          {with(`"111122223333"`, ""), "accounts: empty"},
		"short account":        {with("111122223333", "11112222333"), "accounts:"},
		"account twice":        {with(`"111122223333"`, `"111122223333", "111122223333"`), "listed twice"},
		"two without a role":   {with(`"111122223333"`, `"111122223333", "222233334444"`), "only the function's own account"},
		"account, not a form":  {with(`"111122223333"`, `["111122223333"]`), "line 3: accounts[0]: write keys and values, not a list"},
		"account, no id":       {member("role: x"), "accounts[0]: id is missing"},
		"account, other key":   {member(role + ", region: x"), "line 3: accounts[0]: unknown key region; the keys here are id, role, external_id"},
		"account, key twice":   {member(role + ", role: x"), "already defined"},
		"account again":        {with(`"111122223333"`, `"111122223333", {`+role+`}`), "listed twice"},
		"role, not an ARN":     {roleAs("member"), "line 3: accounts[0].role:"},
		"role, a user":         {roleAs("arn:aws:iam::111122223333:user/member"), "role:"},
		"role, a session":      {roleAs("arn:aws:sts::111122223333:assumed-role/member/x"), "role:"},
		"role, any":            {roleAs("arn:aws:iam::111122223333:role/*"), "role:"},
		"role elsewhere":       {roleAs("arn:aws:iam::222233334444:role/member"), "is in account 222233334444"},
		"role of China":        {roleAs("arn:aws-cn:iam::111122223333:role/member"), "partition"},
		"role, no id":          {member(strings.Replace(role, "external_id: x1, ", "", 1)), "external_id: needed with role"},
		"id with a space":      {member(strings.Replace(role, "x1", `"x 1"`, 1)), `external_id: "x 1" is not an external id`},
		"id without a role":    {member(`id: "111122223333", external_id: x1`), "external_id: not used"},
		"no sources":           {deploymenttest.Minimal + "allow_sources: []", "allow_sources: empty"},
		"source, an address":   {deploymenttest.Minimal + "allow_sources: [192.0.2.1]", "allow_sources:"},
		"source, host bits":    {deploymenttest.Minimal + "allow_sources: [192.0.2.1/24]", "write the network"},
		"source, mapped":       {deploymenttest.Minimal + "allow_sources: [\"::ffff:192.0.2.0/120\"]", "allow_sources:"},
		"source, nothing":      {deploymenttest.Minimal + "allow_sources: [~]", "allow_sources:"},
		"unknown auth":         {deploymenttest.Minimal + "url_auth: AWS_IAM", "url_auth:"},
		"no regions":           {with("us-west-2", ""), "regions: empty"},
		"not a region":         {with("us-west-2", "us west"), "regions:"},
		"region, no key":       {with("us-west-2", "us-west-9"), "no key is known for us-west-9"},
		"two partitions":       {with("us-west-2", "us-west-2, cn-north-1"), "deploy a signer for each"},
		"lifetime too long":    {deploymenttest.Minimal + "max_certificate_lifetime: 721h", "max_certificate_lifetime"},
		"lifetime zero":        {deploymenttest.Minimal + "max_certificate_lifetime: 0s", "max_certificate_lifetime"},
		"no address":           {with(`"proxy.example.com:443"`, `""`), "teleport.address"},
		"address, no port":     {with(":443", ""), "teleport.address"},
		"address, no host":     {with("proxy.example.com", ""), "teleport.address"},
		"address, no number":   {with(":443", ":web!"), "teleport.address"},
		"address, a URL":       {with("proxy.example.com", "https://proxy.example.com"), "teleport.address"},
		"no identity file":     {with("identity.pem", `""`), "teleport.login.file"},
		"no method":            {with("method: identity-file, ", ""), "teleport.login: method is missing"},
		"unknown method":       {with("identity-file", "password"), "teleport.login.method"},
		"iam, no token":        {login("method: iam, role: a"), "teleport.login.token"},
		"iam, no role":         {login("method: iam, token: a"), "teleport.login.role"},
		"iam, with a file":     {login("method: iam, token: a, role: a, file: b"), "teleport.login.file"},
		"iam, not a region":    {login("method: iam, token: a, role: a, region: b"), "teleport.login.region"},
		"iam, FIPS where none": {login("method: iam, token: a, role: a, fips: true, region: eu-west-1"), "teleport.login.fips"},
		"iam, FIPS, no region": {login("method: iam, token: a, role: a, fips: true, region: b"), `teleport.login.region: "b" is not an AWS region`},
		"file, with FIPS":      {login("method: identity-file, file: a, fips: true"), "teleport.login.fips"},
		"file, with a token":   {login("method: identity-file, file: a, token: b"), "teleport.login.token"},
		"secret, no ARN":       {login("method: identity-secret, secret: signer"), "teleport.login.secret"},
		"secret of another service": {login("method: identity-secret, secret: \"arn:aws:ssm:us-west-2:111122223333:parameter/signer\""),
			"teleport.login.secret"},
		"a shipped region": {deploymenttest.Minimal + "region_certificates: {us-west-2: x}", "region_certificates"},
		"no certificate":   {deploymenttest.Minimal + "region_certificates: {hm-test-1: x}", "region_certificates"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := parseDeployment([]byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v; want %q", err, tt.want)
			}
		})
	}
}

// What follows from a mistake is not reported as another one.
func TestParseDeploymentReportsOnce(t *testing.T) {
	for name, tt := range map[string]struct{ old, replacement, want string }{
		"an account without a role": {`"111122223333"`, `"111122223333", "x y"`, `line 3: accounts: "x y" is not an account of 12 digits, in quotes`},
		"no account":                {`"111122223333"`, `"111122223333", ""`, `line 3: accounts: id is missing; write the account's 12 digits, in quotes`},
		"an account with a role": {
			`"111122223333"`, `{id: "x", external_id: x1, role: "arn:aws:iam::111122223333:role/member"}`,
			`line 3: accounts[0]: "x" is not an account of 12 digits, in quotes`,
		},
		"an empty organization": {
			`regions:`, `organization: {}
regions:`, "line 4: organization: id is missing; write the organization's, such as o-a1b2c3d4e5; " +
				"line 4: organization: reader_role is missing; write the ARN of the role that lists the accounts; " +
				"line 4: organization: member_role is missing; write the name of the role in each account, such as hallmark-member; " +
				"line 4: organization: external_id is missing; write the external id of the roles' trust policies",
		},
	} {
		if _, err := parseDeployment([]byte(strings.Replace(deploymenttest.Minimal, tt.old, tt.replacement, 1))); err == nil || err.Error() != tt.want {
			t.Errorf("%s: error\n%v, want\n%s", name, err, tt.want)
		}
	}
}

func TestReadDeploymentNamesTheSetting(t *testing.T) {
	tests := map[string]struct {
		files map[string]string
		want  string
	}{
		"no file":          {map[string]string{}, "deployment.yaml"},
		"no identity file": {map[string]string{"deployment.yaml": deploymenttest.Minimal}, "teleport.login.file"},
		"no roots file": {map[string]string{
			"deployment.yaml": strings.Replace(deploymenttest.Minimal, "{address", "{roots_file: ca.pem, address", 1), "identity.pem": "",
		}, "teleport.roots_file"},
		"no policy file": {map[string]string{
			"deployment.yaml": deploymenttest.Minimal + "policy_file: policy.yaml", "identity.pem": "",
		}, "policy_file"},
		"a policy that widens": {map[string]string{
			"deployment.yaml": deploymenttest.Minimal + "policy_file: policy.yaml", "identity.pem": "",
			"policy.yaml": "version: 1\nrules: [{name: a, match: {accounts: [\"999999999999\"]}}]",
		}, `"999999999999" is not in the deployment's list`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := deploymenttest.Write(t, tt.files)
			_, err := readDeployment(path)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v; want %q and the path", err, tt.want)
			}
		})
	}
}
