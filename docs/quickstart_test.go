package docs

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestQuickstart runs the commands of quickstart.md as they are written, one block after
// the other in one shell. Stand-ins replace what needs AWS, Teleport or the network;
// hallmark-signer is the real one.
func TestQuickstart(t *testing.T) {
	folder := t.TempDir()
	script := "set -euo pipefail\n" + strings.Join(shellBlocks(t, "quickstart.md"), "\n")
	signer := filepath.Join(folder, "hallmark-signer")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", signer, "../lambda/operator")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -gcflags=all=-dwarf=false") // as make does, for Go's cache
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build hallmark-signer: %v\n%s", err, out)
	}
	repository, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	tools, log := standIns(t), filepath.Join(folder, "log")
	cmd := exec.CommandContext(t.Context(), "bash", "-c", script)
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "PATH="+tools+string(filepath.ListSeparator)+os.Getenv("PATH"), "LOG="+log, "REPOSITORY="+repository, "SIGNER="+signer)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(string(out), "deployment/deployment.yaml: good") {
		t.Errorf("the settings were not checked:\n%s", out)
	}
	checkResources(t, filepath.Join(folder, "hallmark", "created.yaml"))
	checkImageVariables(t, filepath.Join(folder, "hallmark", "my.pkrvars.hcl"))
	calls := readFile(t, log)
	checkDeployments(t, calls)
	for _, call := range []string{
		"packer build -var-file=my.pkrvars.hcl templates/packer", "tsh ssh ec2-user@web-i-0123456789abcdef0",
		"packer plugins install --path bin/packer-plugin-hallmark github.com/hallmark-ssh/hallmark",
	} {
		if !strings.Contains(calls, call+"\n") {
			t.Errorf("%s was not called:\n%s", call, calls)
		}
	}
}

