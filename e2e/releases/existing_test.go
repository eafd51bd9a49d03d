//go:build e2e && linux

package releases

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/hallmark-ssh/hallmark/e2e/fake/imds"
	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/e2e/machine"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// migrationPolicy returns the example for migrations, with the lab's account and with dates
// that do not pass.
func migrationPolicy() (string, error) {
	text, err := os.ReadFile("../../templates/policy/migration.yaml")
	if err != nil {
		return "", err
	}
	policy := strings.ReplaceAll(string(text), "111122223333", moto.Account)
	return regexp.MustCompile(`timestamp\("20`).ReplaceAllString(policy, `timestamp("90`), nil
}

// launchPlain boots a machine of an image without Hallmark, in the first wave of the migration.
func launchPlain(t *testing.T, template lab.Template) *lab.Instance {
	t.Helper()
	image, err := shared.BaseImage(t.Context(), machine.Debian12)
	if err != nil {
		t.Fatal(err)
	}
	template.Image, template.Tags = image, map[string]string{"Name": template.Name, "hallmark-wave": "1"}
	i, err := shared.Launch(t.Context(), template)
	if err != nil {
		t.Fatal(err)
	}
	endAfter(t, i)
	return i
}

// installation is what "hallmark install" reads, by file name.
func installation(t *testing.T) map[string]string {
	t.Helper()
	roots, err := shared.SignerRoots()
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"config.yaml":    fmt.Sprintf("signer_url: %s\naudience: %s\nsigner_ca_file: /etc/hallmark/signer_ca.pem\n", shared.SignerURL, lab.Audience),
		"openssh_ca.pub": string(ssh.MarshalAuthorizedKey(shared.Cluster.OpenSSHCA())),
		"signer_ca.pem":  string(roots),
	}
}

