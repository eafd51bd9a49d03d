package sshdconf

import (
	"bytes"
	"errors"
	"os"
	"path"
	"path/filepath"
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
		case keyword != "include":
			return false
		case Includes(arguments, dropIn):
			return true
		}
	}
	return false
}

// SplitDirective reads a line as sshd does: a keyword in any case, returned in lower case,
// then white space or one "=", then arguments that may be in double quotes.
func SplitDirective(line string) (keyword string, arguments []string) {
	line = strings.TrimSpace(line)
	if line == "" || strings.HasPrefix(line, "#") {
		return "", nil
	}
	end := strings.IndexAny(line, " \t=\"")
	if end < 0 {
		return strings.ToLower(line), nil
	}
	rest := strings.TrimSpace(line[end:])
	rest = strings.TrimPrefix(rest, "=")
	return strings.ToLower(line[:end]), splitArguments(rest)
}

func splitArguments(s string) (arguments []string) {
	for {
		s = strings.TrimLeft(s, " \t")
		if s == "" || s[0] == '#' {
			return arguments
		}
		var argument string
		if s[0] == '"' {
			argument, s, _ = strings.Cut(s[1:], `"`)
		} else if end := strings.IndexAny(s, " \t"); end >= 0 {
			argument, s = s[:end], s[end:]
		} else {
			argument, s = s, ""
		}
		arguments = append(arguments, argument)
	}
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
