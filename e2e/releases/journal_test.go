//go:build e2e && linux

package releases

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// checkJournal sees that this systemd knows all that the units say, and that no run of
// hallmark's failed.
func checkJournal(t *testing.T, i *lab.Instance) {
	t.Helper()
	for line := range strings.Lines(run(t, i, "journalctl", "--no-pager")) {
		if strings.Contains(line, "hallmark") && (strings.Contains(line, "Unknown") || strings.Contains(line, "error:")) {
			t.Errorf("journal: %s", line)
		}
	}
}

// checkQuiet sees that a healthy machine gets at most 30 lines a day in its journal for Hallmark,
// which runs every hour: its own, systemd's about it, and sshd's about the connection that looks
// at the certificate.
func checkQuiet(t *testing.T, i *lab.Instance) {
	t.Helper()
	const most, runs, hours = 30, 3, 24
	last := journal(t, i, "--lines=1")
	if len(last) != 1 {
		t.Fatalf("the journal has %d last entries", len(last))
	}
	for range runs {
		makeUnasked(t, i)
		run(t, i, "sh", "-euc", `systemctl reset-failed hallmark.service 2>/dev/null || true
systemctl restart hallmark.service
while systemctl --quiet is-active hallmark.service; do sleep 0.1; done`)
	}
	var said []string
	for _, e := range journal(t, i, "--after-cursor="+last[0].Cursor) {
		if strings.HasPrefix(e.Unit+e.About, "hallmark") || strings.HasPrefix(e.Identifier, "sshd") {
			said = append(said, e.Text)
		}
	}
	t.Logf("%d lines in %d runs:\n%s", len(said), runs, strings.Join(said, "\n"))
	if len(said)*hours > most*runs || len(said) < runs {
		t.Errorf("%d lines in %d runs, want at most %d in %d, and sshd's about each", len(said), runs, most, hours)
	}
}

// makeUnasked has the next run ask the signer, as one does every hour.
func makeUnasked(t *testing.T, i *lab.Instance) {
	t.Helper()
	s := enrolledState(t, i)
	s.EnrolledAt = time.Now().UTC().Add(-time.Hour).Truncate(time.Second)
	writeState(t, i, s)
}

func writeState(t *testing.T, i *lab.Instance, s *state.State) {
	t.Helper()
	data, err := json.Marshal(s)
	if err == nil {
		err = os.WriteFile(i.Path("var/lib/hallmark/state.json"), data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// entry is an entry of the journal (systemd.journal-fields(7)).
type entry struct {
	Cursor     string `json:"__CURSOR"`
	Text       string `json:"MESSAGE"`
	Unit       string `json:"_SYSTEMD_UNIT"` // that wrote it
	About      string `json:"UNIT"`          // that systemd wrote it about
	Identifier string `json:"SYSLOG_IDENTIFIER"`
}

// journal returns the entries since the boot that journalctl selects.
func journal(t *testing.T, i *lab.Instance, selection string) (entries []entry) {
	t.Helper()
	run(t, i, "journalctl", "--sync")
	for line := range strings.Lines(run(t, i, "journalctl", "--boot", "--output=json", selection)) {
		var e entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("read the journal: %v: %s", err, line)
		}
		entries = append(entries, e)
	}
	return entries
}
