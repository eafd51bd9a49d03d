package command

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/hallmark-ssh/hallmark/internal/machine/doctor"
)

// style decides about colors.
type style struct{ color bool }

// styleOf returns colors for a terminal, unless NO_COLOR (https://no-color.org) or TERM=dumb
// says otherwise.
func styleOf(w io.Writer) style {
	file, ok := w.(*os.File)
	return style{ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(file.Fd()))} //nolint:gosec // a descriptor is small
}

func (s style) paint(level doctor.Level, text string) string {
	codes := map[doctor.Level]string{doctor.OK: "32", doctor.Warning: "33", doctor.Failure: "1;31", doctor.Unknown: "36"}
	if !s.color {
		return text
	}
	return "\x1b[" + codes[level] + "m" + text + "\x1b[0m"
}

// screen collects the lines of one screen.
type screen struct {
	strings.Builder
	style style
	now   time.Time
}

// row prints a name once, with one line for each value.
func (s *screen) row(name string, values ...string) {
	for n, value := range values {
		if n > 0 {
			name = ""
		} else {
			name += ":"
		}
		fmt.Fprintf(s, "%14s %s\n", name, value)
	}
}

// at writes a time, and how far away it is.
func (s *screen) at(t time.Time) string {
	distance := t.Sub(s.now)
	if distance < 0 {
		return fmt.Sprintf("%s (%s ago)", t.UTC().Format(time.RFC3339), doctor.Duration(distance))
	}
	return fmt.Sprintf("%s (in %s)", t.UTC().Format(time.RFC3339), doctor.Duration(distance))
}

// printStatus writes one screen in the manner of 'systemctl status'.
func printStatus(w io.Writer, s status, st style) error {
	v := &screen{style: st, now: s.At}
	v.title(s)
	v.identity(s)
	v.certificates(s)
	v.runs(s)
	v.row("Version", s.Program)
	v.problems(s.Findings)
	_, err := io.WriteString(w, v.String())
	return err
}

func (s *screen) title(of status) {
	name := "this machine"
	if of.State != nil {
		name = of.Node.Hostname + " in " + of.Node.Cluster
	}
	level := doctor.Worst(of.Findings)
	words := map[doctor.Level]string{
		doctor.OK: "all checks pass", doctor.Warning: "works, with warnings",
		doctor.Failure: "needs attention", doctor.Unknown: "as far as can be seen without root, all checks pass",
	}
	fmt.Fprintf(s, "%s %s: %s\n", s.style.paint(level, "●"), name, s.style.paint(level, words[level]))
}

func (s *screen) identity(of status) {
	if of.State == nil {
		return
	}
	i := of.Instance
	s.row("Instance", fmt.Sprintf("%s in %s, account %s", i.InstanceID, i.Region, i.AccountID))
	s.row("Node", of.Node.ID)
	s.row("Principals", of.Principals...)
	s.row("Enrolled", s.at(of.EnrolledAt))
	s.row("Renewal", s.at(of.RenewAfter))
}

func (s *screen) certificates(of status) {
	var files, presented []string
	for _, c := range of.Files {
		switch {
		case c.Error != "":
			files = append(files, fmt.Sprintf("%s: %s", c.Path, s.style.paint(doctor.Failure, c.Error)))
		default:
			files = append(files, fmt.Sprintf("%s until %s, serial %d", c.Path, s.at(c.ValidBefore), c.Serial))
		}
	}
	for _, l := range of.Listeners {
		presented = append(presented, s.listener(l)...)
	}
	if len(presented) == 0 {
		presented = []string{"does not run, or does not answer"}
	}
	s.row("Certificates", files...)
	s.row("sshd", presented...)
	s.row("Trusted CAs", of.TrustedCAs...)
}

// listener describes what sshd presents at an address.
func (s *screen) listener(l listener) (lines []string) {
	var same, none []string
	for _, o := range l.Offers {
		file := filepath.Base(o.Path)
		switch {
		case o.Same:
			same = append(same, file)
		case o.absent, o.Error == "" && o.Serial == 0 && o.ValidBefore.IsZero():
			none = append(none, file)
		case o.Error != "":
			lines = append(lines, fmt.Sprintf("%s: %s: %s", l.Address, file, s.style.paint(doctor.Failure, o.Error)))
		default:
			lines = append(lines, fmt.Sprintf("%s: %s, serial %d until %s", l.Address,
				s.style.paint(doctor.Failure, "presents a different certificate than "+file), o.Serial, s.at(o.ValidBefore)))
		}
	}
	if len(none) > 0 {
		lines = slices.Insert(lines, 0, l.Address+": "+s.style.paint(doctor.Failure, "presents no certificate for "+strings.Join(none, ", ")))
	}
	if len(same) > 0 {
		lines = slices.Insert(lines, 0, l.Address+" presents "+strings.Join(same, ", "))
	}
	if len(l.Offers) == 0 {
		lines = append(lines, l.Address+": there is no certificate to ask for")
	}
	return lines
}

func (s *screen) runs(of status) {
	if r := of.LastRun; r != nil {
		code := fmt.Sprintf("exit code %d", r.ExitCode)
		if r.Signal {
			code = fmt.Sprintf("signal %d", r.ExitCode)
		}
		s.row("Last run", fmt.Sprintf("%s, %s, at %s", r.Result, code, s.at(r.Ended)))
	} else {
		s.row("Last run", "none since the boot, as far as systemd knows")
	}
	if b := of.Backoff; b != nil {
		s.row("Backing off", fmt.Sprintf("until %s; failed runs in a row: %d", s.at(b.Until), b.Failures), b.Reason)
	}
	if of.State != nil && of.Waiting != nil {
		s.row("Waiting", of.Waiting.String(), "since "+s.at(of.Waiting.Since), of.Waiting.Access(s.now))
	}
	if of.State != nil && of.NotVerified != "" {
		s.row("Not verified", of.NotVerified)
	}
	var timers []string
	for _, u := range of.Units {
		if u.Name == doctor.ServiceUnit {
			continue
		}
		line := fmt.Sprintf("%s %s, %s", u.Name, u.State, u.Enabled)
		if !u.Next.IsZero() {
			line += ", next " + s.at(u.Next)
		}
		timers = append(timers, line)
	}
	s.row("Timers", timers...)
}

// problems prints each finding that is not OK, and what to do about it.
func (s *screen) problems(findings []doctor.Finding) {
	for n, f := range findings {
		if f.Level == doctor.OK {
			continue
		}
		if n == 0 {
			s.WriteString("\n")
		}
		s.finding(f)
	}
}

func (s *screen) finding(f doctor.Finding) {
	fmt.Fprintf(s, "%s %s: %s\n", s.style.paint(f.Level, fmt.Sprintf("%-7s", f.Level)), f.Check, f.Text)
	if f.Fix != "" {
		fmt.Fprintf(s, "        fix: %s\n", f.Fix)
	}
	if f.Command == "" {
		return
	}
	where := "run"
	if f.Elsewhere {
		where = "with AWS credentials"
	}
	fmt.Fprintf(s, "        %s: %s\n", where, f.Command)
}
