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
	again bool // it took a second look
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

// diagnose runs hallmark doctor on the machine, and once more if its first finding is wrong or not
// the documented one: the test fails if that happens often.
func (m *instance) diagnose(t *testing.T, f fault) diagnosis {
	t.Helper()
	d, said := m.look(t, f)
	if d.right && (f.name == "" || *update || documented(t, d)) {
		return d
	}
	t.Logf("doctor's first finding is %+v, want %q; all it says:\n%s", d.first, f.finds, said)
	d, _ = m.look(t, f)
	d.again = true
	return d
}

// documented reports whether the document has a diagnosis.
func documented(t *testing.T, d diagnosis) bool {
	t.Helper()
	data, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(data), d.String()+"\n")
}

// look runs hallmark doctor on the machine, and also returns all that it says.
func (m *instance) look(t *testing.T, f fault) (d diagnosis, out string) {
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
	d = diagnosis{fault: f.name}
	if said.Findings[0].Level != doctor.OK {
		d.first = said.Findings[0]
	}
	d.right = d.first.Check == f.finds
	return d, out
}

// enrolls reports whether the advice includes a run of hallmark.
func (d diagnosis) enrolls() bool { return strings.Contains(d.first.Command, "hallmark enroll") }

// follow does what the doctor advises, and waits for the run that this may have started. If the
// cause is not on the machine, or the command only shows it, the advice asks for the end of the
// fault.
func (m *instance) follow(t *testing.T, d diagnosis, end func()) {
	t.Helper()
	command := d.first.Command
	shows := strings.HasPrefix(command, "df ")
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
	const enough = 95
	hits, again := 0, 0
	var rows strings.Builder
	for _, o := range outcomes {
		if o.diagnosis.right {
			hits++
		}
		if o.diagnosis.again {
			again++
			t.Logf("the doctor looked twice: %s", o.diagnosis)
		}
		fmt.Fprintln(&rows, o.diagnosis)
	}
	percent := 100 * hits / max(len(outcomes), 1)
	if percent < enough {
		t.Errorf("the doctor's first finding is right for %d of %d faults, less than %d %%", hits, len(outcomes), enough)
	}
	if again > len(outcomes)/20 {
		t.Errorf("the doctor had to look twice at %d of %d faults", again, len(outcomes))
	}
	if partial() {
		return
	}
	text := fmt.Sprintf("The first finding is right for %d of %d faults (%d %%).\n\n%s%s", hits, len(outcomes), percent, doctorHeading, &rows)
	data, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(data), beginDoctor)
	inside, after, ok2 := strings.Cut(rest, endDoctor)
	switch {
	case !ok || !ok2:
		t.Errorf("%s has no table between %q and %q", document, beginDoctor, endDoctor)
	case inside == text:
	case !*update || t.Failed():
		t.Errorf("%s differs; run the test with -update if this is right:\n%s", document, difference(inside, text))
	default:
		if err := os.WriteFile(document, []byte(before+beginDoctor+text+endDoctor+after), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// difference returns the lines that only one of two texts has, those of the first with a minus.
func difference(before, after string) string {
	old, now := strings.Split(before, "\n"), strings.Split(after, "\n")
	var b strings.Builder
	for _, line := range old {
		if !slices.Contains(now, line) {
			fmt.Fprintln(&b, "-", line)
		}
	}
	for _, line := range now {
		if !slices.Contains(old, line) {
			fmt.Fprintln(&b, "+", line)
		}
	}
	return b.String()
}
