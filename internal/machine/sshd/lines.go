package sshd

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/machine/rooted"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
)

// Line is one directive in sshd's configuration.
type Line struct {
	File      string // as sshd names it
	Number    int    // from 1
	Keyword   string // in lower case
	Arguments []string
	// Earlier are the arguments as OpenSSH before 8.7 reads them, or nil if it reads the same.
	Earlier []string
	// Match is the condition of the Match block around the line, or empty outside a block.
	Match []string
	// Own says that hallmark install wrote the line: it is in the drop-in, or in the block
	// that replaces the drop-in in the main file.
	Own bool
}

// Readings returns the arguments in each way in which sshd may read them. Which version reads an
// image's configuration is not known without running it, so what depends on it covers both.
func (l Line) Readings() [][]string {
	if len(l.Earlier) == 0 {
		return [][]string{l.Arguments}
	}
	return [][]string{l.Arguments, l.Earlier}
}

// Sets reports whether the line gives its keyword exactly this value, in any of its readings.
func (l Line) Sets(value string) bool {
	return slices.ContainsFunc(l.Readings(), func(arguments []string) bool { return strings.Join(arguments, " ") == value })
}

// String returns "file:line", and the Match block if there is one.
func (l Line) String() string {
	place := fmt.Sprintf("%s:%d", l.File, l.Number)
	if len(l.Match) > 0 {
		place += " (Match " + strings.Join(l.Match, " ") + ")"
	}
	return place
}

const (
	// maxIncludes is how many levels of Include sshd follows (SERVCONF_MAX_DEPTH).
	maxIncludes = 16
	// maxLines bounds how much of a configuration is read. A real one has some hundred lines.
	maxLines = 10_000
)

// Lines returns the directives of the server's configuration, including those of included
// files, in the order in which sshd reads them. It skips files that it cannot read: only sshd
// can say whether it accepts its configuration.
func (s *Server) Lines() []Line { return s.read().lines }

func (s *Server) read() *lineReader {
	r := &lineReader{root: filepath.Join("/", s.Root)}
	r.read(s.mainConfig(), nil, 0)
	// "-o Include=FILE" includes a file that this reader does not see.
	for _, option := range s.running {
		r.mayMatch = r.mayMatch || mentions(option, "match") || mentions(option, "include")
	}
	return r
}

// mainConfig returns the path of the file that sshd reads first, as sshd names it. On SUSE
// that file is below /usr/etc, unless /etc has one.
func (s *Server) mainConfig() string {
	if n := slices.Index(s.running, "-f"); n >= 0 && n+1 < len(s.running) {
		return s.running[n+1]
	}
	return cmp.Or(s.Config, sshdconf.FindMainConfig(filepath.Join("/", s.Root)))
}

type lineReader struct {
	root  string
	lines []Line
	// mayMatch is false only if sshd certainly finds no Match block. Anything that this reader
	// and sshd might read differently counts as a Match block.
	mayMatch bool
	// tooDeep says that sshd would stop: files include each other. Hundreds of thousands of them
	// could be left to read.
	tooDeep bool
	// files are those that it read or could not read, and folders those that an Include looks
	// into, all as sshd names them.
	files, folders []string
}

// read appends the lines of a file. If match is not nil, the file begins inside a Match block.
func (r *lineReader) read(file string, match []string, depth int) {
	if r.tooDeep {
		return
	}
	r.files = append(r.files, file)
	path, err := rooted.Resolve(r.root, file)
	r.tooDeep = depth > maxIncludes
	if err != nil || r.tooDeep {
		r.mayMatch = true
		return
	}
	data, err := os.ReadFile(filepath.Join(r.root, path))
	if err != nil {
		r.mayMatch = true
		return
	}
	number, own := 0, filepath.Base(file) == filepath.Base(sshdconf.DropIn)
	for text := range strings.Lines(string(data)) {
		number++
		switch strings.TrimSpace(text) {
		case sshdconf.BlockBegin:
			own = true
		case sshdconf.BlockEnd:
			own = false
		}
		keyword, arguments := sshdconf.SplitDirective(text)
		r.mayMatch = r.mayMatch || mentions(text, "match") ||
			mentions(text, "include") && (keyword != "include" || sshdconf.IsAmbiguous(text)) || len(r.lines) >= maxLines
		if keyword == "" || len(r.lines) >= maxLines {
			continue
		}
		line := Line{File: file, Number: number, Keyword: keyword, Arguments: arguments, Own: own}
		if sshdconf.IsAmbiguous(text) {
			line.Earlier = sshdconf.SplitAsBefore87(text)
		}
		switch keyword {
		case "match":
			match = arguments
		case "include":
			// A Match block in an included file ends with that file.
			for _, included := range r.glob(union(line.Readings())) {
				r.read(included, match, depth+1)
			}
		}
		line.Match = match
		r.lines = append(r.lines, line)
	}
}

// union returns each argument once.
func union(readings [][]string) (all []string) {
	for _, argument := range slices.Concat(readings...) {
		if !slices.Contains(all, argument) {
			all = append(all, argument)
		}
	}
	return all
}

// mentions reports whether a line that is not a comment contains a word, however quoted: sshd
// accepts keywords with and without quotes, and "=" for a space.
func mentions(line, word string) bool {
	line = strings.ToLower(strings.TrimSpace(line))
	return !strings.HasPrefix(line, "#") && strings.Contains(line, word)
}

// glob returns the files that an Include matches, as sshd names them, in its order: sshd does
// not resolve links to folders.
func (r *lineReader) glob(patterns []string) (files []string) {
	for _, pattern := range patterns {
		// glob(7) writes [!a] for Go's [^a], and ~ for a home directory.
		r.mayMatch = r.mayMatch || strings.ContainsAny(pattern, `[]{}~\`)
		folder, name := filepath.Split(sshdconf.AbsolutePattern(pattern))
		r.folders = append(r.folders, filepath.Clean(folder))
		where, named := folder, func(file string) string { return strings.TrimPrefix(file, r.root) }
		if resolved, err := rooted.Resolve(r.root, folder); err == nil && !sshdconf.IsPattern(folder) {
			where, named = resolved, func(file string) string { return filepath.Join(folder, filepath.Base(file)) }
		}
		found, _ := filepath.Glob(filepath.Join(r.root, where, name))
		slices.Sort(found)
		for _, file := range found {
			// In glob(7), a wildcard does not match a dot at the beginning.
			if base := filepath.Base(file); base[0] != '.' || strings.HasPrefix(name, ".") {
				files = append(files, filepath.Join("/", named(file)))
			}
		}
	}
	return files
}
