package deployment

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/signer/deployment/deploymenttest"
)

// both has a login for each function, and everything that only one of them needs.
const both = `# The production signer.
audience: hallmark.example.com
accounts: ["111122223333"]
regions: [us-west-2]
teleport:
  address: proxy.example.com:443
  roots_file: ca/roots.pem
  login: {method: identity-file, file: enroll.pem}
  fleet_login: {method: identity-file, file: fleet.pem}
policy_file: policy.yaml
allow_sources: [192.0.2.0/24] # the NAT gateways
url_auth: aws_iam
`

var bothFiles = map[string]string{
	"deployment.yaml": both, "ca/roots.pem": "roots", "enroll.pem": "of enroll", "fleet.pem": "of fleet", "policy.yaml": anyPolicy, "notes.txt": "mine",
}

func TestPack(t *testing.T) {
	path := deploymenttest.Write(t, bothFiles)
	for _, test := range []struct {
		handler string
		files   []string
		without []string // what its settings must not contain
		login   string   // file of its own login
		other   string
	}{
		{"enroll", []string{"ca/roots.pem", "deployment.yaml", "enroll.pem", "policy.yaml"}, []string{"fleet"}, "enroll.pem", "fleet.pem"},
		{"fleet", []string{"ca/roots.pem", "deployment.yaml", "fleet.pem", "policy.yaml"}, []string{"enroll", "192.0.2.0", "url_auth"}, "fleet.pem", "enroll.pem"},
	} {
		t.Run(test.handler, func(t *testing.T) {
			folder := t.TempDir()
			if err := Pack(path, test.handler, folder); err != nil {
				t.Fatal(err)
			}
			if got := filesIn(t, folder); !slices.Equal(got, test.files) {
				t.Errorf("files %q, want %q", got, test.files)
			}
			text, err := os.ReadFile(filepath.Join(folder, "deployment.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			for _, word := range test.without {
				if strings.Contains(string(text), word) {
					t.Errorf("the settings of %s have %q:\n%s", test.handler, word, text)
				}
			}
			if !strings.Contains(string(text), "# The production signer.") {
				t.Errorf("the comment is gone:\n%s", text)
			}
			// The function starts with this package.
			d, err := readDeployment(filepath.Join(folder, "deployment.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			own := d.Teleport.Login
			if test.handler == "fleet" {
				if own, err = d.fleetLogin(); err != nil {
					t.Fatal(err)
				}
			}
			if filepath.Base(own.File) != test.login {
				t.Errorf("login %+v", own)
			}
		})
	}
}

// Without a separate login, the function fleet gets the templates' bot, and its package does
// not contain the other's login.
func TestPackTheDefaultFleetLogin(t *testing.T) {
	path := deploymenttest.Write(t, map[string]string{"deployment.yaml": strings.Replace(deploymenttest.Minimal,
		"{method: identity-file, file: identity.pem}", "{method: iam, token: secret-enroll, role: hallmark-enroll}", 1)})
	folder := t.TempDir()
	if err := Pack(path, "fleet", folder); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(folder, "deployment.yaml"))
	if err != nil || strings.Contains(string(text), "enroll") || !strings.Contains(string(text), "token: hallmark-fleet") {
		t.Errorf("%v\n%s", err, text)
	}
}

func filesIn(t *testing.T, folder string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(folder, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			name, _ := filepath.Rel(folder, path)
			names = append(names, filepath.ToSlash(name))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestCheck(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(files map[string]string)
		want   string // in the error; empty means good
	}{
		{"good", func(map[string]string) {}, ""},
		{"no roots", func(f map[string]string) { delete(f, "ca/roots.pem") }, "teleport.roots_file"},
		{"no identity", func(f map[string]string) { delete(f, "fleet.pem") }, "teleport.fleet_login.file"},
		{"no policy", func(f map[string]string) { delete(f, "policy.yaml") }, "policy_file"},
		{"a bad policy", func(f map[string]string) { f["policy.yaml"] = "version: 1\n" }, "policy_file: policy.yaml"},
		{"outside the folder", func(f map[string]string) {
			f["deployment.yaml"] = strings.Replace(both, "ca/roots.pem", "../"+filepath.Base(t.TempDir())+"/roots.pem", 1)
		}, "teleport.roots_file"},
		{"an absolute path", func(f map[string]string) {
			file := filepath.Join(t.TempDir(), "roots.pem")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			f["deployment.yaml"] = strings.Replace(both, "ca/roots.pem", file, 1)
		}, "is not in the folder of deployment.yaml"},
		{"no login for the fleet", func(f map[string]string) {
			f["deployment.yaml"] = strings.Replace(both, "  fleet_login: {method: identity-file, file: fleet.pem}\n", "", 1)
		}, "teleport.fleet_login: missing"},
	} {
		t.Run(test.name, func(t *testing.T) {
			files := make(map[string]string)
			for name, text := range bothFiles {
				files[name] = text
			}
			test.change(files)
			summary, err := Check(deploymenttest.Write(t, files))
			if test.want == "" {
				if err != nil || summary.Audience != "hallmark.example.com" || summary.PolicySHA256 == "" {
					t.Errorf("got %+v, %v", summary, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}
