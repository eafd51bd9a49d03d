package sshd

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const testMain = "/etc/ssh/sshd_config"

// The outputs are those of sshd -T, of OpenSSH 7.4 to 10.
var complaints = []struct {
	name, output string
	want         []string
}{
	{"nothing", "", nil},
	{"unknown keyword",
		"/etc/ssh/sshd_config: line 3: Bad configuration option: NoSuch\r\n/etc/ssh/sshd_config: terminating, 1 bad configuration options\r\n",
		[]string{"/etc/ssh/sshd_config:3"}},
	{"in a drop-in",
		"/etc/ssh/sshd_config.d/99-x.conf: line 1: Bad configuration option: NoSuch\r\n/etc/ssh/sshd_config.d/99-x.conf: terminating, 1 bad configuration options\r\n",
		[]string{"/etc/ssh/sshd_config.d/99-x.conf:1"}},
	{"several, the last first",
		"/a: line 3: Bad configuration option: x\n/a: line 7: Bad configuration option: y\n/a: terminating, 2 bad configuration options\n",
		[]string{"/a:7", "/a:3"}},
	{"the same line twice",
		"/a line 3: keyword Port extra arguments at end of line\n/a: line 3: Bad configuration option: x\n/a: terminating, 2 bad configuration options\n",
		[]string{"/a:3"}},
	{"wrong value", "/etc/ssh/sshd_config line 12: Bad yes/no argument: maybe\r\n", []string{"/etc/ssh/sshd_config:12"}},
	{"wrong choice", "/a line 4: unsupported option \"maybe\".\r\n", []string{"/a:4"}},
	{"no value, 7.4", "/a line 5: missing integer value.\r\n", []string{"/a:5"}},
	{"no value, 9", "/a line 5: no argument after keyword \"Port\"\r\n/a: terminating, 1 bad configuration options\r\n", []string{"/a:5"}},
	{"too many values, 7.4", "/a line 6: garbage at end of line; \"x\".\r\n", []string{"/a:6"}},
	{"in a Match block", "/a line 9: Directive 'Port' is not allowed within a Match block\r\n", []string{"/a:9"}},
	{"Match", "Unsupported Match attribute Foo\r\n/a line 8: Bad Match condition\r\n", []string{"/a:8"}},
	{"while it applies Match blocks", "reprocess config line 11: Bad Match condition\r\n", []string{testMain + ":11"}},
	{"deprecated keywords before the error",
		"/a line 1: Deprecated option UsePrivilegeSeparation\r\n/a line 2: Unsupported option GSSAPIAuthentication\r\n/b line 7: Bad number '-1'\r\n/a line 9: Deprecated option RSAAuthentication\r\n",
		[]string{"/b:7"}},
	{"only deprecated keywords", "/a line 1: Deprecated option UsePrivilegeSeparation\r\nno hostkeys available -- exiting.\r\n", nil},
	{"command line", "command-line line 0: Bad configuration option: x\r\ncommand-line: terminating, 1 bad configuration options\r\n", nil},
	{"line 0", "/a line 0: Bad yes/no argument: x\r\n", nil},
	{"a relative path", "sshd_config line 3: Bad yes/no argument: x\r\n", nil},
	{"no line", "Bad SSH2 cipher spec 'x'.\r\n", nil},
	{"spaces, colons and quotes in the name", "/etc/ssh/my: 'x'.conf: line 2: Bad configuration option: y\r\n", []string{"/etc/ssh/my: 'x'.conf:2"}},
	{"a line that quotes another", "/a: line 2: Bad configuration option: /b line 3: x\r\n", []string{"/a:2"}},
	{"a number that is too long", "/a line 12345678901234567890: x\r\n", nil},
}

func placesOf(lines []Line) (places []string) {
	for _, l := range lines {
		places = append(places, l.String())
	}
	return places
}

func TestRefusedLines(t *testing.T) {
	for _, test := range complaints {
		t.Run(test.name, func(t *testing.T) {
			if got := placesOf(refusedLines(test.output, testMain)); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestRefusedLinesAreBounded(t *testing.T) {
	line := "/a line 12: Bad configuration option: x\n"
	if got := refusedLines(line+strings.Repeat("x\n", maxComplaints), testMain); len(got) != 0 {
		t.Errorf("got %v from the far past", got)
	}
	var many strings.Builder
	for n := range 100 {
		many.WriteString(strings.Replace(line, "12", strings.Repeat("1", n%9+1), 1))
	}
	if got := refusedLines(many.String(), testMain); len(got) != maxRefused {
		t.Errorf("got %d lines, want %d", len(got), maxRefused)
	}
}

func FuzzRefusedLines(f *testing.F) {
	for _, test := range complaints {
		f.Add(test.output)
	}
	f.Fuzz(func(t *testing.T, output string) {
		lines := refusedLines(output, testMain)
		if len(lines) > maxRefused {
			t.Errorf("%d lines", len(lines))
		}
		for _, l := range lines {
			if !filepath.IsAbs(l.File) || strings.Contains(l.File, "\n") || l.Number < 1 {
				t.Errorf("line %+v of %q", l, output)
			}
		}
	})
}

// Only a file of the configuration is named, and everything that a caller asks about the error
// stays the same.
func TestRefused(t *testing.T) {
	main := filepath.Join(t.TempDir(), "sshd_config")
	if err := os.WriteFile(main, []byte("Port 22\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &Server{Config: main}
	reason := errors.New("run sshd -T: failed")
	f := &failure{error: reason, stderr: main + " line 1: Bad yes/no argument: x\n/etc/shadow line 2: x\n"}
	err := s.refused(f)
	refusal, ok := errors.AsType[*ConfigError](err)
	if !ok || !slices.Equal(placesOf(refusal.Lines), []string{main + ":1"}) {
		t.Errorf("error %#v", err)
	}
	if err.Error() != reason.Error() || !errors.Is(err, reason) {
		t.Errorf("error %v, want %v", err, reason)
	}
	f.stderr = "/etc/shadow line 2: x\n"
	err = s.refused(f)
	if refusal, ok := errors.AsType[*ConfigError](err); ok || !errors.Is(err, reason) {
		t.Errorf("error %#v, %v", err, refusal)
	}
}
