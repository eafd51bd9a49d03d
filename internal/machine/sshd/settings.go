package sshd

import "strings"

// Settings are what "sshd -T" prints for one login: the values of each keyword, which is in
// lower case.
type Settings map[string][]string

// ParseSettings reads what "sshd -T" prints.
func ParseSettings(output []byte) Settings {
	s := Settings{}
	for line := range strings.Lines(string(output)) {
		keyword, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		s[keyword] = append(s[keyword], value)
	}
	return s
}

// Values returns what "sshd -T" prints for a keyword, given in lower case.
func Values(output []byte, keyword string) []string { return ParseSettings(output)[keyword] }

// Value returns the single value of a keyword, or "" if sshd does not print it: not every
// version has all keywords.
func (s Settings) Value(keywords ...string) string {
	for _, keyword := range keywords {
		if values := s[keyword]; len(values) > 0 {
			return values[0]
		}
	}
	return ""
}

// List returns the elements of a comma-separated value, or none if sshd does not print it.
func (s Settings) List(keyword string) []string {
	value := s.Value(keyword)
	if value == "" {
		return nil
	}
	return strings.Split(value, ",")
}

// Optional returns the value of a keyword, and "" if the value is none.
func (s Settings) Optional(keyword string) string { return noneIsEmpty(s.Value(keyword)) }
