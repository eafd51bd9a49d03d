//go:build e2e && linux

package faults

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/doctor"
)

// diagnosis is what the doctor says about a fault.
type diagnosis struct {
	fault string
	first doctor.Finding // the zero value if nothing is wrong
	right bool
}

// String is a row of the table in the document.
func (d diagnosis) String() string {
	if d.first.Check == "" {
		return fmt.Sprintf("| %s | nothing is wrong | | %s |", d.fault, yesOrNo(d.right))
	}
	where := ""
	if d.first.Elsewhere {
		where = "on a workstation: "
	}
	return fmt.Sprintf("| %s | %s (%s) | %s`%s` | %s |", d.fault, d.first.Check, d.first.Level, where, withoutChance(d.first.Command), yesOrNo(d.right))
}

func yesOrNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}

// keepConfig keeps a good copy of the configuration for the editor.
const keepConfig = "cp /etc/hallmark/config.yaml /root/good-config.yaml"

// editor does what a person does with an editor: it corrects the file, or comments a line out.
const editor = `#!/bin/sh -eu
case $1 in
+*) sed -i "${1#+}s/^/#/" "$2" ;;
*) cp /root/good-config.yaml "$1" ;;
esac
`

// diagnose runs hallmark doctor on the machine.
func (m *instance) diagnose(t *testing.T, f fault) diagnosis {
	t.Helper()
	// The doctor's own 4.5 s may be too short on a busy machine.
	patience := 2 * time.Minute
	if f.hangs {
		patience = 15 * time.Second
	}
	// It exits with an error if something is wrong.
	out, runErr := m.Run(t.Context(), "hallmark", "doctor", "--json", "--timeout", patience.String())
	var said struct{ Findings []doctor.Finding }
	if err := json.Unmarshal([]byte(out), &said); err != nil || len(said.Findings) == 0 {
		t.Fatalf("hallmark doctor: %v, %v: %s", err, runErr, out)
	}
	d := diagnosis{fault: f.name}
	if said.Findings[0].Level != doctor.OK {
		d.first = said.Findings[0]
	}
	if d.right = d.first.Check == f.finds; !d.right {
		t.Logf("doctor's first finding is %+v, want %q", d.first, f.finds)
	}
	return d
}

// enrolls reports whether the advice includes a run of hallmark.
func (d diagnosis) enrolls() bool { return strings.Contains(d.first.Command, "hallmark enroll") }

// follow does what the doctor advises, and waits for the run that this may have started. If the
// cause is not on the machine, or the command only shows it, the advice asks for the end of the
// fault.
func (m *instance) follow(t *testing.T, d diagnosis, end func()) {
	t.Helper()
	command := d.first.Command
	shows := command == "sshd -t" || strings.HasPrefix(command, "df ")
	outside := d.first.Elsewhere || slices.Contains([]string{"", "signer", "name resolution", "clock"}, d.first.Check)
	if shows || outside {
		end()
		return
	}
	if err := os.WriteFile(m.Path("/root/editor"), []byte(editor), 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := m.Run(t.Context(), "env", "EDITOR=/root/editor", "sh", "-c", command); err != nil {
		t.Errorf("doctor's command %s: %v: %s", command, err, out)
	}
	m.sh(t, "until systemctl show --property=SubState hallmark.service | grep -Eqx 'SubState=(dead|failed|auto-restart)'; do sleep 0.1; done")
}

// wantHealthy fails the test unless the doctor finds nothing wrong.
func (m *instance) wantHealthy(t *testing.T, when string) {
	t.Helper()
	if d := m.diagnose(t, fault{}); !d.right {
		t.Errorf("%s, the doctor finds %+v", when, d.first)
	}
}

const (
	beginDoctor   = "<!-- begin doctor -->\n"
	endDoctor     = "<!-- end doctor -->"
	doctorHeading = "| fault | first finding | its command | right |\n|---|---|---|---|\n"
)

// checkDiagnoses compares the doctor's table with the document, or writes it there, and fails the
// test if the doctor is right too rarely.
func checkDiagnoses(t *testing.T, outcomes []outcome) {
	t.Helper()
	const path, enough = "../../docs/reliability.md", 95
	hits := 0
	var rows strings.Builder
	for _, o := range outcomes {
		if o.diagnosis.right {
			hits++
		}
		fmt.Fprintln(&rows, o.diagnosis)
	}
	percent := 100 * hits / max(len(outcomes), 1)
	if percent < enough {
		t.Errorf("the doctor's first finding is right for %d of %d faults, less than %d %%", hits, len(outcomes), enough)
	}
	if partial() {
		return
	}
	text := fmt.Sprintf("The first finding is right for %d of %d faults (%d %%).\n\n%s%s", hits, len(outcomes), percent, doctorHeading, &rows)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(data), beginDoctor)
	inside, after, ok2 := strings.Cut(rest, endDoctor)
	switch {
	case !ok || !ok2:
		t.Errorf("%s has no table between %q and %q", path, beginDoctor, endDoctor)
	case inside == text:
	case !*update || t.Failed():
		t.Errorf("%s has another table; run the test with -update if this one is right:\n%s", path, text)
	default:
		if err := os.WriteFile(path, []byte(before+beginDoctor+text+endDoctor+after), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
