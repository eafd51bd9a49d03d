package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/hallmark-ssh/hallmark/internal/policy"
	"github.com/hallmark-ssh/hallmark/internal/teleport"
)

const minimal = `
audience: hallmark.example.com
accounts: ["111122223333"]
regions: [us-west-2]
teleport: {address: "proxy.example.com:443", login: {method: identity-file, file: identity.pem}}
`

// write puts files into a new folder and returns the path of deployment.yaml.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	folder := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(folder, "deployment.yaml")
}

func TestReadDeployment(t *testing.T) {
	path := write(t, map[string]string{
		"deployment.yaml": minimal + "max_certificate_lifetime: 48h\npolicy_file: policy.yaml\n",
		"policy.yaml":     "version: 1\nrules: [{name: a}]",
		"identity.pem":    "identity",
	})
	d, err := readDeployment(path)
	if err != nil {
		t.Fatal(err)
	}
	if d.Audience != "hallmark.example.com" || d.MaxCertificateLifetime != 48*time.Hour || d.policy == nil || d.keyring == nil {
		t.Errorf("deployment %+v", d)
	}
	want := teleport.IdentityFile(filepath.Join(filepath.Dir(path), "identity.pem"))
	if c, err := d.teleport(aws.Config{}); err != nil || c.Address != "proxy.example.com:443" || c.Login != want {
		t.Errorf("teleport %+v, error %v", c, err)
	}
}

func TestDeploymentDefaults(t *testing.T) {
	d, err := readDeployment(write(t, map[string]string{"deployment.yaml": minimal, "identity.pem": ""}))
	if err != nil {
		t.Fatal(err)
	}
	if d.MaxCertificateLifetime != policy.LongestLifetime || d.policy.SHA256 == "" {
		t.Errorf("deployment %+v", d)
	}
}

func TestParseDeploymentRefuses(t *testing.T) {
	with := func(old, replacement string) string { return strings.Replace(minimal, old, replacement, 1) }
	login := func(settings string) string { return with("method: identity-file, file: identity.pem", settings) }
	tests := map[string]struct{ text, want string }{
		"empty":               {"", "empty"},
		"unknown key":         {minimal + "debug: true", "line 6: field debug"},
		"unknown nested key":  {with("{address", "{insecure: true, address"), "field insecure"},
		"two documents":       {minimal + "---\n" + minimal, "more than one"},
		"no audience":         {with("hallmark.example.com", `""`), "audience"},
		"audience with space": {with("hallmark.example.com", `"a b"`), "audience"},
		"no accounts":         {with(`"111122223333"`, ""), "accounts: empty"},
		"short account":       {with("111122223333", "11112222333"), "accounts:"},
		"account twice":       {with(`"111122223333"`, `"111122223333", "111122223333"`), "listed twice"},
		"no regions":          {with("us-west-2", ""), "regions: empty"},
		"not a region":        {with("us-west-2", "us west"), "regions:"},
		"region, no key":      {with("us-west-2", "us-west-9"), "no key is known for us-west-9"},
		"two partitions":      {with("us-west-2", "us-west-2, cn-north-1"), "deploy a signer for each"},
		"lifetime too long":   {minimal + "max_certificate_lifetime: 721h", "max_certificate_lifetime"},
		"lifetime zero":       {minimal + "max_certificate_lifetime: 0s", "max_certificate_lifetime"},
		"no address":          {with(`"proxy.example.com:443"`, `""`), "teleport.address"},
		"address, no port":    {with(":443", ""), "teleport.address"},
		"no identity file":    {with("identity.pem", `""`), "teleport.login.file"},
		"no method":           {with("method: identity-file, ", ""), "teleport.login.method"},
		"unknown method":      {with("identity-file", "password"), "teleport.login.method"},
		"iam, no token":       {login("method: iam, role: a"), "teleport.login.token"},
		"iam, no role":        {login("method: iam, token: a"), "teleport.login.role"},
		"iam, with a file":    {login("method: iam, token: a, role: a, file: b"), "teleport.login.file"},
		"iam, not a region":   {login("method: iam, token: a, role: a, region: b"), "teleport.login.region"},
		"file, with a token":  {login("method: identity-file, file: a, token: b"), "teleport.login.token"},
		"secret, no ARN":      {login("method: identity-secret, secret: signer"), "teleport.login.secret"},
		"secret of another service": {login("method: identity-secret, secret: \"arn:aws:ssm:us-west-2:111122223333:parameter/signer\""),
			"teleport.login.secret"},
		"a shipped region": {minimal + "region_certificates: {us-west-2: x}", "region_certificates"},
		"no certificate":   {minimal + "region_certificates: {hm-test-1: x}", "region_certificates"},
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

func TestReadDeploymentNamesTheSetting(t *testing.T) {
	tests := map[string]struct {
		files map[string]string
		want  string
	}{
		"no file":          {map[string]string{}, "deployment.yaml"},
		"no identity file": {map[string]string{"deployment.yaml": minimal}, "teleport.login.file"},
		"no roots file": {map[string]string{
			"deployment.yaml": strings.Replace(minimal, "{address", "{roots_file: ca.pem, address", 1), "identity.pem": "",
		}, "teleport.roots_file"},
		"no policy file": {map[string]string{
			"deployment.yaml": minimal + "policy_file: policy.yaml", "identity.pem": "",
		}, "policy_file"},
		"a policy that widens": {map[string]string{
			"deployment.yaml": minimal + "policy_file: policy.yaml", "identity.pem": "",
			"policy.yaml": "version: 1\nrules: [{name: a, match: {accounts: [\"999999999999\"]}}]",
		}, `"999999999999" is not in the deployment's list`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := write(t, tt.files)
			_, err := readDeployment(path)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v; want %q and the path", err, tt.want)
			}
		})
	}
}
