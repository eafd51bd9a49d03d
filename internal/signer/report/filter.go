package report

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// Filter says which instances to report. An empty field admits all.
type Filter struct {
	Accounts []ec2ref.Account
	Regions  []ec2ref.Region
	Rules    []string
	States   []State
	// Hostname and Version are patterns as in path.Match, such as web-* and v1.2.*.
	Hostname, Version string
	// Within admits instances whose certificates expire within that time or have expired. It
	// leaves out instances that were off-boarded. Zero admits all.
	Within time.Duration
}

// ParseState reads the name of a state.
func ParseState(text string) (State, error) {
	if !slices.Contains(States(), State(text)) {
		return "", fmt.Errorf("%.100q is not a state; write %s", text, join(States()))
	}
	return State(text), nil
}

// Check returns an error if a value of the filter can match nothing.
func (f Filter) Check() error {
	for _, s := range f.States {
		if _, err := ParseState(string(s)); err != nil {
			return err
		}
	}
	if _, err := path.Match(f.Version, ""); err != nil {
		return fmt.Errorf("version %.100q is not a pattern; write v1.2.*", f.Version)
	}
	if _, err := path.Match(f.Hostname, ""); err != nil {
		return fmt.Errorf("host name %.100q is not a pattern; write web-* or web-[0-9]", f.Hostname)
	}
	if f.Within < 0 {
		return fmt.Errorf("%s is negative", f.Within)
	}
	return nil
}

func join[T ~string](values []T) string {
	texts := make([]string, len(values))
	for n, v := range values {
		texts[n] = string(v)
	}
	return strings.Join(texts, ", ")
}

// covers reports whether the filter admits instances of this account and region.
func (f Filter) covers(at ec2ref.Place) bool {
	return admits(f.Accounts, at.Account) && admits(f.Regions, at.Region)
}

func admits[T comparable](list []T, value T) bool {
	return len(list) == 0 || slices.Contains(list, value)
}

// Apply returns the rows that the filter admits, in the same order.
func (f Filter) Apply(rows []Row, now time.Time) []Row {
	return slices.DeleteFunc(slices.Clone(rows), func(r Row) bool { return !f.admits(r, now) })
}

func (f Filter) admits(r Row, now time.Time) bool {
	if !f.covers(r.ref().Place()) || !admits(f.Rules, r.Rule) || !admits(f.States, r.State) {
		return false
	}
	if f.Within > 0 && (r.State == Ended || r.CertificateEnd.IsZero() || r.CertificateEnd.After(now.Add(f.Within))) {
		return false
	}
	return matches(f.Hostname, r.Hostname) && matches(f.Version, r.Version)
}

// matches reports whether a pattern, which Check has read, is empty or matches.
func matches(pattern, text string) bool {
	matched, err := path.Match(pattern, text)
	return pattern == "" || matched && err == nil
}
