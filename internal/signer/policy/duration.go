package policy

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration that a YAML file writes as text such as 90m, 24h, 7d or 1d12h.
// A day has 24 hours.
type Duration time.Duration

const day = 24 * time.Hour

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%s is not a duration; write %s", quote(string(text)), exampleOf(string(text)))
	}
	*d = Duration(parsed)
	return nil
}

// String returns the duration as a file would write it: 7d rather than 168h0m0s.
func (d Duration) String() string {
	days, rest := time.Duration(d)/day, time.Duration(d)%day
	text := rest.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	switch {
	case days <= 0:
		return text
	case rest == 0:
		return fmt.Sprintf("%dd", days)
	}
	return fmt.Sprintf("%dd%s", days, text)
}

// exampleOf returns a duration that was probably meant.
func exampleOf(text string) string {
	if hours, err := strconv.ParseUint(text, 10, 16); err == nil && hours > 0 {
		return text + "h"
	}
	return "90m, 24h or 7d"
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
	d := time.Duration(n)*day + more
	if d < more { // it overflowed
		return 0, fmt.Errorf("%s is too long", quote(text))
	}
	return d, nil
}
