// Package deploy tests the script that deploys the signer.
package deploy

import (
	"bytes"
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"fake-aws": func() { os.Exit(fakeAWS(os.Args[1:])) },
		"fake-sam": func() { os.Exit(fakeSAM(os.Args[1:])) },
		"fake-go":  func() { os.Exit(fakeGo(os.Args[1:])) },
	})
}

// TestScript runs deploy.sh as the scripts say, in a checkout of its own, with stand-ins
// for the AWS CLI, SAM (only if a script adds $WORK/sam to its PATH) and the compiler. $WORK
// holds the state of an account:
//
//	limits    the account's concurrent executions, and how many are unreserved
//	bucket    exists if the bucket for packages does
//	stack     the stack's status, if there is one
//	reserved  what the stack has reserved
//	entry     the stack's parameter Entry
//	leftover  exists if an earlier stack left its policy
//	broken    exists if CloudFormation fails to create the stack
//	calls     what was called, to change something
func TestScript(t *testing.T) {
	t.Parallel()
	signer := buildSigner(t)
	testscript.Run(t, testscript.Params{Dir: filepath.Join("testdata", "script"), Setup: func(env *testscript.Env) error {
		env.Setenv("SIGNER", signer)
		return checkout(env)
	}})
}

// buildSigner builds the operator's command, which checks and packs deployments.
func buildSigner(t *testing.T) string {
	t.Helper()
	signer := filepath.Join(t.TempDir(), "hallmark-signer")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", signer, "../operator")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -gcflags=all=-dwarf=false") // as make does, for Go's cache
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the operator's command: %v\n%s", err, out)
	}
	return signer
}

func checkout(env *testscript.Env) error {
	for name, value := range map[string]string{
		"PATH": filepath.Join(env.WorkDir, "tools") + string(filepath.ListSeparator) + withoutSAM(env.Getenv("PATH")), "HOME": env.WorkDir, "TMPDIR": filepath.Join(env.WorkDir, "tmp"), "AWS_REGION": "us-west-2",
	} {
		env.Setenv(name, value)
	}
	files := map[string]string{
		"limits": "1000\t1000\n", "tmp/.keep": "", "tools/aws": standIn("aws"), "tools/go": standIn("go"), "sam/sam": standIn("sam"), "checkout/bin/large": "not a source", "checkout/deployment/deployment.yaml": settings,
		"checkout/deployment/notes.txt": "not a setting",
	}
	tracked := map[string]string{
		"template.yaml": "../../template.yaml", "Makefile": "../../Makefile", "lambda/deploy/deploy.sh": "deploy.sh", ".gitignore": "../../.gitignore",
	}
	for to, from := range tracked {
		text, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		files[filepath.Join("checkout", to)] = string(text)
	}
	for name, text := range files {
		path := filepath.Join(env.WorkDir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			return err
		}
	}
	for _, args := range [][]string{{"init", "-q"}, {"add", "."}, {"-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "-q", "-m", "test"}} {
		cmd := exec.Command("git", args...)
		cmd.Dir, cmd.Env = filepath.Join(env.WorkDir, "checkout"), append(os.Environ(), "HOME="+env.WorkDir)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("git %q: %w\n%s", args, err, out)
		}
	}
	return nil
}

func standIn(program string) string { return "#!/bin/sh\nexec fake-" + program + " \"$@\"\n" }

const settings = `audience: hallmark.example.com
accounts: ["111122223333"]
regions: [us-west-2]
teleport:
  address: teleport.example.com:443
  login: {method: iam, token: hallmark-enroll, role: hallmark-enroll}
`

// docs/deploy.md names the regions that the script refuses.
func TestRegionsInTheGuide(t *testing.T) {
	regions := func(path, begin, end string) []string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, list, _ := strings.Cut(string(text), begin)
		list, _, found := strings.Cut(list, end)
		if !found {
			t.Fatalf("%s has no list of regions", path)
		}
		return regexp.MustCompile(`[a-z]{2}(?:-[a-z]+)+-[0-9]`).FindAllString(list, -1)
	}
	script, guide := regions("deploy.sh", `no_function_urls="`, `"`), regions("../../docs/deploy.md", "these regions had none:", "(AWS's")
	if len(script) < 15 || !slices.Equal(script, guide) {
		t.Errorf("deploy.sh refuses %q, docs/deploy.md names %q", script, guide)
	}
}

// withoutSAM leaves out folders that hold a real sam.
func withoutSAM(path string) string {
	folders := slices.DeleteFunc(filepath.SplitList(path), func(folder string) bool {
		_, err := os.Stat(filepath.Join(folder, "sam"))
		return err == nil
	})
	return strings.Join(folders, string(filepath.ListSeparator))
}

// account is the folder with the state of the account.
func account() string { return os.Getenv("WORK") }

func has(name string) bool {
	_, err := os.Stat(filepath.Join(account(), name))
	return err == nil
}

func read(name string) string {
	text, _ := os.ReadFile(filepath.Join(account(), name)) // missing is empty
	return strings.TrimSpace(string(text))
}

func write(name, text string) {
	if err := os.WriteFile(filepath.Join(account(), name), []byte(text), 0o600); err != nil {
		panic(err)
	}
}

var regexpWork = regexp.MustCompile(`[^ "=]*/tmp\.[A-Za-z0-9]+`)

