//go:build e2e

package main

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// settings are a deployment's, with a login for each function.
const settings = `audience: hallmark.example.com
accounts: ["111122223333"]
regions: [us-west-2]
teleport:
  address: teleport.example.com:443
  login: {method: iam, token: token-of-enroll, role: hallmark-enroll}
  fleet_login: {method: iam, token: token-of-fleet, role: hallmark-fleet}
`

// SAM copies the template's folder, and in the copy calls the Makefile's target for each
// function with the folder that becomes its package. With -short it builds them for this
// machine's processor, for which most of them is compiled already.
func TestBuildAsSAM(t *testing.T) {
	want := elf.EM_AARCH64
	if testing.Short() && runtime.GOARCH == "amd64" {
		t.Setenv("FUNCTION_ARCH", runtime.GOARCH)
		want = elf.EM_X86_64
	}
	source := sourceCopy(t)
	functions := 0
	var first [sha256.Size]byte
	resources := field(readTemplate(t, "template.yaml"), "Resources")
	for i := 0; i < len(resources.Content); i += 2 {
		name, function := resources.Content[i].Value, resources.Content[i+1]
		if field(function, "Type").Value != "AWS::Serverless::Function" {
			continue
		}
		checkSettings(t, name, function)
		artifacts := t.TempDir()
		if out, err := buildFunction(t, source, name, artifacts); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		program := checkPackage(t, artifacts, want)
		checkLogin(t, artifacts, field(function, "Properties", "Handler").Value)
		if functions++; functions == 1 {
			first = program
		} else if program != first {
			t.Errorf("%s is another program than the first", name)
		}
	}
	if functions != 2 {
		t.Errorf("%d functions, want 2", functions)
	}
	if err := os.RemoveAll(filepath.Join(source, "deployment")); err != nil {
		t.Fatal(err)
	}
	if out, err := buildFunction(t, source, "FleetFunction", t.TempDir()); err == nil || !strings.Contains(string(out), "docs/deploy.md") {
		t.Errorf("without deployment.yaml: error %v\n%s", err, out)
	}
}

// sourceCopy copies what is under version control, and adds a deployment.
func sourceCopy(t *testing.T) string {
	t.Helper()
	root, dir := "..", t.TempDir()
	left := []string{".git", "bin", "dist", "deployment", "e2e", "docs", "packer-plugin/programs"}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil || name == "." {
			return err
		}
		target := filepath.Join(dir, name)
		switch {
		case slices.Contains(left, filepath.ToSlash(name)):
			if entry.IsDir() {
				return filepath.SkipDir
			}
			return nil
		case entry.IsDir():
			return os.Mkdir(target, 0o700)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, data, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	deployment := filepath.Join(dir, "deployment")
	if err := os.Mkdir(deployment, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(deployment, "deployment.yaml"), []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func buildFunction(t *testing.T, source, name, artifacts string) ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "make", "--makefile", filepath.Join(source, "Makefile"), "build-"+name)
	cmd.Dir, cmd.Env = source, append(os.Environ(), "ARTIFACTS_DIR="+artifacts)
	return cmd.CombinedOutput()
}

// checkPackage checks the content of the future zip file, and returns the program's hash.
func checkPackage(t *testing.T, artifacts string, processor elf.Machine) [sha256.Size]byte {
	t.Helper()
	entries, err := os.ReadDir(artifacts)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	if want := []string{"bootstrap", "deployment.yaml"}; !slices.Equal(names, want) {
		t.Errorf("files %q, want %q", names, want)
	}
	program, err := os.ReadFile(filepath.Join(artifacts, "bootstrap"))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(artifacts, "bootstrap")); err != nil || info.Mode()&0o111 == 0 {
		t.Errorf("bootstrap is not to be executed: %v", err)
	}
	file, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	if file.Machine != processor || file.Type != elf.ET_EXEC || file.Section(".interp") != nil {
		t.Errorf("bootstrap is for %s, type %s; want a static one for %s", file.Machine, file.Type, processor)
	}
	return sha256.Sum256(program)
}

// checkLogin checks that a function's package has its own login, and not the other's.
func checkLogin(t *testing.T, artifacts, handler string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(artifacts, "deployment.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, function := range []string{"enroll", "fleet"} {
		if has := strings.Contains(string(text), "token-of-"+function); has != (function == handler) {
			t.Errorf("the package of %s has the login of %s: %t\n%s", handler, function, has, text)
		}
	}
}

// checkSettings checks that the function runs what is built.
func checkSettings(t *testing.T, name string, function *yaml.Node) {
	t.Helper()
	for _, want := range []struct {
		path  []string
		value string
	}{
		{[]string{"Metadata", "BuildMethod"}, "makefile"},
		{[]string{"Properties", "Runtime"}, "provided.al2023"},
		{[]string{"Properties", "CodeUri"}, "."},
	} {
		if got := field(function, want.path...).Value; got != want.value {
			t.Errorf("%s: %s is %q, want %q", name, strings.Join(want.path, "."), got, want.value)
		}
	}
	if got := flow(field(function, "Properties", "Architectures")); got != "[arm64]" {
		t.Errorf("%s: architectures %s", name, got)
	}
	if handler := field(function, "Properties", "Handler").Value; handler != "enroll" && handler != "fleet" {
		t.Errorf("%s: handler %q", name, handler)
	}
}
