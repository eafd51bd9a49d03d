package loaded

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
)

// Snapshot is the View that a running sshd has loaded.
type Snapshot struct {
	Stamp string `json:"stamp"` // of the Load
	sshd.View
}

// facts are what is known about the running sshd and about the files that it would read in a
// reload.
type facts struct {
	Load     sshd.Load
	Snapshot *Snapshot // the last saved snapshot, or nil
	Files    sshd.View
	Changed  []sshd.Changed
}

// running returns what the running sshd has loaded. If that is not known, why says so.
//
// A snapshot of the same load is right, whatever the clock says and the files contain. Without
// a snapshot, sshd has loaded what the files contain if none of them has changed since the
// load.
func (f facts) running() (v *sshd.View, why string) {
	if f.Snapshot != nil && f.Load.Stamp != "" && f.Snapshot.Stamp == f.Load.Stamp {
		return &f.Snapshot.View, ""
	}
	if f.Load.At.IsZero() {
		return nil, "hallmark cannot tell when sshd last read its configuration"
	}
	for _, c := range f.Changed {
		if !c.At.Before(f.Load.At) {
			return nil, fmt.Sprintf("%s changed at %s, after sshd last read its configuration at %s",
				c.Path, c.At.UTC().Format(time.RFC3339), f.Load.At.UTC().Format(time.RFC3339))
		}
	}
	return &f.Files, ""
}

// pending returns what a reload would activate besides Hallmark's own lines, or "". If in
// doubt, it reports a change.
func (f facts) pending() string {
	if f.Load.Stamp == "" {
		return ""
	}
	running, why := f.running()
	if running == nil {
		return why
	}
	return difference(*running, f.Files)
}

// difference returns which setting would change, or "". Lines that give every login the same
// settings do not count.
func difference(v, next sshd.View) string {
	for _, path := range slices.Sorted(maps.Keys(next.Keys)) {
		if before, ok := v.Keys[path]; !ok || before != next.Keys[path] {
			return path + " is not the one that sshd has loaded"
		}
	}
	for _, path := range slices.Sorted(maps.Keys(v.Keys)) {
		if _, ok := next.Keys[path]; !ok {
			return path + " is no longer there"
		}
	}
	if slices.Equal(v.Directives, next.Directives) {
		return ""
	}
	compared, own := 0, slices.Concat(v.Own, next.Own)
	for _, login := range slices.Sorted(maps.Keys(next.Logins)) {
		before, ok := settings(v, login)
		after, ok2 := settings(next, login)
		if !ok || !ok2 {
			continue
		}
		compared++
		if d := firstChange(withoutOwn(before, own), withoutOwn(after, own)); d != "" {
			return d + ", for " + login
		}
	}
	// A Match block may apply to somebody whose login was not checked.
	if compared == 0 {
		return firstChange(v.Directives, next.Directives)
	}
	return firstChange(v.InMatch(), next.InMatch())
}

func settings(v sshd.View, login string) (text string, ok bool) {
	n, ok := v.Logins[login]
	if !ok || n < 0 || n >= len(v.Settings) {
		return "", false
	}
	return v.Settings[n], true
}

// firstChange says which line changed, or "".
func firstChange(was, is []string) string {
	if slices.Equal(was, is) {
		return ""
	}
	gone, added := missingFrom(is, was), missingFrom(was, is)
	switch {
	case gone != "" && added != "":
		return fmt.Sprintf("%q became %q", gone, added)
	case gone != "":
		return fmt.Sprintf("%q was removed", gone)
	case added != "":
		return fmt.Sprintf("%q was added", added)
	}
	return "the order of lines changed"
}

// missingFrom returns the first of the lines that the others do not contain.
func missingFrom(others, lines []string) string {
	for _, line := range lines {
		if !slices.Contains(others, line) {
			return line
		}
	}
	return ""
}

// withoutOwn returns the lines of "sshd -T" that are not Hallmark's.
func withoutOwn(settings string, own []string) (lines []string) {
	for line := range strings.Lines(settings) {
		line = strings.TrimSpace(line)
		keyword, _, _ := strings.Cut(line, " ")
		if !slices.Contains(own, keyword) && !slices.Contains(own, line) {
			lines = append(lines, line)
		}
	}
	return lines
}
