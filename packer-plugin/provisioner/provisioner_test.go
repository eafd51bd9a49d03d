package provisioner

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/cli/clitest"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// program replaces hallmark: it records how it was called, keeps what was there to install,
// and installs itself.
const program = `#!/bin/sh
set -e
echo "$1 $2" >>"$ROOT/calls"
if [ "$1" = install ]; then
	ls -ld "$3" >"$ROOT/mode"
	cp -R "$3" "$ROOT/staged"
	mv "$ROOT/staged/hallmark" "$ROOT/usr/local/bin/hallmark"
	chmod 0755 "$ROOT/usr/local/bin/hallmark"
fi
echo "hallmark: $1 done" >&2
`

func stubPrograms() fstest.MapFS {
	return fstest.MapFS{
		"hallmark-linux-amd64": {Data: []byte(program + "# amd64\n")},
		"hallmark-linux-arm64": {Data: []byte(program + "# arm64\n")},
	}
}

// proxy is a Teleport proxy that exports OpenSSH CAs.
type proxy struct {
	address string
	caFile  string
	pins    []string
	lines   string // the keys in the form that sshd needs
}

func newProxy(t *testing.T, keys int) proxy {
	t.Helper()
	var p proxy
	var export strings.Builder
	for range keys {
		key := sshkeytest.NewSigner(t).PublicKey()
		line := sshkey.Line(key)
		p.pins = append(p.pins, ssh.FingerprintSHA256(key))
		p.lines += line + "\n"
		fmt.Fprintf(&export, "cert-authority %s clustername=example.com&type=user\n", line)
	}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.String() != "/webapi/auth/export?type=openssh" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, export.String())
	}))
	t.Cleanup(server.Close)
	p.address = server.Listener.Addr().String()
	p.caFile = filepath.Join(t.TempDir(), "proxy.pem")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}
	if err := os.WriteFile(p.caFile, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// block is a provisioner block that works with m and p.
func block(m *localMachine, p proxy) map[string]any {
	return map[string]any{
		"signer_url":      "https://signer.example.com/",
		"audience":        "hallmark.example.com",
		"proxy_address":   p.address,
		"proxy_ca_file":   p.caFile,
		"openssh_ca_pins": p.pins,
		"remote_folder":   m.tmp(),
	}
}

func provision(t *testing.T, ctx context.Context, comm packersdk.Communicator, block map[string]any) (string, error) {
	t.Helper()
	return provisionWith(t, ctx, stubPrograms(), comm, block)
}

func provisionWith(t *testing.T, ctx context.Context, programs fs.FS, comm packersdk.Communicator, block map[string]any) (string, error) {
	t.Helper()
	p := New(programs)
	p.retryDelay = time.Millisecond
	if err := p.Prepare(block); err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	var said bytes.Buffer
	ui := &packersdk.BasicUi{Writer: &said, ErrorWriter: &said}
	err := p.Provision(ctx, ui, comm, map[string]any{"ConnType": "ssh"})
	return said.String(), err
}

func TestProvision(t *testing.T) {
	m, p := newMachine(t), newProxy(t, 2)
	block := block(m, p)
	block["signer_ca_file"] = p.caFile
	block["signer_auth"] = "aws_iam"
	block["fips"] = true
	block["host_certificate"] = "replace"
	block["extra_user_cas"] = []string{otherCA}
	said, err := provision(t, t.Context(), m, block)
	if err != nil {
		t.Fatal(err)
	}

	const wantCalls = "install --from\nseal --force\n"
	if got := m.read(t, "calls"); got != wantCalls {
		t.Errorf("hallmark was called as\n%swant\n%s", got, wantCalls)
	}
	if got := m.read(t, "usr/local/bin/hallmark"); got != program+"# amd64\n" {
		t.Errorf("the installed program is %q", got)
	}
	if got := m.read(t, "staged/openssh_ca.pub"); got != p.lines {
		t.Errorf("openssh_ca.pub = %q, want %q", got, p.lines)
	}
	if got := m.read(t, "staged/config.yaml"); !strings.Contains(got, "signer_ca_file: /etc/hallmark/signer_ca.pem\nsigner_auth: aws_iam\nfips: true\n") {
		t.Errorf("config.yaml = %q does not name the signer's CA", got)
	}
	if got := m.read(t, "staged/config.yaml"); !strings.Contains(got, "host_certificate: replace\n") || !strings.Contains(got, otherCA) {
		t.Errorf("config.yaml = %q lacks host_certificate or extra_user_cas", got)
	}
	if got := m.read(t, "staged/signer_ca.pem"); !strings.Contains(got, "BEGIN CERTIFICATE") {
		t.Errorf("signer_ca.pem = %q", got)
	}
	if got := m.read(t, "staged/config.yaml"); !strings.Contains(got, "signer_url: https://signer.example.com/\n") ||
		!strings.Contains(got, "audience: hallmark.example.com\n") {
		t.Errorf("config.yaml = %q", got)
	}
	if got := m.read(t, "mode"); !strings.HasPrefix(got, "drwx------") {
		t.Errorf("others may read the staging folder: %s", got)
	}
	checkClean(t, m)
	if ran := m.ran(); !strings.Contains(ran[len(ran)-1], scriptFile) {
		t.Errorf("after the seal the machine still ran %q", ran[len(ran)-1])
	}
	for _, want := range append(p.pins, "hallmark: seal done") {
		if !strings.Contains(said, want) {
			t.Errorf("the user was not told %q:\n%s", want, said)
		}
	}
}

// checkClean checks that the staging folder is gone, and also the temporary file next to the
// program.
func checkClean(t *testing.T, m *localMachine) {
	t.Helper()
	for _, pattern := range []string{"tmp/*", "usr/local/bin/hallmark.*"} {
		left, err := filepath.Glob(filepath.Join(m.root, pattern))
		if err != nil || len(left) > 0 {
			t.Errorf("left on the machine: %v %v", left, err)
		}
	}
}

func TestProvisionVariants(t *testing.T) {
	for _, test := range []struct {
		name  string
		setup func(t *testing.T, m *localMachine, block map[string]any)
		check func(t *testing.T, m *localMachine)
	}{
		{"arm64", func(t *testing.T, m *localMachine, _ map[string]any) {
			m.stub(t, "uname", "echo Linux aarch64")
		}, func(t *testing.T, m *localMachine) {
			if got := m.read(t, "usr/local/bin/hallmark"); !strings.Contains(got, "# arm64") {
				t.Error("the program is of another architecture")
			}
		}},
		{"trust at enrollment", func(_ *testing.T, _ *localMachine, block map[string]any) {
			block["trust"] = "at_enrollment"
			delete(block, "proxy_address")
			delete(block, "proxy_ca_file")
			delete(block, "openssh_ca_pins")
		}, func(t *testing.T, m *localMachine) {
			if got := m.read(t, "staged/openssh_ca.pub"); got != "" {
				t.Errorf("the image trusts %q from boot", got)
			}
		}},
		{"CA from a file", func(t *testing.T, m *localMachine, block map[string]any) {
			file, pin := caFile(t)
			block["openssh_ca_file"], block["openssh_ca_pins"] = file, []string{pin}
			delete(block, "proxy_address")
			delete(block, "proxy_ca_file")
		}, func(t *testing.T, m *localMachine) {
			if got := m.read(t, "staged/openssh_ca.pub"); !strings.HasPrefix(got, "ssh-ed25519 ") {
				t.Errorf("openssh_ca.pub = %q", got)
			}
		}},
		{"pin waived", func(_ *testing.T, _ *localMachine, block map[string]any) {
			block["skip_ca_pin"] = true
			delete(block, "openssh_ca_pins")
		}, nil},
		{"root without sudo", func(t *testing.T, m *localMachine, _ map[string]any) {
			m.stub(t, "id", "echo 0")
			m.stub(t, "sudo", "exit 1")
		}, nil},
		{"command of the shell provisioner", func(_ *testing.T, _ *localMachine, block map[string]any) {
			block["execute_command"] = `echo 'secret' | sudo -n env {{ .Vars }} sh -c 'cat >/dev/null; chmod +x {{ .Path }}; {{ .Path }}'`
		}, nil},
		{"output that is thrown away", func(_ *testing.T, _ *localMachine, block map[string]any) {
			block["execute_command"] = "sudo -n sh {{.Path}} >/dev/null 2>&1"
		}, nil},
		{"a machine that reboots first", func(_ *testing.T, m *localMachine, _ map[string]any) {
			tries := 0
			m.start = func(string) error {
				if tries++; tries < 4 {
					return errors.New("connection refused")
				}
				return nil
			}
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, p := newMachine(t), newProxy(t, 1)
			block := block(m, p)
			test.setup(t, m, block)
			if said, err := provision(t, t.Context(), m, block); err != nil {
				t.Fatalf("%v\n%s", err, said)
			}
			if got := m.read(t, "calls"); !strings.HasSuffix(got, "seal --force\n") {
				t.Errorf("the machine was not sealed: %q", got)
			}
			checkClean(t, m)
			if test.check != nil {
				test.check(t, m)
			}
		})
	}
}

// caFile returns a file with an OpenSSH CA, and its fingerprint.
func caFile(t *testing.T) (file, pin string) {
	t.Helper()
	p := newProxy(t, 1)
	file = filepath.Join(t.TempDir(), "ca.pub")
	if err := os.WriteFile(file, []byte(p.lines), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, p.pins[0]
}

// The login user's shell may be any: every command is one that all shells read alike, of plain
// words and text in single quotes.
func TestProvisionWithAnyShell(t *testing.T) {
	m, p := newMachine(t), newProxy(t, 1)
	if said, err := provision(t, t.Context(), m, block(m, p)); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	plain := regexp.MustCompile(`^(?:[A-Za-z0-9_./+-]+|'[^'!\\]*')(?: (?:[A-Za-z0-9_./+-]+|'[^'!\\]*'))*$`)
	for _, command := range m.ran() {
		if !plain.MatchString(command) {
			t.Errorf("not every shell understands %s", command)
		}
	}
}

func TestProvisionFailures(t *testing.T) {
	for _, test := range []struct {
		name    string
		setup   func(t *testing.T, m *localMachine, block map[string]any)
		wantErr []string
		// untouched says that nothing may have been written to the machine.
		untouched bool
	}{
		{"unpinned key", func(_ *testing.T, _ *localMachine, block map[string]any) {
			block["openssh_ca_pins"] = block["openssh_ca_pins"].([]string)[:1]
		}, []string{"SHA256:", "is not pinned"}, true},
		{"pins that turn out empty", func(_ *testing.T, _ *localMachine, block map[string]any) {
			block["openssh_ca_pins"] = []string{}
		}, []string{"openssh_ca_pins: it is empty", "is not pinned; list the fingerprint"}, true},
		{"proxy of another CA", func(_ *testing.T, _ *localMachine, block map[string]any) {
			delete(block, "proxy_ca_file")
		}, []string{"proxy_address: fetch the openssh CA of the Teleport proxy 127.0.0.1:", "certificate", "or set proxy_ca_file"}, true},
		{"proxy that does not answer", func(_ *testing.T, _ *localMachine, block map[string]any) {
			block["proxy_address"] = "127.0.0.1:1"
		}, []string{"proxy_address: fetch the openssh CA of the Teleport proxy 127.0.0.1:1: dial", "refused; check the address and the network"}, true},
		{"Windows", func(t *testing.T, m *localMachine, _ map[string]any) {
			m.stub(t, "uname", "echo \"'uname' is not recognized as an internal or external command,\"; exit 1")
		}, []string{`run "uname -sm" on the machine: exit status 1: 'uname' is not recognized`, "hint: check the communicator in the source block, and that the machine runs Linux"}, true},
		{"macOS", func(t *testing.T, m *localMachine, _ map[string]any) {
			m.stub(t, "uname", "echo Darwin arm64")
		}, []string{`the machine is "Darwin arm64", but hallmark runs on Linux`, "choose another image"}, true},
		{"another architecture", func(t *testing.T, m *localMachine, _ map[string]any) {
			m.stub(t, "uname", "echo Linux riscv64")
		}, []string{`the machine is "Linux riscv64"`}, true},
		{"no uname", func(t *testing.T, m *localMachine, _ map[string]any) {
			m.stub(t, "uname", "echo uname: not recognized >&2; exit 127")
		}, []string{`run "uname -sm" on the machine: exit status 127: uname: not recognized`}, true},
		{"no remote folder", func(_ *testing.T, m *localMachine, block map[string]any) {
			block["remote_folder"] = m.tmp() + "/missing"
		}, []string{"make folder", "/missing/hallmark-", "No such file", "hint: set remote_folder to a folder that exists"}, true},
		{"read-only folder", func(t *testing.T, m *localMachine, _ map[string]any) {
			m.stub(t, "mkdir", `echo "mkdir: cannot create directory: Read-only file system" >&2; exit 1`)
		}, []string{"make folder", "hint: set remote_folder to a folder on a disk that is not read-only"}, true},
		{"full disk", func(_ *testing.T, m *localMachine, _ map[string]any) {
			m.upload = func(file string) error {
				return errors.New("scp: " + file + ":\x1b[2J No space left on device")
			}
		}, []string{"upload ", "/bake.sh (", " bytes) to the machine: scp: ", "hint: make room on the machine"}, true},
		{"connection that breaks during an upload", func(_ *testing.T, m *localMachine, _ map[string]any) {
			m.upload = func(file string) error {
				if filepath.Base(file) == programFile {
					return io.EOF
				}
				return nil
			}
		}, []string{"/hallmark (", " bytes) to the machine: EOF", "hint: check that the disk with remote_folder has room"}, true},
		{"sudo wants a password", func(t *testing.T, m *localMachine, block map[string]any) {
			m.stub(t, "sudo", "echo sudo: a password is required >&2; exit 1")
			block["execute_command"] = "true hunter2; sudo -n sh {{.Path}}"
		}, []string{"/bake.sh", "execute_command", "sudo: a password is required", "hint: set execute_command to a command that gives sudo the password"}, false},
		{"no sudo", func(t *testing.T, m *localMachine, _ map[string]any) {
			m.stub(t, "sudo", "echo sh: sudo: not found >&2; exit 127")
		}, []string{"/bake.sh", "exit status 127: sh: sudo: not found", "hint: install sudo on the machine, connect as root, or set execute_command"}, false},
		{"connection that breaks while hallmark installs", func(t *testing.T, m *localMachine, _ map[string]any) {
			m.stub(t, "cp", "exit 1")
			m.exit = func(command string, status int) int {
				if strings.Contains(command, scriptFile) {
					return packersdk.CmdDisconnect
				}
				return status
			}
		}, []string{"/bake.sh", "the connection broke", "hint: start the build again"}, false},
		{"too little memory", func(t *testing.T, m *localMachine, _ map[string]any) {
			m.stub(t, "cp", "exit 137")
		}, []string{"exit status 137", "hint: the machine may be out of memory"}, false},
		{"hints of hallmark's own", func(t *testing.T, m *localMachine, _ map[string]any) {
			m.stub(t, "cp", `printf 'hallmark: error: No space left on device\nhint: make room\n' >&2; exit 1`)
		}, []string{"exit status 1: hallmark: error: No space left on device\nhint: make room"}, false},
		{"failure that a pipeline hides", func(t *testing.T, m *localMachine, block map[string]any) {
			m.stub(t, "cp", "echo hallmark: error: no sshd >&2; exit 1")
			block["execute_command"] = "sudo -n sh {{.Path}} 2>&1 | cat"
		}, []string{"execute_command succeeded, but bake.sh did not finish; it printed: hallmark: error: no sshd", "hint: set execute_command to a command that fails if {{.Path}} fails"}, false},
		{"not run as root", func(_ *testing.T, _ *localMachine, block map[string]any) {
			block["execute_command"] = "sh {{.Path}}"
		}, []string{"must run as root"}, false},
		{"script from standard input", func(_ *testing.T, _ *localMachine, block map[string]any) {
			block["execute_command"] = `cd "$ROOT"; cat {{.Path}} | sudo -n sh`
		}, []string{"must run {{.Path}} itself"}, false},
		{"install fails", func(t *testing.T, m *localMachine, _ map[string]any) {
			m.stub(t, "cp", "echo hallmark: error: disk full >&2; exit 3")
			older := filepath.Join(m.root, "usr/local/bin/hallmark")
			if err := os.MkdirAll(filepath.Dir(older), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(older, []byte(program), 0o755); err != nil {
				t.Fatal(err)
			}
		}, []string{"exit status", "hallmark: error: disk full"}, false},
		{"seal fails", func(t *testing.T, m *localMachine, _ map[string]any) {
			m.stub(t, "chmod", `case $2 in */usr/local/bin/hallmark) exec /bin/chmod 0644 "$2" ;; esac; exec /bin/chmod "$@"`)
		}, []string{"exit status 126", "ermission denied"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, p := newMachine(t), newProxy(t, 2)
			block := block(m, p)
			test.setup(t, m, block)
			said, err := provision(t, t.Context(), m, block)
			for _, want := range test.wantErr {
				if !matches(err, want) {
					t.Errorf("error %v, want it to contain %q", err, want)
				}
			}
			if err != nil {
				clitest.Readable(t, test.name, err.Error())
				if strings.Count(err.Error(), "hint: ") > 1 {
					t.Errorf("more than one hint: %v", err)
				}
			}
			if err != nil && strings.Contains(err.Error()+said, "hunter2") {
				t.Errorf("the password of execute_command is shown: %v\n%s", err, said)
			}
			if got := m.read(t, "calls"); strings.Contains(got, "seal") || test.untouched && got != "" {
				t.Errorf("hallmark ran after the failure: %q", got)
			}
			checkClean(t, m)
			if m.read(t, "bin/uname") == "" {
				t.Error("the script removed a folder that is not its own")
			}
		})
	}
}

// A plugin that a developer built for one architecture bakes machines of that one.
func TestProvisionWithOneProgram(t *testing.T) {
	for arch, want := range map[string]string{
		"x86_64":  "",
		"aarch64": `no hallmark program for linux/arm64: use a release, or build it with "make build"`,
	} {
		programs := stubPrograms()
		delete(programs, "hallmark-linux-arm64")
		m, p := newMachine(t), newProxy(t, 1)
		m.stub(t, "uname", "echo Linux "+arch)
		if _, err := provisionWith(t, t.Context(), programs, m, block(m, p)); !matches(err, want) {
			t.Errorf("%s: error %v, want %q", arch, err, want)
		}
		if got := m.read(t, "calls"); (got == "") != (want != "") {
			t.Errorf("%s: hallmark ran: %q", arch, got)
		}
	}
}

func TestProvisionWithoutCommunicator(t *testing.T) {
	_, err := provision(t, t.Context(), &noMachine{}, block(newMachine(t), newProxy(t, 1)))
	if !matches(err, `set communicator = "ssh"`) {
		t.Errorf("error %v, want one that names the communicator", err)
	}
}

// Ctrl-C cancels the context while the remote command continues: the staging folder has to go
// anyway.
func TestCancelCleansUp(t *testing.T) {
	m := newMachine(t)
	m.stub(t, "cp", `touch "$ROOT/installing"; while [ -d "$2" ]; do sleep 0.01; done; exit 1`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	m.start = func(command string) error {
		if strings.Contains(command, scriptFile) {
			go func() {
				waitFor(t, filepath.Join(m.root, "installing"))
				cancel()
			}()
		}
		return nil
	}
	said, err := provision(t, ctx, m, block(m, newProxy(t, 1)))
	if !errors.Is(err, context.Canceled) || !matches(err, "execute_command: interrupted") || strings.Contains(said, "remove folder") {
		t.Errorf("error %v, want context.Canceled and no complaint about the clean-up:\n%s", err, said)
	}
	m.running.Wait()
	checkClean(t, m)
}

func waitFor(t *testing.T, file string) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(file); err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Errorf("%s did not appear", file)
			return
		case <-tick.C:
		}
	}
}

// Packer reads a template with this specification.
func TestGeneratedSpecificationIsCurrent(t *testing.T) {
	if testing.Short() {
		t.Skip("make lint runs it: compiling Packer's generator takes a minute")
	}
	dir := t.TempDir()
	generate := exec.Command("go", "tool", "packer-sdc", "mapstructure-to-hcl2", "-type", "Config")
	generate.Env = append(os.Environ(), "GOFILE="+filepath.Join(dir, "config.go"))
	if out, err := generate.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want, err := os.ReadFile(filepath.Join(dir, "config.hcl2spec.go"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("config.hcl2spec.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error(`config.hcl2spec.go is not what Config says: run "go generate ./packer-plugin/..."`)
	}
}
