//go:build e2e && linux

package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// instance is an instance that a test breaks.
type instance struct{ *lab.Instance }

// sh runs a script in the machine. The script must succeed.
func (m *instance) sh(t *testing.T, script string) string {
	t.Helper()
	// Far longer than any script takes on a busy machine.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Minute)
	defer cancel()
	out, err := m.Run(ctx, "sh", "-euc", script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// logins are the ways in that work.
type logins struct{ keyPair, teleport bool }

func (l logins) String() string {
	switch l {
	case logins{true, true}:
		return "both"
	case logins{keyPair: true}:
		return "key pair"
	case logins{teleport: true}:
		return "Teleport"
	}
	return "none"
}

// worseThan reports whether a login that worked before no longer works.
func (l logins) worseThan(before logins) bool {
	return before.keyPair && !l.keyPair || before.teleport && !l.teleport
}

// logIn tries both logins, one after the other, because some faults allow only one connection
// at a time.
func (m *instance) logIn(t *testing.T, hostname string) logins {
	t.Helper()
	var l logins
	_, err := shared.lab.SSHByKeyPair(t.Context(), m.Instance, "true")
	l.keyPair = err == nil
	if hostname != "" {
		_, err = shared.lab.SSH(t.Context(), m.Instance, hostname, "true")
		l.teleport = err == nil
	}
	return l
}

// hostname returns the name that people of the cluster use for the machine.
func (m *instance) hostname(t *testing.T) string {
	t.Helper()
	s, err := m.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s.Node.Hostname + "." + s.Node.Cluster
}

// report is the result of one run of hallmark.service, from systemd and the journal.
type report struct {
	exit     int
	restarts bool // systemd will start it again
	lines    []string
	took     time.Duration
}

// serve runs hallmark.service as its timer does, and waits until it ends.
func (m *instance) serve(t *testing.T, ask time.Duration) report {
	t.Helper()
	m.begin(t, ask)
	return m.end(t)
}

// begin starts the service. If ask is not 0, it limits how long the run asks.
func (m *instance) begin(t *testing.T, ask time.Duration) {
	t.Helper()
	prepare := "rm -f " + askFile
	if ask != 0 {
		prepare = fmt.Sprintf("echo ASK=%s >%s", ask, askFile)
	}
	// What the journal has so far belongs to earlier runs. The test starts the unit more often
	// than systemd allows.
	m.sh(t, prepare+"; "+markJournal+`
systemctl reset-failed hallmark.service 2>/dev/null || true; systemctl restart hallmark.service`)
}

// end waits until the service has ended, and keeps systemd from starting it again. It finds
// the run's lines by where the journal ended before, not by the invocation's id: journald may
// read a line after the run has ended, and then no longer knows its invocation.
func (m *instance) end(t *testing.T) report {
	t.Helper()
	out := m.sh(t, `until systemctl show hallmark.service >/run/hallmark-unit && grep -Eqx 'SubState=(dead|failed|auto-restart)' /run/hallmark-unit; do sleep 0.1; done
systemctl stop hallmark.service
cat /run/hallmark-unit`)
	unit := map[string]string{}
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		unit[key] = value
	}
	exit, err := strconv.Atoi(unit["ExecMainStatus"])
	if err != nil {
		t.Fatal(err)
	}
	return report{
		exit: exit, restarts: unit["SubState"] == "auto-restart",
		took:  microseconds(t, unit["ExecMainExitTimestampMonotonic"]) - microseconds(t, unit["ExecMainStartTimestampMonotonic"]),
		lines: m.journal(t, func(e entry) bool { return e.concerns("hallmark.service") }),
	}
}

// markJournal remembers where the journal ends now.
const markJournal = "journalctl --sync; rm -f /run/hallmark-cursor; journalctl --lines=1 --cursor-file=/run/hallmark-cursor >/dev/null"

// entry is an entry of the journal (systemd.journal-fields(7)).
type entry struct {
	Text       string `json:"MESSAGE"`
	Unit       string `json:"_SYSTEMD_UNIT"` // that wrote it
	About      string `json:"UNIT"`          // that systemd wrote it about
	Identifier string `json:"SYSLOG_IDENTIFIER"`
}

func (e entry) concerns(unit string) bool { return e.Unit == unit || e.About == unit }

// journal returns the lines since markJournal, or since the boot, that a filter passes.
// journalctl's own filters would leave out the first line after the mark.
func (m *instance) journal(t *testing.T, filter func(entry) bool) (lines []string) {
	t.Helper()
	// Without any entry, it fails.
	out := m.sh(t, `journalctl --sync
after=$(cat /run/hallmark-cursor 2>/dev/null || true)
journalctl --output=json --boot ${after:+--after-cursor="$after"} || true`)
	for line := range strings.Lines(out) {
		var e entry
		if err := json.Unmarshal([]byte(line), &e); err != nil && !strings.HasPrefix(line, "{") {
			continue // "-- No entries --"
		} else if err != nil {
			t.Fatalf("read the journal: %v: %s", err, line)
		}
		if filter(e) {
			lines = append(lines, strings.TrimSpace(e.Text))
		}
	}
	return lines
}

func microseconds(t *testing.T, value string) time.Duration {
	t.Helper()
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(n) * time.Microsecond
}

// makeDue makes the certificates due for renewal.
func (m *instance) makeDue(t *testing.T) {
	t.Helper()
	m.edit(t, "state.json", func(state map[string]any) {
		now := time.Now().UTC().Truncate(time.Second)
		state["enrolledAt"], state["renewAfter"] = now.Add(-72*time.Hour), now.Add(-time.Minute)
	})
}

// endPause ends the pause that a failed run has recorded.
func (m *instance) endPause(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(m.Path(state.Dir + "/setback.json")); errors.Is(err, fs.ErrNotExist) {
		return
	}
	m.edit(t, "setback.json", func(failed map[string]any) {
		failed["notBefore"] = time.Now().UTC().Add(-time.Second).Truncate(time.Second)
	})
}

// edit changes a file that hallmark keeps.
func (m *instance) edit(t *testing.T, name string, change func(map[string]any)) {
	t.Helper()
	path := m.Path(state.Dir + "/" + name)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]any{}
	if err := json.Unmarshal(data, &fields); err != nil {
		t.Fatal(err)
	}
	change(fields)
	if data, err = json.Marshal(fields); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}
