package policy

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Duration is a time.Duration that a YAML file writes as text such as 90m, 24h, 7d or 1d12h.
// A day has 24 hours.
type Duration time.Duration

// UnmarshalYAML implements yaml.Unmarshaler.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	parsed, err := ParseDuration(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %s is not a duration; write 90m, 24h or 7d", n.Line, quote(n.Value))}}
	}
	*d = Duration(parsed)
	return nil
}

// ParseDuration reads what time.ParseDuration reads, and whole days before that: 7d, 1d12h.
func ParseDuration(text string) (time.Duration, error) {
	days, rest, ok := strings.Cut(text, "d")
	if !ok {
		return time.ParseDuration(text)
	}
	n, err := strconv.ParseUint(days, 10, 16) // 179 years: their nanoseconds fit
	if err != nil || strings.HasPrefix(rest, "-") || strings.HasPrefix(rest, "+") {
		return 0, fmt.Errorf("%s does not begin with whole days", quote(text))
	}
	var more time.Duration
	if rest != "" {
		if more, err = time.ParseDuration(rest); err != nil {
			return 0, err
		}
	}
	d := time.Duration(n)*24*time.Hour + more
	if d < more { // it overflowed
		return 0, fmt.Errorf("%s is too long", quote(text))
	}
	return d, nil
}
