//go:build e2e

package deploy

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
)

const bucket = "hallmark-artifacts-" + moto.Account + "-us-west-2"

// deployer runs deploy.sh with the real AWS CLI, on moto.
type deployer struct {
	source string
	env    []string
}

func newDeployer(t *testing.T, unreserved int) *deployer {
	t.Helper()
	server, err := moto.Start(t.Context(), "us-west-2", t.Output())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	// moto does not know an account's limits.
	limits := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"AccountLimit": {"ConcurrentExecutions": %d, "UnreservedConcurrentExecutions": %[1]d}}`, unreserved)
	}))
	t.Cleanup(limits.Close)
	folder := t.TempDir()
	config := filepath.Join(folder, "config")
	// moto reads a template from S3 only if it finds "localhost" and the bucket in the path.
	if err := os.WriteFile(config, []byte("[default]\ns3 =\n  addressing_style = path\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return &deployer{sources(t, filepath.Join(folder, "source")), append(os.Environ(), "PATH="+withoutSAM(os.Getenv("PATH")),
		"AWS_ENDPOINT_URL="+strings.Replace(server.URL, "127.0.0.1", "localhost", 1), "AWS_ENDPOINT_URL_LAMBDA="+limits.URL,
		"AWS_MAX_ATTEMPTS=1", "AWS_REGION=us-west-2", "AWS_DEFAULT_REGION=us-west-2", "AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test", "AWS_CONFIG_FILE="+config, "STACK=signer",
	)}
}

// sources unpacks a release: the files of the repository, without the repository.
func sources(t *testing.T, folder string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(folder, "deployment"), 0o700); err != nil {
		t.Fatal(err)
	}
	copyFiles := exec.CommandContext(t.Context(), "bash", "-c", `git ls-files -z --cached --others --exclude-standard | tar -c --null -T - | tar -x -C "$1"`, "copy", folder)
	copyFiles.Dir = filepath.Join("..", "..")
	if out, err := copyFiles.CombinedOutput(); err != nil {
		t.Fatalf("copy the sources: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(folder, "deployment", "deployment.yaml"), []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	return folder
}

// run runs the script; environment overrides the deployer's.
func (d *deployer) run(t *testing.T, action string, environment ...string) (out, errs string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), filepath.Join(d.source, "lambda", "deploy", "deploy.sh"), action)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(d.env, environment...), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("deploy.sh %s: %v\n%s%s", action, err, &stdout, &stderr)
	}
	return stdout.String(), stderr.String()
}

// aws runs the AWS CLI and returns its output.
func (d *deployer) aws(t *testing.T, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "aws", args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = d.env, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("aws %q: %v\n%s", args, err, &stderr)
	}
	return stdout.String()
}

// wantParameters compares some of the stack's parameters.
func (d *deployer) wantParameters(t *testing.T, want map[string]string) {
	t.Helper()
	var list []struct{ ParameterKey, ParameterValue string }
	text := d.aws(t, "cloudformation", "describe-stacks", "--stack-name", "signer", "--query", "Stacks[0].Parameters", "--output", "json")
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, p := range list {
		got[p.ParameterKey] = p.ParameterValue
	}
	for name, value := range want {
		if got[name] != value {
			t.Errorf("parameter %s is %q, want %q", name, got[name], value)
		}
	}
}

// A new account has a limit of 10, and nothing can be reserved. moto cannot create the
// real template's roles: it takes an omitted policy for a policy. So the stack has the
// real parameters and one topic, and nothing is compiled for it; TestMotoPackage does that.
// The script deploys twice, so moto creates the stack and updates it. A third time it would
// fail on parameters that are lists, and it forgets the outputs.
func TestMotoDeploy(t *testing.T) {
	d := newDeployer(t, 10)
	d.deployTopic(t)
	_, errs := d.run(t, "deploy", "ALARM_EMAIL=platform@example.com", "PARAMETERS=SweepRate='rate(30 minutes)' LogRetentionDays=90")
	if !strings.Contains(errs, "nothing is reserved") {
		t.Errorf("no warning:\n%s", errs)
	}
	d.wantParameters(t, map[string]string{
		"Audience": "hallmark.example.com", "AlarmEmail": "platform@example.com", "ReservedConcurrency": "0", "FleetReservedConcurrency": "0",
		"AlarmConcurrency": "8", "ProtectLedger": "yes", "SweepRate": "rate(30 minutes)", "LogRetentionDays": "90",
	})
}

// deployTopic replaces the template's resources with a topic, and the compiler with a
// stand-in.
func (d *deployer) deployTopic(t *testing.T) {
	t.Helper()
	path := filepath.Join(d.source, "template.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	parameters := regexp.MustCompile(`(?ms)^Parameters:$.+?^Rules:$`).Find(text)
	if parameters == nil {
		t.Fatal("template.yaml has no parameters before its rules")
	}
	small := `AWSTemplateFormatVersion: "2010-09-09"
` + strings.TrimSuffix(string(parameters), "Rules:") + `Resources:
  AlarmTopic:
    Type: AWS::SNS::Topic
    Properties:
      DisplayName: !Ref ProtectLedger
`
	if err := os.WriteFile(path, []byte(small), 0o600); err != nil {
		t.Fatal(err)
	}
	tools := t.TempDir()
	if err := os.WriteFile(filepath.Join(tools, "go"), []byte(standIn("go")), 0o700); err != nil {
		t.Fatal(err)
	}
	d.env = append(d.env, "PATH="+tools+string(filepath.ListSeparator)+withoutSAM(os.Getenv("PATH")), "SIGNER="+buildSigner(t))
}

// wantPackages sees that each function has a package of its own, and what is in it.
func (d *deployer) wantPackages(t *testing.T) {
	t.Helper()
	folder := t.TempDir()
	d.aws(t, "s3", "cp", "--quiet", "--recursive", "s3://"+bucket+"/signer", folder)
	uploads, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil {
		t.Fatal(err)
	}
	packages := 0
	for _, upload := range uploads {
		archive, err := zip.OpenReader(upload)
		if err != nil {
			continue // the template
		}
		packages++
		var names []string
		for _, file := range archive.File {
			names = append(names, file.Name)
		}
		slices.Sort(names)
		if want := []string{"bootstrap", "deployment.yaml"}; !slices.Equal(names, want) {
			t.Errorf("%s has files %q, want %q", upload, names, want)
		}
		archive.Close()
	}
	if packages != 2 {
		t.Errorf("%d packages of functions were uploaded, want 2: %q", packages, uploads)
	}
}

// The real template and programs, with -short for this machine's processor.
func TestMotoPackage(t *testing.T) {
	if testing.Short() {
		t.Setenv("FUNCTION_ARCH", runtime.GOARCH)
	}
	d := newDeployer(t, 1000)
	out, _ := d.run(t, "package")
	_, name, ok := strings.Cut(strings.TrimSpace(out), "/"+bucket+"/") // moto's address
	if !ok || !strings.HasPrefix(name, "signer/template-") {
		t.Fatalf("printed %q, not the address of a template", out)
	}
	text := d.aws(t, "s3", "cp", "s3://"+bucket+"/"+name, "-")
	if strings.Count(text, "CodeUri: s3://") != 2 {
		t.Errorf("the template does not name two packages:\n%.2000s", text)
	}
	d.wantPackages(t)
}