// newestPackage returns the one package in a folder for this machine's processor.
func newestPackage(t *testing.T, folder, format string) string {
	t.Helper()
	arch := runtime.GOARCH
	if format == "rpm" {
		arch = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[arch]
	}
	found, err := filepath.Glob(filepath.Join("../../bin/packages", folder, "*"+arch+"."+format))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s packages %q, error %v: run 'make test-releases'", format, found, err)
	}
	return found[0]
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// The playbook enrolls a machine that runs already with the deb package, which is then upgraded
// during a run, and removed.
func TestDebPackage(t *testing.T) {
	t.Parallel()
	i := launchPlain(t, lab.Template{Name: "deb"})
	poll(t, func() error {
		_, err := shared.SSHByKeyPair(t.Context(), i, "true")
		return err
	})
	copyFile(t, newestPackage(t, "", "deb"), i.Path("root/hallmark.deb"))
	copyFile(t, newestPackage(t, "later", "deb"), i.Path("root/later.deb"))

	before := run(t, i, "sshd", "-T")
	run(t, i, "dpkg", "--install", "/root/hallmark.deb")
	if after := run(t, i, "sshd", "-T"); after != before {
		t.Errorf("the package changed sshd's settings from\n%s\nto\n%s", before, after)
	}
	checkEnabled(t, i, "disabled")

	run(t, i, "dpkg", "--remove", "hallmark")

	if out := playbook(t, i); strings.Contains(out, " changed=0 ") {
		t.Errorf("the playbook changed nothing:\n%s", out)
	}
	if _, err := os.Lstat(i.Path("usr/local/bin/hallmark")); err == nil {
		t.Error("there is a second program, which would hide the package's")
	}
	checkEnabled(t, i, "enabled")
	enrolled, err := i.WaitEnrolled(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	checkPresented(t, i, enrolled)
	checkLogins(t, i, enrolled)
	if out := playbook(t, i, "--start-at-task=Install Hallmark"); !strings.Contains(out, " changed=0 ") {
		t.Errorf("the playbook made changes twice:\n%s", out)
	}

	upgradeDuringRun(t, i, enrolled)
	checkEnabled(t, i, "enabled")
	checkUnits(t, i, "hallmark.timer", "hallmark-renew.timer")
	renewed := renew(t, i, enrolledState(t, i))
	checkPresented(t, i, renewed)

	run(t, i, "dpkg", "--remove", "hallmark")
	for _, place := range []string{"etc/systemd/system/timers.target.wants/hallmark*", "usr/bin/hallmark", "usr/lib/systemd/system/hallmark*"} {
		if left, err := filepath.Glob(i.Path(place)); err != nil || len(left) > 0 {
			t.Errorf("the package left %q, %v", left, err)
		}
	}
	checkLogins(t, i, renewed)
	reboot(t, i)
	checkLogins(t, i, renewed)
	for line := range strings.Lines(run(t, i, "journalctl", "--no-pager", "--boot", "--identifier=systemd")) {
		if strings.Contains(strings.ToLower(line), "hallmark") && !strings.Contains(line, "Hostname set to") {
			t.Errorf("systemd still knows the units: %s", line)
		}
	}
}

// playbook runs the Ansible playbook on the machine, and returns its output.
func playbook(t *testing.T, i *lab.Instance, flags ...string) string {
	t.Helper()
	deb, err := filepath.Abs(newestPackage(t, "", "deb"))
	if err != nil {
		t.Fatal(err)
	}
	files := installation(t)
	var config map[string]any
	if err := yaml.Unmarshal([]byte(files["config.yaml"]), &config); err != nil {
		t.Fatal(err)
	}
	variables, err := json.Marshal(map[string]any{
		"hallmark_package": deb, "hallmark_config": config, "hallmark_openssh_cas": files["openssh_ca.pub"], "hallmark_signer_ca": files["signer_ca.pem"],
		"ansible_user": lab.User, "ansible_ssh_private_key_file": shared.KeyPair(), "ansible_python_interpreter": "/usr/bin/python3",
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "ansible-playbook", append(flags,
		"--inventory", i.Address.String()+",", "--extra-vars", string(variables), "../../templates/ansible/hallmark.yaml")...)
	cmd.Env = append(os.Environ(), "ANSIBLE_HOME="+dir, "ANSIBLE_LOCAL_TEMP="+dir, "ANSIBLE_SSH_CONTROL_PATH_DIR="+dir,
		"ANSIBLE_HOST_KEY_CHECKING=False", "ANSIBLE_SSH_ARGS=-F none -o UserKnownHostsFile=/dev/null -o ControlMaster=auto -o ControlPersist=10s", "ANSIBLE_NOCOLOR=1", "ANSIBLE_PIPELINING=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("ansible-playbook: %v\n%s", err, out)
	}
	return string(out)
}

// checkEnabled sees that systemd knows the package's units, and whether the timers are
// enabled.
func checkEnabled(t *testing.T, i *lab.Instance, want string) {
	t.Helper()
	for _, unit := range []string{"hallmark.timer", "hallmark-renew.timer"} {
		out, _ := i.Run(t.Context(), "systemctl", "is-enabled", unit) // it fails for a disabled unit
		if strings.TrimSpace(out) != want {
			t.Errorf("%s is %q, want %s", unit, out, want)
		}
	}
	out := run(t, i, "systemctl", "show", "--property=FragmentPath,ExecStart", "hallmark.service")
	// /lib is a link to /usr/lib.
	for _, want := range []string{"/lib/systemd/system/hallmark.service\n", "path=/usr/bin/hallmark ;"} {
		if !strings.Contains(out, want) {
			t.Errorf("hallmark.service has no %q:\n%s", want, out)
		}
	}
}

// upgradeDuringRun upgrades the package while a run waits for the metadata service, and sees
// that the upgrade waits for the end of the run.
func upgradeDuringRun(t *testing.T, i *lab.Instance, before *state.State) {
	t.Helper()
	makeDue(t, i, before)
	i.Metadata.SetTrouble(imds.Trouble{Delay: time.Minute})
	defer i.Metadata.SetTrouble(imds.Trouble{})
	run(t, i, "systemctl", "restart", "hallmark.service")
	// On a busy machine, dpkg could come after the run has given up. So the run stands still.
	poll(t, func() error {
		_, err := i.Run(t.Context(), "sh", "-euc", `pid=$(systemctl show --property=MainPID --value hallmark.service)
[ "$pid" != 0 ] || { systemctl restart hallmark.service; exit 1; }
kill -STOP "$pid"
grep -q ^lock: /proc/"$pid"/fdinfo/* || { kill -CONT "$pid"; exit 1; }`)
		return err
	})
	old := stat(t, i.Path("usr/bin/hallmark"))
	type result struct {
		out string
		err error
	}
	upgraded := make(chan result, 1)
	go func() {
		out, err := i.Run(t.Context(), "dpkg", "--install", "/root/later.deb")
		upgraded <- result{out, err}
	}()
	poll(t, func() error {
		select {
		case r := <-upgraded:
			return machine.Fatal(errors.Join(fmt.Errorf("the upgrade did not wait:\n%s", r.out), r.err))
		default:
		}
		_, err := i.Run(t.Context(), "sh", "-c", `grep --quiet --text ^flock /proc/[0-9]*/cmdline`)
		return err
	})
	if !os.SameFile(old, stat(t, i.Path("usr/bin/hallmark"))) {
		t.Error("the program was replaced during the run")
	}
	i.Metadata.SetTrouble(imds.Trouble{})
	run(t, i, "systemctl", "kill", "--signal=CONT", "hallmark.service")
	if r := <-upgraded; r.err != nil {
		t.Fatalf("%v\n%s", r.err, r.out)
	}
	if os.SameFile(old, stat(t, i.Path("usr/bin/hallmark"))) {
		t.Error("the upgrade did not replace the program")
	}
	if after := enrolledState(t, i); !after.EnrolledAt.After(before.EnrolledAt) {
		t.Errorf("the run did not end before the upgrade: enrolled at %v", after.EnrolledAt)
	}
}

func stat(t *testing.T, path string) os.FileInfo {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// A machine without Hallmark in its image enrolls with the template of cloud-config. Later, it
// gets the package.
func TestCloudConfig(t *testing.T) {
	t.Parallel()
	program, err := os.ReadFile("../../packer-plugin/programs/hallmark-linux-" + runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	deb := newestPackage(t, "", "deb")
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", machine.Hub+":0")
	if err != nil {
		t.Fatal(err)
	}
	mirror := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hallmark-linux-amd64":
			_, _ = w.Write(program) // the machine compares the digest
		case "/hallmark.deb":
			http.ServeFile(w, r, deb)
		default:
			http.NotFound(w, r)
		}
	})}
	go func() { _ = mirror.Serve(listener) }() // ends with Close
	t.Cleanup(func() { _ = mirror.Close() })

	mirrorURL := "http://" + listener.Addr().String()
	i := launchPlain(t, lab.Template{Name: "cloudconfig", UserData: userData(t, mirrorURL, program), Prepare: addCurl})
	enrolled, err := i.WaitEnrolled(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	checkPresented(t, i, enrolled)
	checkLogins(t, i, enrolled)
	checkUnits(t, i, "hallmark.timer", "hallmark-renew.timer")

	// The document of Systems Manager moves the machine to the package.
	runDocument(t, i, mirrorURL)
	checkEnabled(t, i, "enabled")
	if _, err := os.Lstat(i.Path("usr/local/bin/hallmark")); err == nil {
		t.Error("there is a second program, which hides the package's")
	}
	checkLogins(t, i, enrolledState(t, i))
}

// runDocument runs the script of the document for Systems Manager, as its agent does.
func runDocument(t *testing.T, i *lab.Instance, mirror string) {
	t.Helper()
	text, err := os.ReadFile("../../templates/ssm/install.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		MainSteps []struct {
			Inputs struct {
				RunCommand []string `yaml:"runCommand"`
			} `yaml:"inputs"`
		} `yaml:"mainSteps"`
	}
	if err := yaml.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	deb, err := os.ReadFile(newestPackage(t, "", "deb"))
	if err != nil {
		t.Fatal(err)
	}
	files := installation(t)
	script := document.MainSteps[0].Inputs.RunCommand[0]
	for name, value := range map[string]string{
		"FileUrl": mirror + "/hallmark.deb", "FileSha256": fmt.Sprintf("%x", sha256.Sum256(deb)), "Audience": lab.Audience,
		"SignerUrl": shared.SignerURL, "SignerFunction": "", "ProxySources": "",
		"OpensshCas": strings.TrimSpace(files["openssh_ca.pub"]), "SignerCaBase64": base64.StdEncoding.EncodeToString([]byte(files["signer_ca.pem"])),
	} {
		script = strings.ReplaceAll(script, "{{ "+name+" }}", value)
	}
	if err := os.WriteFile(i.Path("root/_script.sh"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, i, "sh", "/root/_script.sh")
}

// userData fills in the template's blanks.
func userData(t *testing.T, mirror string, program []byte) string {
	t.Helper()
	text, err := os.ReadFile("../../templates/cloud-config/hallmark.yaml")
	if err != nil {
		t.Fatal(err)
	}
	filled := string(text)
	for blank, value := range map[string]string{
		"https://YOUR-MIRROR": mirror, "SHA256-OF-THE-PROGRAM": fmt.Sprintf("%x", sha256.Sum256(program)),
	} {
		if strings.Count(filled, blank) != 1 {
			t.Fatalf("the template has no blank %s", blank)
		}
		filled = strings.ReplaceAll(filled, blank, value)
	}
	type file struct {
		Path        string `yaml:"path"`
		Permissions string `yaml:"permissions"`
		Content     string `yaml:"content"`
	}
	var document struct {
		WriteFiles []file     `yaml:"write_files"`
		RunCmd     [][]string `yaml:"runcmd"`
	}
	if err := yaml.Unmarshal([]byte(filled), &document); err != nil {
		t.Fatal(err)
	}
	files := installation(t)
	for n := range document.WriteFiles {
		f := &document.WriteFiles[n]
		name := filepath.Base(f.Path)
		if files[name] == "" {
			t.Fatalf("install reads no %s", f.Path)
		}
		f.Content = files[name]
		delete(files, name)
	}
	for name, content := range files { // the lab's signer has a CA of its own
		document.WriteFiles = append(document.WriteFiles, file{"/run/hallmark/" + name, "0644", content})
	}
	data, err := yaml.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	return "#cloud-config\n" + string(data)
}

// addCurl stands in for curl, which images for EC2 have.
func addCurl(_ context.Context, root string) error {
	return os.WriteFile(filepath.Join(root, "usr/bin/curl"), []byte(`#!/usr/bin/python3
import sys, urllib.request
output, url = sys.argv[sys.argv.index("--output") + 1], sys.argv[-1]
open(output, "wb").write(urllib.request.urlopen(url).read())
`), 0o755)
}

// The rpm package is installed, upgraded and removed in the file system of a machine.
func TestRPMPackage(t *testing.T) {
	t.Parallel()
	root := scratchRoot(t)
	rpm := func(args ...string) string {
		t.Helper()
		if args[0] != "--query" {
			args = append(args, "--nodeps") // no rpm package provides systemd there
		}
		out, err := exec.CommandContext(t.Context(), "rpm", append([]string{"--root=" + root}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("rpm %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	before := contents(t, root)
	rpm("--install", newestPackage(t, "", "rpm"))
	rpm("--verify", "hallmark")
	checkSame(t, root, before)
	for line := range strings.Lines(rpm("--query", "--queryformat", "[%{FILENAMES} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILEMODES:perms}\n]", "hallmark")) {
		name, got, _ := strings.Cut(strings.TrimSpace(line), " ")
		want := "root root -rw-r--r--"
		switch name {
		case "/usr/bin/hallmark":
			want = "root root -rwxr-xr-x"
		case "/usr/share/doc/hallmark":
			want = "root root drwxr-xr-x"
		}
		if got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	for _, args := range [][]string{
		{"hallmark", "version"},
		{"bash", "-n", "/usr/share/bash-completion/completions/hallmark"},
		{"gzip", "--test", "/usr/share/man/man8/hallmark-install.8.gz"},
		{"systemctl", "enable", "hallmark.timer", "hallmark-renew.timer"}, // as hallmark install does
	} {
		chroot(t, root, args...)
	}

	enabled := contents(t, root)
	rpm("--upgrade", newestPackage(t, "later", "rpm"))
	if version := rpm("--query", "--queryformat", "%{VERSION}", "hallmark"); version != "99.0.0" {
		t.Errorf("version %s after the upgrade", version)
	}
	checkSame(t, root, enabled)
	rpm("--upgrade", "--oldpackage", newestPackage(t, "", "rpm"))
	if version := rpm("--query", "--queryformat", "%{VERSION}", "hallmark"); version == "99.0.0" {
		t.Error("the older package did not replace the newer one")
	}
	checkSame(t, root, enabled)
	rpm("--erase", "hallmark")
	checkSame(t, root, before)
	for _, place := range []string{"usr/bin/hallmark", "usr/lib/systemd/system/hallmark*", "usr/share/*/hallmark*", "usr/share/*/*/*hallmark*"} {
		if left, err := filepath.Glob(filepath.Join(root, place)); err != nil || len(left) > 0 {
			t.Errorf("the package left %q, %v", left, err)
		}
	}
}

// scratchRoot is a file system of Debian 12 to change at will.
func scratchRoot(t *testing.T) string {
	t.Helper()
	image, err := fleet.BaseImage(machine.Debian12)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	root, upper, work := filepath.Join(dir, "root"), filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, folder := range []string{root, upper, work} {
		if err := os.Mkdir(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("overlay", root, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", image.Top(), upper, work)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	return root
}

func chroot(t *testing.T, root string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "chroot", append([]string{root}, args...)...).CombinedOutput(); err != nil {
		t.Errorf("%q: %v\n%s", args, err, out)
	}
}

// checkSame sees that the files and links in /etc are as before.
func checkSame(t *testing.T, root string, before map[string]string) {
	t.Helper()
	after := contents(t, root)
	for path := range before {
		if _, ok := after[path]; !ok {
			t.Errorf("%s was removed", path)
		}
	}
	for path, content := range after {
		if old, ok := before[path]; !ok || content != old {
			t.Errorf("%s was written or changed", path)
		}
	}
}

// contents returns the files and links in /etc that Hallmark could change.
func contents(t *testing.T, root string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	for _, folder := range []string{"etc/ssh", "etc/systemd", "etc/hallmark"} {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, d os.DirEntry, err error) error {
			switch {
			case errors.Is(err, os.ErrNotExist):
				return nil
			case err != nil || d.IsDir():
				return err
			case d.Type()&os.ModeSymlink != 0:
				files[path], err = os.Readlink(path)
			default:
				var data []byte
				data, err = os.ReadFile(path)
				files[path] = string(data)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}