// shellBlocks returns the blocks of a document that are marked as shell commands.
func shellBlocks(t *testing.T, document string) []string {
	t.Helper()
	var blocks []string
	for _, m := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(readFile(t, document), -1) {
		blocks = append(blocks, m[1])
	}
	if len(blocks) < 5 {
		t.Fatalf("%s has %d blocks of commands", document, len(blocks))
	}
	return blocks
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// standIns writes programs that record how they were called, and answer where the
// quickstart uses the answer. They fail for what they do not know.
func standIns(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	for name, body := range map[string]string{
		"git": `[ "$1" = clone ] && mkdir hallmark && cp -R "$REPOSITORY/templates" hallmark/`,
		"make": `grep -q "^$1:" "$REPOSITORY/Makefile"
			[ "$1" != build ] || { mkdir bin && cp "$SIGNER" bin/ && touch bin/packer-plugin-hallmark; }
			[ "$1" != deploy ] || [ -f deployment/deployment.yaml ]`,
		"tctl": `case "$1 $2" in
			"create -f") echo --- >>created.yaml; cat ${3:+"$3"} >>created.yaml ;;
			"auth export") echo "cert-authority ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGK8zI7aJ2wnqPqLd1q0zXNqkM0l7Gx9v0Qe4i3XoS5h ca"
				echo "cert-authority ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIyZV3gDDS3J4oA2bT2NvKfQm6kqS0jH7c2WmM7tB1Zd next" ;;
			*) exit 1 ;;
			esac`,
		"packer": `case "$1" in
			build) [ -f "${2#-var-file=}" ] && [ -d "$3" ] ;;
			plugins) [ "$3" != --path ] || [ -f "$4" ] ;;
			*) exit 1 ;;
			esac`,
		"tsh": `case "$*" in ls) ;; "ls --format=names") echo web-i-0123456789abcdef0 ;; ssh*) ;; *) exit 1 ;; esac`,
		"aws": `case "$*" in
			*OutputKey==\'TeleportTokenArn\'*) echo arn:aws:sts::444455556666:assumed-role/enroll/enroll ;;
			*OutputKey==\'FleetTokenArn\'*) echo arn:aws:sts::444455556666:assumed-role/fleet/fleet ;;
			*OutputKey==\'PackerVariables\'*) printf 'signer_url = "https://abc.lambda-url.us-west-2.on.aws/"\naudience   = "hallmark.example.com"\n' ;;
			"ec2 describe-images"*) echo ami-0123456789abcdef0 ;;
			"ec2 create-security-group"*) echo sg-0123456789abcdef0 ;;
			"ec2 authorize-security-group-ingress"* | "ec2 delete-security-group"* | "cloudformation delete-stack"* | "cloudformation wait"* | "cloudformation deploy"*) ;;
			*) exit 1 ;;
			esac`,
	} {
		text := "#!/bin/bash\nset -eu\necho \"" + name + " $*\" >>\"$LOG\"\n" + body + "\n"
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// checkResources looks at what was created in Teleport: each bot has its role and its
// token, and each token the role of its own function.
func checkResources(t *testing.T, path string) {
	t.Helper()
	text := readFile(t, path)
	created := make(map[string]bool)
	decoder := yaml.NewDecoder(strings.NewReader(text))
	for {
		var resource struct {
			Kind     string
			Metadata struct{ Name string }
			Spec     struct {
				Allow yaml.Node
			}
		}
		if err := decoder.Decode(&resource); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		created[resource.Kind+"/"+resource.Metadata.Name] = true
		if resource.Kind == "token" {
			var allow []map[string]string
			if err := resource.Spec.Allow.Decode(&allow); err != nil {
				t.Fatal(err)
			}
			function := strings.TrimPrefix(resource.Metadata.Name, "hallmark-")
			if want := "arn:aws:sts::444455556666:assumed-role/" + function + "/" + function; len(allow) != 1 || allow[0]["aws_arn"] != want {
				t.Errorf("token %s allows %v, want %s", resource.Metadata.Name, allow, want)
			}
		}
	}
	for _, name := range []string{"hallmark-enroll", "hallmark-fleet"} {
		for _, kind := range []string{"role", "bot", "token"} {
			if !created[kind+"/"+name] {
				t.Errorf("%s %s was not created", kind, name)
			}
		}
	}
}

var regexpVariable = regexp.MustCompile(`(?m)^(?:variable ")?(\w+)"? *[={]`)

// checkImageVariables sees that the variables file sets every variable of the template, and
// no other.
func checkImageVariables(t *testing.T, path string) {
	t.Helper()
	var set, declared []string
	text := readFile(t, path)
	for _, m := range regexpVariable.FindAllStringSubmatch(text, -1) {
		set = append(set, m[1])
	}
	template := readFile(t, filepath.Join("..", "templates", "packer", "golden-image.pkr.hcl"))
	for _, m := range regexp.MustCompile(`(?m)^variable "(\w+)"`).FindAllStringSubmatch(template, -1) {
		declared = append(declared, m[1])
	}
	slices.Sort(set)
	slices.Sort(declared)
	if !slices.Equal(set, declared) {
		t.Errorf("the variables file sets %q, want %q", set, declared)
	}
	if want := regexp.MustCompile(`(?m)^openssh_ca_pins = \["SHA256:[^"]+", "SHA256:[^"]+"\]$`); !want.MatchString(text) {
		t.Errorf("the variables file does not pin both CAs:\n%s", text)
	}
}

// checkDeployments compares the parameters of each deployed stack with its template's.
func checkDeployments(t *testing.T, calls string) {
	t.Helper()
	deployed := regexp.MustCompile(`(?m)^aws cloudformation deploy .*--template-file (\S+).*--parameter-overrides (.*)$`).FindAllStringSubmatch(calls, -1)
	if len(deployed) == 0 {
		t.Error("no stack with a machine is deployed")
	}
	for _, m := range deployed {
		var template struct {
			Parameters map[string]struct {
				Default *string `yaml:"Default"`
			} `yaml:"Parameters"`
		}
		if err := yaml.Unmarshal([]byte(readFile(t, filepath.Join("..", m[1]))), &template); err != nil {
			t.Fatal(err)
		}
		given := make(map[string]bool)
		for _, override := range strings.Fields(m[2]) {
			name, value, _ := strings.Cut(override, "=")
			if _, ok := template.Parameters[name]; !ok || value == "" {
				t.Errorf("%s takes no %s", m[1], override)
			}
			given[name] = true
		}
		for name, p := range template.Parameters {
			if p.Default == nil && !given[name] {
				t.Errorf("%s needs %s", m[1], name)
			}
		}
	}
}
