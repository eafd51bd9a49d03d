package operator

import (
	"bytes"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/aws/smithy-go"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/cli/clitest"
)

const (
	someDeployment = `audience: signer.example.com
accounts: ["111122223333"]
organization: {id: o-a1b2c3d4e5, reader_role: "arn:aws:iam::111122223333:role/reader", member_role: hallmark-member, external_id: x-1234567890}
regions: [us-west-2]
teleport: {address: "127.0.0.1:1", login: {method: identity-file, file: not-read.pem}}
`
	somePolicy = "version: 1\nrules: [{name: a, match: {image_owners: [self], max_age: any}}]\n"
	someFacts  = `{"account": "111122223333", "region": "us-west-2", "instance_id": "i-0a1b2c3d4e5f60718", "image_owner": "999999999999"}`
)

// goodCommands returns a command line for each command, with which nothing is wrong.
func goodCommands() clitest.Commands {
	ledger := []string{"--table", "hallmark"}
	instance := append(slices.Clone(ledger), "--account", "111122223333", "--region", "us-west-2", "--instance", "i-0a1b2c3d4e5f60718")
	return clitest.Commands{
		"policy check":         {"policy.yaml"},
		"policy explain":       {"policy.yaml", "--instance", "facts.json"},
		"policy schema":        {},
		"report":               append(slices.Clone(ledger), "--deployment", "deployment.yaml"),
		"deployment check":     {"deployment.yaml"},
		"deployment pack":      {"deployment.yaml", "--function", "enroll", "--into", "out"},
		"organization show":    append(slices.Clone(ledger), "--deployment", "deployment.yaml"),
		"organization confirm": append(slices.Clone(ledger), "--deployment", "deployment.yaml", "--change", "0123456789abcdef"),
		"permit-rekey":         append(slices.Clone(instance), "--fingerprint", newKey),
		"end":                  instance,
		"release":              append(slices.Clone(ledger), "--name", "web"),
		"version":              {},
	}
}

func someFiles() map[string]string {
	return map[string]string{"deployment.yaml": someDeployment, "policy.yaml": somePolicy, "facts.json": someFacts}
}

// Whatever is wrong with a command line, the message says so in our words.
func TestMessages(t *testing.T) {
	withoutAWS(t)
	clitest.Mistakes(t, Command, goodCommands(), someFiles())
}

// withoutAWS makes calls of AWS fail at once.
func withoutAWS(t *testing.T) {
	t.Helper()
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_REGION": "us-west-2", "AWS_MAX_ATTEMPTS": "1",
		"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_PROFILE": "", "AWS_CONFIG_FILE": "none", "AWS_SHARED_CREDENTIALS_FILE": "none",
	} {
		t.Setenv(name, value)
	}
}

func writeFiles(t *testing.T, files map[string]string) {
	t.Helper()
	for name, content := range files {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// What is wrong with the operator's AWS is said in our words, too.
func TestMessagesWithoutAWS(t *testing.T) {
	good := goodCommands()
	for _, offline := range []string{"policy check", "policy explain", "policy schema", "deployment check", "deployment pack", "version"} {
		delete(good, offline)
	}
	good["policy explain"] = []string{"policy.yaml", "--live", "i-0a1b2c3d4e5f60718", "--deployment", "deployment.yaml", "--account", "111122223333"}
	tests := map[string]struct {
		set  map[string]string
		want string
	}{
		"nothing answers":   {nil, "cannot connect to 127.0.0.1:1: connection refused"},
		"no credentials":    {map[string]string{"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "error: no AWS credentials found\nhint: "},
		"half credentials":  {map[string]string{"AWS_SECRET_ACCESS_KEY": ""}, "error: no AWS credentials found\nhint: "},
		"no such profile":   {map[string]string{"AWS_PROFILE": "ann"}, "error: there is no AWS profile \"ann\"\nhint: "},
		"an unknown region": {map[string]string{"AWS_REGION": "Oregon"}, "\"Oregon\" is not an AWS region, such as us-west-2\nhint: "},
		"no region":         {map[string]string{"AWS_REGION": ""}, ""},
		"no such host":      {map[string]string{"AWS_ENDPOINT_URL": "http://signer.invalid"}, "cannot resolve signer.invalid"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			withoutAWS(t)
			for key, value := range test.set {
				t.Setenv(key, value)
			}
			t.Chdir(t.TempDir())
			writeFiles(t, someFiles())
			for _, command := range slices.Sorted(maps.Keys(good)) {
				args := append(strings.Fields(command), good[command]...)
				var out, errs bytes.Buffer
				if code := cli.Run(t.Context(), Command(), args, strings.NewReader(""), &out, &errs); code == cli.OK {
					t.Errorf("%s succeeds", command)
				}
				if !strings.Contains(errs.String(), test.want) {
					t.Errorf("%s: got\n%s\nwant %s", command, &errs, test.want)
				}
				clitest.Plain(t, "hallmark-signer", command, errs.String())
			}
		})
	}
}

// What a person can do about a refused call depends on its code.
func TestExplainCall(t *testing.T) {
	for code, want := range map[string]string{
		"AccessDeniedException": "lists the permissions", "UnauthorizedOperation": "lists the permissions",
		"ExpiredTokenException": "log in to AWS again", "UnrecognizedClientException": "log in to AWS again",
		"ResourceNotFoundException": "check --table",
		"ThrottlingException":       "try again in a minute", "Throttling": "try again in a minute", "RequestLimitExceeded": "try again in a minute",
		"ProvisionedThroughputExceededException": "try again in a minute",
		"ValidationException":                    "",
	} {
		call := &smithy.OperationError{ServiceID: "DynamoDB", OperationName: "Scan", Err: &smithy.GenericAPIError{Code: code, Message: "no"}}
		text, hint := explainCall(call)
		if text != "DynamoDB refused Scan: "+code+": no" || (want == "") != (hint == "") || !strings.Contains(hint, want) {
			t.Errorf("%s: %s, hint %q", code, text, hint)
		}
	}
}
