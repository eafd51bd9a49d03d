package provisioner

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
)

// localMachine is a communicator that really runs commands, with sh, in one of the test's
// folders. The programs that need a real machine are stubs in bin.
type localMachine struct {
	root string
	// start, if set, is called before each command.
	start func(command string) error
	// upload, if set, is called before each upload.
	upload func(file string) error
	// exit, if set, replaces the exit status of a command.
	exit func(command string, status int) int

	mu       sync.Mutex
	commands []string
	running  sync.WaitGroup
}

// newMachine returns a machine whose login user is not root and may use sudo.
func newMachine(t *testing.T) *localMachine {
	t.Helper()
	m := &localMachine{root: t.TempDir()}
	t.Cleanup(m.running.Wait)
	for _, folder := range []string{"bin", "tmp"} {
		if err := os.Mkdir(filepath.Join(m.root, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.stub(t, "uname", `echo "Linux x86_64"`)
	m.stub(t, "id", `echo "${STUB_UID:-1000}"`)
	m.stub(t, "sudo", `[ "$1" = -n ] && shift; STUB_UID=0 exec "$@"`)
	return m
}

// stub replaces one of the machine's programs with a shell script.
func (m *localMachine) stub(t *testing.T, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.root, "bin", name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func (m *localMachine) tmp() string { return filepath.Join(m.root, "tmp") }

// read returns the content of a file on the machine, or "" if there is none.
func (m *localMachine) read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(m.root, file))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(data)
}

// ran returns the commands that have started so far.
func (m *localMachine) ran() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.commands)
}

func (m *localMachine) Start(ctx context.Context, cmd *packersdk.RemoteCmd) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	m.commands = append(m.commands, cmd.Command)
	m.mu.Unlock()
	if m.start != nil {
		if err := m.start(cmd.Command); err != nil {
			return err
		}
	}
	sh := exec.Command("sh", "-c", cmd.Command)
	sh.Env = []string{"ROOT=" + m.root, "PATH=" + filepath.Join(m.root, "bin") + ":" + os.Getenv("PATH")}
	sh.Stdout, sh.Stderr = cmd.Stdout, cmd.Stderr
	m.running.Go(func() {
		_ = sh.Run()
		status := sh.ProcessState.ExitCode()
		if m.exit != nil {
			status = m.exit(cmd.Command, status)
		}
		cmd.SetExited(status)
	})
	return nil
}

// Upload stores a file under the given path, and changes the script to stay within the
// machine's folder.
func (m *localMachine) Upload(file string, content io.Reader, _ *os.FileInfo) error {
	if m.upload != nil {
		if err := m.upload(file); err != nil {
			return err
		}
	}
	data, err := io.ReadAll(content)
	if err != nil {
		return err
	}
	if filepath.Base(file) == scriptFile {
		data = bytes.ReplaceAll(data, []byte("/usr/local/bin"), []byte(filepath.Join(m.root, "usr/local/bin")))
	}
	return os.WriteFile(file, data, 0o644)
}

func (m *localMachine) UploadDir(string, string, []string) error   { return errors.ErrUnsupported }
func (m *localMachine) Download(string, io.Writer) error           { return errors.ErrUnsupported }
func (m *localMachine) DownloadDir(string, string, []string) error { return errors.ErrUnsupported }

// noMachine is what Packer gives with communicator = "none".
type noMachine struct{ localMachine }

func (*noMachine) Start(_ context.Context, cmd *packersdk.RemoteCmd) error {
	cmd.SetExited(0)
	return nil
}

func TestParseUname(t *testing.T) {
	for _, test := range []struct{ printed, want, wantErr string }{
		{"Linux x86_64", "amd64", ""},
		{"Linux aarch64\r", "arm64", ""},
		{"Welcome!\r\nLinux x86_64\r\n", "amd64", ""},
		{"Linux armv7l", "", `the machine is "Linux armv7l", but hallmark runs on Linux x86_64 and Linux aarch64; choose another image or instance type`},
		{"Darwin arm64", "", "hallmark runs on Linux"},
		{"not Linux x86_64", "", "hallmark runs on Linux"},
		{"", "", `set communicator = "ssh"`},
	} {
		got, err := parseUname(test.printed)
		if got != test.want || !matches(err, test.wantErr) {
			t.Errorf("parseUname(%q) = %q, %v; want %q, %q", test.printed, got, err, test.want, test.wantErr)
		}
	}
}

func TestOutputKeepsTheEnd(t *testing.T) {
	var o output
	for range 3 {
		if _, err := o.Write([]byte(strings.Repeat("x", maxOutput-1))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := o.Write([]byte("end\n")); err != nil {
		t.Fatal(err)
	}
	if got := o.String(); len(got) > maxOutput || !strings.HasSuffix(got, "xend") {
		t.Errorf("%d bytes are kept, ending in %q", len(got), got[len(got)-4:])
	}
}

func TestOutputCannotChangeATerminal(t *testing.T) {
	var o output
	if _, err := o.Write([]byte("\x1b[2Jno\r\n\x9b\xff\tyes\a\u202e")); err != nil {
		t.Fatal(err)
	}
	if got, want := o.String(), "·[2Jno\n··\tyes··"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	long := exitError{status: 1, output: strings.Repeat("ü", maxOutput) + "end"}
	if got := long.Error(); len(got) > maxQuoted+100 || !strings.HasSuffix(got, "üend") || !utf8.ValidString(got) {
		t.Errorf("%d bytes: %.100q", len(got), got)
	}
}

// A machine that never answers costs five minutes, and an error that says what to check.
func TestMachineNeverAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &localMachine{start: func(string) error { return errors.New("dial tcp 192.0.2.1:22: connect: connection refused") }}
		_, err := machine{m, 2 * time.Second}.architecture(t.Context())
		want := `run "uname -sm" on the machine: no connection for 5m0s: dial tcp 192.0.2.1:22: connect: connection refused` +
			"\nhint: check the communicator in the source block, and that the machine runs Linux with a shell"
		if err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	})
}

// matches reports whether err contains want; "" stands for no error.
func matches(err error, want string) bool {
	if err == nil || want == "" {
		return err == nil && want == ""
	}
	return strings.Contains(err.Error(), want)
}
