//go:build e2e && linux

package faults

import (
	"bytes"
	"context"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// fault is something that goes wrong.
type fault struct {
	name string
	// begin causes the fault, and returns what ends it.
	begin func(t *testing.T, m *instance) (end func())
	// idle means that the machine has nothing to renew. Otherwise its certificates are due.
	idle bool
	// ask is how long a run may ask during the fault; 0 means two minutes, as usual.
	ask time.Duration
	// runs is the number of runs during the fault; 0 means one.
	runs int
	// finds is the check that the doctor must put first, or "" if nothing is wrong.
	finds string
	// leaves means that the doctor looks at what the fault leaves behind.
	leaves bool
	// hangs means that something never answers, so that the doctor waits for its time to end.
	hangs bool
}

// TestFaults checks the table in docs/reliability.md.
func TestFaults(t *testing.T) {
	table := openTable(t)
	for _, f := range slices.Concat(fromOutside(), onTheMachine(), inSettings()) {
		t.Run(f.name, func(t *testing.T) {
			o := shared.machine.befall(t, f)
			if f.ask != 0 && !table.has(o) {
				// On a busy machine the run's short time may end before the run gets to the fault.
				f.ask *= 5
				o = shared.machine.befall(t, f)
			}
			table.add(t, o)
		})
	}
	for _, test := range []struct {
		name string
		try  func(t *testing.T) outcome
	}{
		{"two runs at the same time", twoRuns},
		{"metadata service down at first boot", metadataDownAtBoot},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := test.try(t)
			o.fault, o.diagnosis.fault = test.name, test.name
			table.add(t, o)
		})
	}
	table.close(t)
	checkDiagnoses(t, table.rows)
}

// forgetRequests makes the signer forget how often machines have asked. All rows share one
// machine, and a fast one would use up what the signer allows it.
func forgetRequests() { shared.lab.Signer.Restart() }

// befall causes a fault, lets the machine run with it, ends it, and checks that the machine
// heals.
func (m *instance) befall(t *testing.T, f fault) outcome {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			var dump bytes.Buffer
			m.Dump(context.WithoutCancel(t.Context()), &dump)
			t.Logf("%s\n--- signer\n%s", &dump, shared.lab.SignerLog())
		}
	})
	forgetRequests()
	name := m.hostname(t)
	if !f.idle {
		m.makeDue(t)
	}
	m.sh(t, keepConfig)
	end := sync.OnceFunc(f.begin(t, m))
	d := m.diagnoseFault(t, f, name, &end)
	before := m.logIn(t, name)
	var r report
	for range max(f.runs, 1) {
		m.endPause(t)
		r = m.serve(t, f.ask)
	}
	during := m.logIn(t, name)
	renewed := !f.idle && m.renewed(t)
	if during.worseThan(before) {
		t.Errorf("logins %s, and after a run %s", before, during)
	}
	if f.leaves {
		end()
		d = m.diagnose(t, f)
	}
	if d.enrolls() { // it was followed before
		end()
	} else {
		m.follow(t, d, end)
	}
	corrected := during
	if during != (logins{true, true}) {
		corrected = m.logIn(t, name)
	}
	m.endPause(t)
	healing := m.serve(t, 0)
	if after := m.logIn(t, name); after != (logins{true, true}) || healing.exit != 0 {
		t.Errorf("once the fault is over, a run ends with %d, and logins are %s:\n%s", healing.exit, after, strings.Join(healing.lines, "\n"))
	}
	if !m.renewed(t) {
		t.Error("once the fault is over, a run did not renew the certificates")
	}
	end() // what the advice has left of the fault
	m.wantHealthy(t, "once its advice is followed, and a run has ended")
	took := healing.took
	if r.exit == 0 {
		took = r.took
	}
	return outcome{
		fault: f.name, logins: change(before, during), says: said(r), heals: healer(r, during, corrected, renewed), took: took, diagnosis: d,
	}
}

// diagnoseFault has the doctor look before a run of the service meets the fault. Advice to run
// hallmark heals the machine at once, so the fault then begins again.
func (m *instance) diagnoseFault(t *testing.T, f fault, name string, end *func()) diagnosis {
	t.Helper()
	if f.leaves {
		return diagnosis{}
	}
	d := m.diagnose(t, f)
	if !d.enrolls() {
		return d
	}
	m.follow(t, d, *end)
	m.wantHealthy(t, "once its advice is followed")
	if l := m.logIn(t, name); l != (logins{true, true}) {
		t.Errorf("once the doctor's advice is followed, logins are %s", l)
	}
	(*end)()
	if !f.idle {
		m.makeDue(t)
	}
	*end = sync.OnceFunc(f.begin(t, m))
	return d
}

// renewed reports whether the certificates are no longer due.
func (m *instance) renewed(t *testing.T) bool {
	t.Helper()
	s, err := m.State(t.Context())
	return err == nil && time.Now().Before(s.RenewAfter)
}

func change(before, during logins) string {
	if before == during {
		return during.String()
	}
	return before.String() + ", then " + during.String()
}

// healer says what heals the machine, from what systemd does next.
func healer(r report, during, corrected logins, renewed bool) string {
	all := logins{true, true}
	switch {
	case during != all && corrected == all, renewed && r.exit != 0:
		return "its end"
	case r.exit == 0:
		return "the same run"
	case r.restarts:
		return "the next run: 5 min, or its pause"
	}
	return "the next hourly run"
}

// said returns what a person reads in the journal: the error with its hint and the warnings,
// or else hallmark's first line, or else what systemd says.
func said(r report) string {
	var errors, warnings, others, systemd []string
	for _, line := range r.lines {
		own, ok := strings.CutPrefix(line, "hallmark: ")
		switch {
		case strings.HasPrefix(own, "error: "), strings.HasPrefix(own, "hint: "):
			errors = append(errors, own)
		case strings.HasPrefix(own, "warning: "):
			warnings = append(warnings, own)
		case ok:
			others = append(others, own)
		case strings.Contains(line, "Main process exited"):
			systemd = append(systemd, line)
		}
	}
	lines := append(errors, warnings...)
	for _, single := range [][]string{others, systemd} {
		if len(lines) == 0 && len(single) > 0 {
			lines = single[:1]
		}
	}
	for n := range lines {
		lines[n] = withoutChance(lines[n])
	}
	return strings.Join(lines, "<br>")
}

// withoutChance replaces what differs from run to run.
func withoutChance(line string) string {
	for _, chance := range []struct{ pattern, instead string }{
		{`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)`, "TIME"},
		{`i-[0-9a-f]{17}`, "INSTANCE"},
		{`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`, "UUID"},
		{`10\.83\.0\.\d+:\d{5}`, "OWN-ADDRESS"},
		{`10\.83\.0\.1\b`, "SIGNER"},
		{`SHA256:[A-Za-z0-9+/]{43}`, "SHA256:…"},
		{`10\.83\.0\.\d+`, "MACHINE"},
		{`\|`, `\|`},
	} {
		line = regexp.MustCompile(chance.pattern).ReplaceAllLiteralString(line, chance.instead)
	}
	return line
}