// record adds a call to the list.
func record(format string, args ...any) {
	file, err := os.OpenFile(filepath.Join(account(), "calls"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	defer file.Close()
	fmt.Fprintln(file, regexpWork.ReplaceAllString(fmt.Sprintf(format, args...), "TMP"))
}

func failure(format string, args ...any) int {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	return 254
}

// fakeAWS answers the script's queries as the AWS CLI prints them.
func fakeAWS(args []string) int {
	line := strings.Join(args, " ")
	switch strings.Join(args[:2], " ") {
	case "configure get":
		return 1
	case "sts get-caller-identity":
		fmt.Println("111122223333")
	case "lambda get-account-settings":
		fmt.Println(read("limits"))
	case "ssm get-parameter":
		if !has("leftover") {
			return failure("An error occurred (ParameterNotFound) when calling the GetParameter operation:")
		}
		fmt.Println("/hallmark/hallmark/policy")
	case "s3api head-bucket":
		if !has("bucket") {
			return failure("An error occurred (404) when calling the HeadBucket operation: Not Found")
		}
	case "s3 mb":
		record("aws %s", line)
		write("bucket", "")
	case "cloudformation describe-stacks":
		return describeStack(line)
	case "cloudformation package":
		return pack("aws", args)
	case "cloudformation deploy":
		return deploy("aws", args)
	case "cloudformation delete-stack":
		record("aws %s", line)
		if err := os.Remove(filepath.Join(account(), "stack")); err != nil {
			return failure("%v", err)
		}
	case "cloudformation describe-stack-events":
		fmt.Println("EnrollFunction\tSpecified ReservedConcurrentExecutions is too large")
	case "s3 presign":
		bucket, key, _ := strings.Cut(strings.TrimPrefix(args[2], "s3://"), "/")
		fmt.Printf("https://%s.s3.%s.aws.example/%s?X-Amz-Signature=0123\n", bucket, os.Getenv("AWS_REGION"), key)
	case "s3api put-public-access-block", "cloudformation wait", "s3 cp":
		record("aws %s", line)
	default:
		return failure("aws: the script must not call %s", line)
	}
	return 0
}

func describeStack(line string) int {
	switch {
	case !has("stack"):
		return failure("An error occurred (ValidationError) when calling the DescribeStacks operation: Stack with id hallmark does not exist")
	case strings.Contains(line, "StackStatus"):
		fmt.Println(read("stack"))
	case strings.Contains(line, "Outputs"):
		fmt.Println("SignerUrl\thttps://abc.lambda-url.us-west-2.on.aws/")
	case strings.Contains(line, "'Entry'"):
		fmt.Println(cmp.Or(read("entry"), "None"))
	case has("reserved"):
		fmt.Println(read("reserved"))
	default:
		fmt.Println("None")
	}
	return 0
}

// option returns the value of one of the arguments.
func option(args []string, name string) string {
	if i := slices.Index(args, name); i >= 0 {
		return args[i+1]
	}
	return ""
}

// pack lists what would be uploaded: everything beside the template.
func pack(program string, args []string) int {
	record("%s %s", program, strings.Join(args, " "))
	template := option(args, "--template-file")
	text, err := os.ReadFile(template)
	if err != nil {
		return failure("%v", err)
	}
	for _, m := range regexp.MustCompile(`(?m)^ +CodeUri: (.+)$`).FindAllSubmatch(text, -1) {
		folder := filepath.Join(filepath.Dir(template), string(m[1]))
		err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && !entry.IsDir() {
				name, _ := filepath.Rel(folder, path)
				record("  %s: %s", m[1], name)
			}
			return err
		})
		if err != nil {
			return failure("%v", err)
		}
	}
	if err := os.WriteFile(option(args, "--output-template-file"), text, 0o600); err != nil {
		return failure("%v", err)
	}
	return 0
}

func deploy(program string, args []string) int {
	record("%s %s", program, strings.Join(args, " "))
	if has("broken") {
		write("stack", "ROLLBACK_COMPLETE")
		return failure("Failed to create/update the stack.")
	}
	write("stack", "UPDATE_COMPLETE")
	return 0
}

// fakeSAM builds as SAM does: in the folder where it is called, with the Makefile.
func fakeSAM(args []string) int {
	switch args[0] {
	case "build":
		record("sam %s", strings.Join(args, " "))
		entries, err := os.ReadDir(".")
		if err != nil {
			return failure("%v", err)
		}
		for _, entry := range entries {
			record("  source: %s", entry.Name())
		}
		return samBuild(option(args, "--build-dir"))
	case "package":
		return pack("sam", args)
	case "deploy":
		return deploy("sam", args)
	default:
		return failure("sam: the script must not call %s", args[0])
	}
}

func samBuild(folder string) int {
	text, err := os.ReadFile("template.yaml")
	if err != nil {
		return failure("%v", err)
	}
	for _, function := range []string{"EnrollFunction", "FleetFunction"} {
		artifacts := filepath.Join(folder, function)
		if err := os.MkdirAll(artifacts, 0o700); err != nil {
			return failure("%v", err)
		}
		cmd := exec.Command("make", "build-"+function)
		cmd.Env, cmd.Stderr = append(os.Environ(), "ARTIFACTS_DIR="+artifacts), os.Stderr
		if err := cmd.Run(); err != nil {
			return failure("%v", err)
		}
		text = bytes.Replace(text, []byte("CodeUri: .\n"), []byte("CodeUri: "+function+"\n"), 1)
	}
	if err := os.WriteFile(filepath.Join(folder, "template.yaml"), text, 0o600); err != nil {
		return failure("%v", err)
	}
	return 0
}

// fakeGo runs the operator's command for real, and compiles nothing.
func fakeGo(args []string) int {
	switch {
	case len(args) > 2 && args[0] == "run" && args[1] == "./lambda/operator":
		cmd := exec.Command(os.Getenv("SIGNER"), args[2:]...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return 1
		}
		return 0
	case args[0] == "build":
		if err := os.WriteFile(option(args, "-o"), []byte("a program"), 0o700); err != nil {
			return failure("%v", err)
		}
		return 0
	default:
		return failure("go: the script must not call %s", strings.Join(args, " "))
	}
}
