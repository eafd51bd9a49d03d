package command

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/cli/clitest"
	"github.com/hallmark-ssh/hallmark/internal/machine/agent"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// Units and scripts read exit codes, which testscript cannot tell apart.
func TestExitCodes(t *testing.T) {
	for _, test := range []struct {
		args []string
		want int
	}{
		{[]string{"help"}, cli.OK},
		{[]string{"enroll", "-h"}, cli.OK},
		{nil, cli.Usage},
		{[]string{"unknown"}, cli.Usage},
		{[]string{"enroll", "--unknown"}, cli.Usage},
		{[]string{"enroll", "--config", "/nonexistent"}, exitConfig},
		{[]string{"renew", "-h"}, cli.OK},
		{[]string{"renew", "--unknown"}, cli.Usage},
		{[]string{"renew", "--config", "/nonexistent"}, exitConfig},
	} {
		var out, err bytes.Buffer
		if got := cli.Run(t.Context(), New(), test.args, strings.NewReader(""), &out, &err); got != test.want {
			t.Errorf("hallmark %q exits with %d, want %d: %s", test.args, got, test.want, err.String())
		}
	}
}

func TestReleasedFlags(t *testing.T) {
	clitest.ReleasedFlags(t, New,
		"enroll -config /etc/c.yaml", "enroll -timeout 5s", "enroll -timeout -5s", "enroll -reload",
		"renew -config /etc/c.yaml", "renew -timeout 1m30s", "renew -reload",
		"status -json", "doctor -json", "doctor -image /mnt", "doctor -timeout 30s",
		"install -from dir", "install -root /mnt",
		"seal -root /mnt", "seal -force", "seal -host-keys-elsewhere",
		"identity verify -certificates -dir")
}

func TestAsFailure(t *testing.T) {
	for kind, want := range map[fault.Kind]int{
		fault.Failed: cli.Failed, fault.Misconfigured: exitConfig,
		fault.Refused: cli.Refused, fault.Temporary: exitTemporary,
	} {
		err := asFailure(fmt.Errorf("around: %w", &fault.Error{Kind: kind, Hint: "do it", Err: errors.New("inner")}))
		f, ok := errors.AsType[*cli.Error](err)
		if !ok || f.Code != want || f.Hint != "do it" || err.Error() != "around: inner" {
			t.Errorf("kind %d became %#v, want code %d", kind, err, want)
		}
	}
}

func TestReportOutcome(t *testing.T) {
	var lines []string
	log := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	s := &state.State{Presented: true, RenewAfter: time.Date(2026, 3, 8, 12, 0, 0, 0, time.UTC)}
	s.Node.Cluster, s.Node.Hostname = "example.com", "web-i-0"
	o := &agent.Outcome{State: s, Trusted: []string{"SHA256:a"}, Retired: []string{"SHA256:b"}}
	reportOutcome(o, false, log)
	want := []string{
		"already enrolled as web-i-0 in example.com, renewal due 2026-03-08T12:00:00Z",
		"sshd now trusts the OpenSSH CA SHA256:a",
		"sshd no longer trusts the OpenSSH CA SHA256:b",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("got %q, want %q", lines, want)
	}
	lines = nil
	reportOutcome(o, true, log)
	if !slices.Equal(lines, want[1:]) {
		t.Errorf("quiet: got %q, want %q", lines, want[1:])
	}
	lines = nil
	o.Reason = "not enrolled yet"
	if reportOutcome(o, true, log); len(lines) == 0 || lines[0] != o.Reason {
		t.Errorf("quiet, with something to do: got %q, want first %q", lines, o.Reason)
	}
}
