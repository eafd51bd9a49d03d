package sshdconf

import "strings"

// MatchPattern implements PATTERNS of ssh_config(5): "*" for any characters, "?" for one.
func MatchPattern(pattern, s string) bool {
	for {
		switch {
		case pattern == "":
			return s == ""
		case pattern[0] == '*':
			pattern = strings.TrimLeft(pattern, "*")
			if pattern == "" {
				return true
			}
			for n := range len(s) {
				if MatchPattern(pattern, s[n:]) {
					return true
				}
			}
			return false
		case s == "" || pattern[0] != '?' && pattern[0] != s[0]:
			return false
		}
		pattern, s = pattern[1:], s[1:]
	}
}

// MatchAny reports whether one of the patterns matches s, and none excludes it with "!".
func MatchAny(patterns []string, s string) bool {
	found := false
	for _, pattern := range patterns {
		if negated, ok := strings.CutPrefix(pattern, "!"); ok {
			if MatchPattern(negated, s) {
				return false
			}
			continue
		}
		found = found || MatchPattern(pattern, s)
	}
	return found
}

// IsPattern reports whether a word may match something other than itself.
func IsPattern(s string) bool { return strings.ContainsAny(s, "*?!") }
