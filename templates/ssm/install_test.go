// Package ssm runs the script of the Systems Manager document with stand-ins for what changes a
// machine.
package ssm

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"

	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// document is the part of Systems Manager's schema 2.2 that the document uses.
type document struct {
	SchemaVersion string               `yaml:"schemaVersion"`
	Description   string               `yaml:"description"`
	Parameters    map[string]parameter `yaml:"parameters"`
	MainSteps     []struct {
		Action       string              `yaml:"action"`
		Name         string              `yaml:"name"`
		Precondition map[string][]string `yaml:"precondition"`
		Inputs       struct {
			TimeoutSeconds string   `yaml:"timeoutSeconds"`
			RunCommand     []string `yaml:"runCommand"`
		} `yaml:"inputs"`
	} `yaml:"mainSteps"`
}

type parameter struct {
	Type           string  `yaml:"type"`
	Description    string  `yaml:"description"`
	Default        *string `yaml:"default"`
	AllowedPattern string  `yaml:"allowedPattern"`
}

func read(t *testing.T) document {
	t.Helper()
	text, err := os.ReadFile("install.yaml")
	if err != nil {
		t.Fatal(err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	var d document
	if err := decoder.Decode(&d); err != nil {
		t.Fatal(err)
	}
	if d.SchemaVersion != "2.2" || len(d.MainSteps) != 1 || d.MainSteps[0].Action != "aws:runShellScript" || len(d.MainSteps[0].Inputs.RunCommand) != 1 {
		t.Fatalf("not the document that this test knows: %+v", d)
	}
	return d
}

func (d document) script() string { return d.MainSteps[0].Inputs.RunCommand[0] }

var placeholder = regexp.MustCompile(`\{\{ *(\w+) *\}\}`)

// render puts the parameters into the script, as Systems Manager does.
func (d document) render(t *testing.T, values map[string]string) string {
	t.Helper()
	for name, value := range values {
		if !regexp.MustCompile(d.Parameters[name].AllowedPattern).MatchString(value) {
			t.Errorf("%s does not admit %q", name, value)
		}
	}
	return placeholder.ReplaceAllStringFunc(d.script(), func(found string) string {
		name := placeholder.FindStringSubmatch(found)[1]
		if value, ok := values[name]; ok {
			return value
		}
		if d.Parameters[name].Default == nil {
			t.Fatalf("%s is missing", name)
		}
		return *d.Parameters[name].Default
	})
}

// Each parameter is used, and each use is a declared parameter in single quotes, of which no
// value can break out.
func TestParameters(t *testing.T) {
	d := read(t)
	script := d.script()
	for _, found := range placeholder.FindAllStringSubmatch(script, -1) {
		if _, ok := d.Parameters[found[1]]; !ok {
			t.Errorf("the document has no parameter %s", found[1])
		}
		if all, quoted := strings.Count(script, found[0]), strings.Count(script, "'"+found[0]+"'"); all != quoted {
			t.Errorf("%s is not in single quotes", found[0])
		}
	}
	for name, p := range d.Parameters {
		if !strings.Contains(script, "{{ "+name+" }}") {
			t.Errorf("the script does not use %s", name)
		}
		if p.Type != "String" || p.Description == "" || !strings.HasPrefix(p.AllowedPattern, "^") || !strings.HasSuffix(p.AllowedPattern, "$") {
			t.Errorf("%s: %+v", name, p)
		}
		pattern := regexp.MustCompile(p.AllowedPattern)
		if p.Default != nil && !pattern.MatchString(*p.Default) {
			t.Errorf("%s does not admit its own default", name)
		}
		for _, good := range []string{
			"", "a", "https://a", strings.Repeat("0", 64), "10.0.0.1", "arn:aws:lambda:us-west-2:111122223333:function:f", "ssh-ed25519 AAAA a",
		} {
			for _, bad := range []string{"'", "\"", "\\", "\n", "`", "$", ";", "'; reboot; '", "\nx"} {
				if pattern.MatchString(good + bad) {
					t.Errorf("%s admits %q", name, good+bad)
				}
			}
		}
	}
}

func TestScript(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the script is for Linux")
	}
	ca, next := sshkey.Line(sshkeytest.NewSigner(t).PublicKey()), sshkey.Line(sshkeytest.NewSigner(t).PublicKey())
	all := map[string]string{
		"FileSha256": fmt.Sprintf("%x", sha256.Sum256([]byte(program))), "Audience": "hallmark.example.com",
	}
	all["OpensshCas"] = ca + " teleport.example.com," + next
	for _, test := range []struct {
		name   string
		values map[string]string
		calls  []string
		want   config.Config
		fails  string
	}{
		{
			name:   "program",
			values: map[string]string{"FileUrl": "https://example.com/hallmark-linux-amd64", "SignerUrl": "https://signer.example.com/"},
			calls:  []string{"DIR/hallmark-linux-amd64 install --from DIR/from", "/usr/local/bin/hallmark enroll", "systemctl start hallmark.timer hallmark-renew.timer"},
			want:   config.Config{SignerURL: "https://signer.example.com/"},
		},
		{
			name: "deb",
			values: map[string]string{
				"FileUrl": "https://bucket.s3.amazonaws.com/hallmark_0.1.0~dev-1_amd64.deb?versionId=x", "SignerUrl": "https://signer.example.com/",
				"ProxySources": "10.0.3.7,2001:db8::/64", "SignerCaBase64": "eA==",
			},
			calls: []string{
				"dpkg --install DIR/hallmark_0.1.0~dev-1_amd64.deb", "/usr/bin/hallmark install --from DIR/from", "/usr/bin/hallmark enroll",
				"systemctl start hallmark.timer hallmark-renew.timer",
			},
			want: config.Config{SignerURL: "https://signer.example.com/", SignerCAFile: config.SignerCAFile, ProxySources: []string{"10.0.3.7", "2001:db8::/64"}},
		},
		{
			name:   "rpm",
			values: map[string]string{"FileUrl": "https://example.com/hallmark.rpm", "SignerFunction": "arn:aws:lambda:us-west-2:111122223333:function:signer"},
			calls: []string{
				"rpm --upgrade --replacepkgs --oldpackage DIR/hallmark.rpm", "/usr/bin/hallmark install --from DIR/from", "/usr/bin/hallmark enroll",
				"systemctl start hallmark.timer hallmark-renew.timer",
			},
			want: config.Config{SignerFunction: "arn:aws:lambda:us-west-2:111122223333:function:signer"},
		},
		{
			name: "another file", fails: "exit status 1",
			values: map[string]string{"FileUrl": "https://example.com/hallmark.rpm", "SignerUrl": "https://signer.example.com/", "FileSha256": strings.Repeat("0", 64)},
		},
		{
			// The timers start all the same.
			name: "a signer that is down", fails: "exit status 75",
			values: map[string]string{"FileUrl": "https://example.com/hallmark.deb", "SignerUrl": "https://down.example.com/"},
			calls: []string{
				"dpkg --install DIR/hallmark.deb", "/usr/bin/hallmark install --from DIR/from", "/usr/bin/hallmark enroll",
				"systemctl start hallmark.timer hallmark-renew.timer",
			},
			want: config.Config{SignerURL: "https://down.example.com/"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			for name, value := range all {
				if _, ok := test.values[name]; !ok {
					test.values[name] = value
				}
			}
			root := t.TempDir()
			calls, err := runScript(t, root, read(t).render(t, test.values))
			if fmt.Sprint(err) != test.fails && (err != nil || test.fails != "") {
				t.Fatalf("error %v, want %q", err, test.fails)
			}
			if got, want := strings.Join(calls, "\n"), strings.Join(test.calls, "\n"); got != want {
				t.Errorf("calls\n%s\nwant\n%s", got, want)
			}
			if left, err := filepath.Glob(filepath.Join(root, "usr/local/sbin/.hallmark*")); err != nil || len(left) > 0 {
				t.Errorf("the script left %q, %v", left, err)
			}
			if len(test.calls) > 0 {
				test.want.Audience = "hallmark.example.com"
				checkFolder(t, filepath.Join(root, "from"), test.want)
			}
		})
	}
}

// checkFolder sees that hallmark can read what the script gave it.
func checkFolder(t *testing.T, dir string, want config.Config) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := config.Parse(data)
	if err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("configuration %+v, %v; want %+v", got, err, want)
	}
	if data, err = os.ReadFile(filepath.Join(dir, "openssh_ca.pub")); err != nil {
		t.Fatal(err)
	}
	if cas, err := cafile.Parse(data); err != nil || len(cas) != 2 {
		t.Errorf("CAs %q: %v", data, err)
	}
	if pem, err := os.ReadFile(filepath.Join(dir, "signer_ca.pem")); want.SignerCAFile != "" && (err != nil || string(pem) != "x") {
		t.Errorf("the signer's CA is %q, %v", pem, err)
	}
}

