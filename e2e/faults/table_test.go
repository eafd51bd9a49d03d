//go:build e2e && linux

package faults

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// outcome is a row of the table.
type outcome struct {
	fault, logins, says, heals string
	took                       time.Duration // of the run that healed
	diagnosis                  diagnosis
}

// stable is the row without what depends on the machine's speed.
func (o outcome) stable() string {
	return fmt.Sprintf("| %s | %s | %s | %s |", o.fault, o.logins, o.says, o.heals)
}

// table is the one in the document.
type table struct {
	before, after string // of the document
	documented    []string
	rows          []outcome
}

const (
	document  = "../../docs/reliability.md"
	beginMark = "<!-- begin faults -->\n"
	endMark   = "<!-- end faults -->"
	heading   = "| fault | logins | what the journal says | healed by | s |\n|---|---|---|---|---|\n"
)

func openTable(t *testing.T) *table {
	t.Helper()
	data, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(data), beginMark)
	inside, after, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		t.Fatalf("%s has no table between %q and %q", document, beginMark, endMark)
	}
	tab := &table{before: before, after: after}
	tab.documented = strings.Split(strings.TrimPrefix(strings.TrimSpace(inside), strings.TrimSpace(heading)+"\n"), "\n")
	return tab
}

// add compares a row with the document.
func (tab *table) add(t *testing.T, o outcome) {
	t.Helper()
	t.Logf("%s %.1f |", o.stable(), o.took.Seconds())
	tab.rows = append(tab.rows, o)
	if *update {
		return
	}
	if tab.has(o) {
		return
	}
	t.Errorf("%s does not have the row\n%s\nrun the test with -update if it is right", document, o.stable())
}

// has reports whether the document has the row.
func (tab *table) has(o outcome) bool {
	return slices.ContainsFunc(tab.documented, func(row string) bool { return strings.HasPrefix(row, o.stable()) })
}

// close compares the table with the document, or writes it there.
func (tab *table) close(t *testing.T) {
	t.Helper()
	if !*update {
		if len(tab.rows) != len(tab.documented) && !partial() {
			t.Errorf("%s has %d rows, want %d", document, len(tab.documented), len(tab.rows))
		}
		return
	}
	if t.Failed() || partial() {
		t.Error("the document is not written: not every row is as it should be")
		return
	}
	var b strings.Builder
	b.WriteString(heading)
	for _, o := range tab.rows {
		fmt.Fprintf(&b, "%s %.1f |\n", o.stable(), o.took.Seconds())
	}
	if err := os.WriteFile(document, []byte(tab.before+beginMark+b.String()+endMark+tab.after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// partial reports whether only some of the rows are asked for.
func partial() bool {
	run := flag.Lookup("test.run")
	return run != nil && strings.Contains(run.Value.String(), "/")
}
