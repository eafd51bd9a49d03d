package sshd

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ConfigError says that sshd does not accept its configuration, and names the lines to correct.
type ConfigError struct {
	// Lines have a file and a number only. The first is the one that sshd named last: there it
	// stopped, and the message ends with it.
	Lines []Line
	Err   error
}

func (e *ConfigError) Error() string { return e.Err.Error() }
func (e *ConfigError) Unwrap() error { return e.Err }

// refused adds to a failure of sshd the lines of its configuration that sshd complained about.
// It leaves out files that are not part of the configuration: sshd shortens long names.
func (s *Server) refused(f *failure) error {
	files := s.read().files
	lines := slices.DeleteFunc(refusedLines(f.stderr, s.mainConfig()), func(l Line) bool { return !slices.Contains(files, l.File) })
	if len(lines) == 0 {
		return f
	}
	return &ConfigError{Lines: lines, Err: f}
}

const (
	// maxRefused is how many lines are enough to correct at once.
	maxRefused = 8
	// maxComplaints bounds how much of sshd's output is searched, from its end.
	maxComplaints = 64 << 10
	// reprocessed is what sshd calls its main configuration while it applies Match blocks.
	reprocessed = "reprocess config"
)

// complaint matches what sshd prints about a line of its configuration (servconf.c of OpenSSH
// 7.4 to 10): a colon comes before "line" only if sshd does not know the keyword.
var complaint = regexp.MustCompile(`^(` + reprocessed + `|/.*?):? line ([1-9][0-9]{0,8}): (.*)$`)

// refusedLines finds in sshd's output the lines because of which it does not accept its
// configuration, the last one first. main is the path of the main configuration.
func refusedLines(output, main string) (lines []Line) {
	output = output[max(0, len(output)-maxComplaints):]
	for _, text := range slices.Backward(strings.Split(output, "\n")) {
		match := complaint.FindStringSubmatch(strings.TrimSpace(text))
		if match == nil || isWarning(match[3]) {
			continue
		}
		number, err := strconv.Atoi(match[2])
		if err != nil {
			continue
		}
		l := Line{File: match[1], Number: number}
		if l.File == reprocessed {
			l.File = main
		}
		if !slices.ContainsFunc(lines, func(known Line) bool { return known.File == l.File && known.Number == l.Number }) {
			lines = append(lines, l)
		}
		if len(lines) == maxRefused {
			break
		}
	}
	return lines
}

// isWarning reports whether sshd ignores the line and continues. An "unsupported option" in
// lower case is a wrong value.
func isWarning(text string) bool {
	return strings.HasPrefix(text, "Deprecated option ") || strings.HasPrefix(text, "Unsupported option ")
}