// program stands in for hallmark: it records its calls and what it was given.
const program = `#!/bin/sh
set -eu
case $0 in */sbin/*) name=$(basename "$(dirname "$0")")/$(basename "$0") ;; *) name=${0#"$ROOT"} ;; esac
echo "$name $*" >>"$ROOT/calls"
case $1 in
install) cp -R "$3" "$ROOT/from" ;;
enroll) ! grep -q down "$ROOT/from/config.yaml" || exit 75 ;;
esac
`

// runScript runs the script with stand-ins, and returns what it called, with DIR for its own
// folder.
func runScript(t *testing.T, root, script string) ([]string, error) {
	t.Helper()
	for path, text := range map[string]string{
		"usr/local/bin/hallmark": program,
		"usr/bin/hallmark":       program,
		"tools/curl":             "#!/bin/sh\nset -eu\nwhile [ \"$1\" != --output ]; do shift; done\ncp \"$ROOT/usr/bin/hallmark\" \"$2\"\n",
		"tools/dpkg":             "#!/bin/sh\necho \"dpkg $*\" >>\"$ROOT/calls\"\n",
		"tools/rpm":              "#!/bin/sh\necho \"rpm $*\" >>\"$ROOT/calls\"\n",
		"tools/systemctl":        "#!/bin/sh\necho \"systemctl $*\" >>\"$ROOT/calls\"\n",
		"usr/local/sbin/.keep":   "",
		"script":                 strings.NewReplacer("/usr/", root+"/usr/").Replace(script),
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "sh", filepath.Join(root, "script"))
	cmd.Env = append(os.Environ(), "ROOT="+root, "PATH="+filepath.Join(root, "tools")+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	data, readErr := os.ReadFile(filepath.Join(root, "calls"))
	if readErr != nil {
		return nil, err
	}
	calls := regexp.MustCompile(`(`+regexp.QuoteMeta(root)+`/usr/local/sbin/)?\.hallmark-install\.\w+`).ReplaceAllString(string(data), "DIR")
	return strings.Split(strings.TrimSpace(calls), "\n"), err
}

// The script is for any POSIX shell.
func TestShellcheck(t *testing.T) {
	shellcheck, err := exec.LookPath("shellcheck")
	if err != nil {
		if os.Getenv("HALLMARK_TEST_STRICT") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	cmd := exec.CommandContext(t.Context(), shellcheck, "--shell=sh", "--exclude=SC2157,SC2050", "-") // a parameter looks like a constant
	cmd.Stdin = strings.NewReader(read(t).script())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
