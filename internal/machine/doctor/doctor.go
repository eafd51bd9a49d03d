// Package doctor finds out what is wrong with a machine, and what to do about it.
//
// Look and Examine collect facts. Each check is a pure judgment on those facts. The commands
// status and doctor share the local checks; doctor adds those that ask the metadata service
// and the signer.
package doctor

import (
	"cmp"
	"errors"
	"net"
	"slices"
)

// Level says how a check ended.
type Level string

// The levels of findings.
const (
	OK      Level = "ok"
	Warning Level = "warning" // it works, but needs attention
	Failure Level = "failure" // it does not work, or will soon stop working
	Unknown Level = "unknown" // the check could not look, mostly for lack of root
)

// Finding is the result of one check. A check may have several.
type Finding struct {
	Check string `json:"check"`
	Level Level  `json:"level"`
	Text  string `json:"text"`
	// Fix says what to do, and Command how, as a line for a shell. Both are empty if there is
	// nothing to do.
	Fix     string `json:"fix,omitempty"`
	Command string `json:"command,omitempty"`
	// Elsewhere says to run Command on a workstation with AWS credentials, not on the machine.
	Elsewhere bool `json:"elsewhere,omitempty"`
	// Places are the lines of sshd's configuration to correct, as FILE:LINE.
	Places []string `json:"places,omitempty"`
	// Late says that there was no answer in time. A busy machine may be the reason.
	Late bool `json:"late,omitempty"`
	// effect says that another finding of the same level is the cause of this one.
	effect bool
}

// check judges one aspect of the machine.
type check func(*Facts) []Finding

// Local returns the findings about the machine alone, in the order in which to fix them.
func Local(f *Facts) []Finding { return examine(f, localChecks()) }

func examine(f *Facts, checks []check) (findings []Finding) {
	for _, check := range checks {
		findings = append(findings, check(f)...)
	}
	// Checks are in the order of cause and effect, and the sort is stable.
	slices.SortStableFunc(findings, func(a, b Finding) int {
		return cmp.Or(a.Level.rank()-b.Level.rank(), a.certainty()-b.certainty())
	})
	return findings
}

// certainty orders findings of the same level: what is surely wrong, then what did not answer in
// time, then the effects of either.
func (f Finding) certainty() int {
	switch {
	case f.effect:
		return 2
	case f.Late:
		return 1
	}
	return 0
}

// late reports whether an error means that an answer did not come in time.
func late(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return errors.Is(err, errLate) || ok && timeout.Timeout()
}

func (l Level) rank() int {
	return slices.Index([]Level{Failure, Warning, Unknown, OK}, l)
}

// Worst returns the worst level among findings, OK if there are none.
func Worst(findings []Finding) Level {
	worst := OK
	for _, f := range findings {
		if f.Level.rank() < worst.rank() {
			worst = f.Level
		}
	}
	return worst
}

func fine(check, text string) []Finding { return []Finding{{Check: check, Level: OK, Text: text}} }

// needsRoot is the finding of a check that only root can make.
func needsRoot(check, what string) []Finding {
	return []Finding{{Check: check, Level: Unknown, Text: "cannot read " + what + " without root", Fix: "run it as root"}}
}
