package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestParseShow(t *testing.T) {
	for name, test := range map[string]struct {
		output string
		want   []Unit
	}{
		"nothing": {"", nil},
		"two units": {"Id=a.service\nLoadState=loaded\n\nId=b.timer\nLoadState=not-found\n",
			[]Unit{{"Id": {"a.service"}, "LoadState": {"loaded"}}, {"Id": {"b.timer"}, "LoadState": {"not-found"}}}},
		"several values": {"Id=ssh.socket\nListen=[::]:22 (Stream)\nListen=0.0.0.0:2222 (Stream)\n",
			[]Unit{{"Id": {"ssh.socket"}, "Listen": {"[::]:22 (Stream)", "0.0.0.0:2222 (Stream)"}}}},
		"= in a value":    {"Id=a.service\nExecStart={ path=/bin/a ; argv[]=a }\n", []Unit{{"Id": {"a.service"}, "ExecStart": {"{ path=/bin/a ; argv[]=a }"}}}},
		"no Id":           {"LoadState=loaded\n\nId=\nActiveState=active\n", nil},
		"carriage return": {"Id=a.service\r\nActiveState=active\r\n", []Unit{{"Id": {"a.service"}, "ActiveState": {"active"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := ParseShow(test.output); !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestGet(t *testing.T) {
	u := Unit{"a": {"1", "2"}}
	if u.Get("a") != "2" || u.Get("b") != "" {
		t.Errorf("got %q and %q", u.Get("a"), u.Get("b"))
	}
}

// fakeSystemctl puts a script in the place of systemctl.
func fakeSystemctl(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestShow(t *testing.T) {
	fakeSystemctl(t, `echo "Id=$3"; echo "Asked=$1 $2"`)
	units, err := Show(t.Context(), "LoadState", "a.timer")
	if want := []Unit{{"Id": {"a.timer"}, "Asked": {"show --property=Id,LoadState"}}}; err != nil || !reflect.DeepEqual(units, want) {
		t.Errorf("got %q, error %v; want %q", units, err, want)
	}
}

func TestRunQuotesTheReason(t *testing.T) {
	fakeSystemctl(t, `echo "Unit a.timer not loaded." >&2; exit 5`)
	err := Run(t.Context(), "stop", "a.timer")
	if err == nil || err.Error() != "systemctl stop a.timer: exit status 5: Unit a.timer not loaded." {
		t.Errorf("error %v", err)
	}
}

// A child that outlives systemctl, and holds its output open, neither delays nor fails a command.
func TestRunDoesNotWaitForChildren(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	fakeSystemctl(t, "sleep 1000 & echo $! >"+pid)
	err := Run(t.Context(), "start", "a.timer")
	if child, e := os.ReadFile(pid); e != nil || exec.Command("kill", strings.TrimSpace(string(child))).Run() != nil {
		t.Errorf("the child did not outlive systemctl: %v", e)
	}
	if err != nil {
		t.Error(err)
	}
}

func TestRunSaysWhatFailed(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if err := Run(t.Context(), "stop", "a.timer"); err == nil || !strings.HasPrefix(err.Error(), "systemctl stop a.timer: ") {
		t.Errorf("error %v", err)
	}
}
