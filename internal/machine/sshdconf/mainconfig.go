package sshdconf

import (
	"bytes"
	"errors"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// BlockBegin and BlockEnd enclose the lines that Hallmark adds to a main configuration file
// that includes no drop-ins (OpenSSH before 8.2, on Amazon Linux 2).
const (
	BlockBegin = "# BEGIN hallmark"
	BlockEnd   = "# END hallmark"
)

var errBlock = errors.New("the lines between " + BlockBegin + " and " + BlockEnd +
	" are damaged: make them one pair, or remove them")

// IncludesFirst reports whether the main configuration includes the drop-in before it sets
// anything itself. Only then do the drop-in's values win, and only then can no Match block of
// the main configuration swallow them.
func IncludesFirst(config []byte, dropIn string) bool {
	for line := range strings.Lines(string(config)) {
		keyword, arguments := SplitDirective(line)
		switch {
		case keyword == "":
			continue
		case keyword != "include", IsAmbiguous(line):
			return false
		case Includes(arguments, dropIn):
			return true
		}
	}
	return false
}

// SplitDirective reads a line as sshd does since OpenSSH 8.7: a keyword in any case, returned in lower case,
// then white space or one "=", then arguments. All of them may be quoted.
func SplitDirective(line string) (keyword string, arguments []string) {
	keyword, rest := cutKeyword(line)
	for rest = skipBlanks(rest); rest != "" && rest[0] != '#'; rest = skipBlanks(rest) {
		var argument string
		argument, rest = cutArgument(rest)
		arguments = append(arguments, argument)
	}
	return keyword, arguments
}

// cutKeyword takes the keyword from the front, which may be quoted too. Blanks and a "=" may
// come before it.
func cutKeyword(line string) (keyword, rest string) {
	keyword, rest = cutWord(strings.TrimRight(line, " \t\r\n\f"))
	if keyword == "" {
		keyword, rest = cutWord(rest)
	}
	if strings.HasPrefix(keyword, "#") {
		return "", ""
	}
	return strings.ToLower(keyword), rest
}

// cutWord is strdelim in OpenSSH's misc.c.
func cutWord(s string) (word, rest string) {
	const blanks = " \t\r\n"
	end := strings.IndexAny(s, blanks+`"=`)
	if end < 0 {
		return s, ""
	}
	word, rest = s[:end], s[end+1:]
	if s[end] == '"' {
		quoted, after, closed := strings.Cut(rest, `"`)
		if !closed {
			return "", ""
		}
		return word + quoted, strings.TrimLeft(after, blanks)
	}
	rest = strings.TrimLeft(rest, blanks)
	if after, found := strings.CutPrefix(rest, "="); found && s[end] != '=' {
		rest = strings.TrimLeft(after, blanks)
	}
	return word, rest
}

func skipBlanks(s string) string { return strings.TrimLeft(s, " \t") }

// cutArgument takes one argument from the front, like argv_split in OpenSSH's misc.c: single
// or double quotes may enclose any part of it, and a backslash may precede a quote, a backslash
// or, outside quotes, a blank.
func cutArgument(s string) (argument, rest string) {
	var b strings.Builder
	var quote byte
	for n := 0; n < len(s); n++ {
		c := s[n]
		switch {
		case c == '\\' && n+1 < len(s) && (strings.IndexByte(`'"\`, s[n+1]) >= 0 || quote == 0 && s[n+1] == ' '):
			n++
			b.WriteByte(s[n])
		case quote == 0 && (c == ' ' || c == '\t'):
			return b.String(), s[n:]
		case quote == 0 && (c == '\'' || c == '"'):
			quote = c
		case quote != 0 && c == quote:
			quote = 0
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), ""
}

// SplitAsBefore87 returns the arguments of a line as OpenSSH before 8.7 reads them: a "#" begins a
// comment wherever it is, even in quotes, and arguments are split as keywords are. Only double
// quotes have a meaning, and a "=" may separate arguments too.
func SplitAsBefore87(line string) (arguments []string) {
	line, _, _ = strings.Cut(line, "#")
	_, rest := cutKeyword(line)
	for {
		var argument string
		if argument, rest = cutWord(rest); argument == "" {
			return arguments
		}
		arguments = append(arguments, argument)
	}
}

// IsAmbiguous reports whether OpenSSH before 8.7 splits a line in another way.
func IsAmbiguous(line string) bool {
	_, arguments := SplitDirective(line)
	return !slices.Equal(arguments, SplitAsBefore87(line))
}

// Includes reports whether one of an Include's patterns matches the file.
func Includes(patterns []string, file string) bool {
	for _, pattern := range patterns {
		if ok, err := path.Match(AbsolutePattern(pattern), file); err == nil && ok {
			return true
		}
	}
	return false
}

// AbsolutePattern returns an Include pattern as sshd_config(5) defines it: a relative pattern
// means files in /etc/ssh, wherever the configuration is.
func AbsolutePattern(pattern string) string {
	if path.IsAbs(pattern) {
		return pattern
	}
	return path.Join(path.Dir(MainConfig), pattern)
}

// WithBlock returns the configuration with body in one marked block at its top, in place of
// any earlier block. The block is at the top because the first value of a keyword wins, and
// because after a Match line it would apply to that match only.
func WithBlock(config, body []byte) ([]byte, error) {
	rest, err := WithoutBlock(config)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString(BlockBegin + "\n")
	b.Write(body)
	if len(body) > 0 && body[len(body)-1] != '\n' {
		b.WriteByte('\n')
	}
	b.WriteString(BlockEnd + "\n")
	b.Write(rest)
	return b.Bytes(), nil
}

// WithoutBlock returns the configuration without the marked block. It refuses a configuration
// with half a block or two blocks: there it cannot tell which lines belong to somebody else.
func WithoutBlock(config []byte) ([]byte, error) {
	var rest strings.Builder
	var begins, ends int
	for line := range strings.Lines(string(config)) {
		switch strings.TrimSpace(line) {
		case BlockBegin:
			begins++
		case BlockEnd:
			ends++
		default:
			if begins == ends {
				rest.WriteString(line)
			}
		}
		if ends > begins {
			return nil, errBlock
		}
	}
	if begins != ends || begins > 1 {
		return nil, errBlock
	}
	return []byte(rest.String()), nil
}

// FindMainConfig returns the main configuration file in the file system at root, as sshd there
// names it: on SUSE it is below /usr/etc, unless /etc has one.
func FindMainConfig(root string) string {
	for _, file := range []string{MainConfig, VendorConfig} {
		if _, err := os.Lstat(filepath.Join(root, file)); err == nil {
			return file
		}
	}
	return MainConfig
}
