package policy

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	defaultTagPrefix = "aws/"

	maxLabelKeyBytes   = 256 // a tag's key has at most 128 characters, a prefix comes in front
	maxLabelValueBytes = 1024
	maxTagLabels       = 64 // an instance has at most 50 tags of its own
)

// regexpLabelKey is what Teleport accepts as a label's key.
var regexpLabelKey = regexp.MustCompile(`^[a-zA-Z/.0-9_:*-]+$`)

// reservedPrefixes lists the labels that only Teleport and the signer set.
// People grant access on them, so neither tags nor a policy may choose them.
func reservedPrefixes() []string {
	return []string{"teleport.dev/", "teleport.internal/", "teleport.hidden/", "hallmark/"}
}

// wildcard is the key by which a Teleport role means any label.
const wildcard = "*"

func isReserved(key string) bool {
	return slices.ContainsFunc(reservedPrefixes(), func(p string) bool { return strings.HasPrefix(key, p) })
}

// yieldsReserved reports whether some tag key behind the prefix gives a reserved
// label.
func yieldsReserved(prefix string) bool {
	return isReserved(prefix) ||
		slices.ContainsFunc(reservedPrefixes(), func(p string) bool { return strings.HasPrefix(p, prefix) })
}

// labelRules say which labels a node gets besides the fixed ones.
type labelRules struct {
	static    map[string]string
	tagPrefix string
	allow     []glob
	deny      []glob
}

// render returns the labels of tags and the static ones, which win, the keys of the
// tags that were wanted but could not become labels, and a note for each tag that a
// static label hides. Two tags never make the same label: all get the same prefix.
func (l labelRules) render(tags map[string]string) (labels map[string]string, skipped, notes []string) {
	labels = make(map[string]string)
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		if !anyMatches(l.allow, key) || anyMatches(l.deny, key) {
			continue
		}
		label, value := l.tagPrefix+key, tags[key]
		if _, hidden := l.static[label]; hidden {
			notes = append(notes, fmt.Sprintf("tag %.100q: the rule's static label stands in its place", key))
			continue
		}
		if len(labels) >= maxTagLabels || !isLabel(key, label, value) {
			skipped = append(skipped, key)
			continue
		}
		labels[label] = value
	}
	maps.Copy(labels, l.static)
	return labels, skipped, notes
}

// isLabel reports whether a tag can be a label. Reserved keys are refused here
// too, although no valid prefix gives one.
func isLabel(tag, label, value string) bool {
	return tag != wildcard && !isReserved(label) &&
		len(label) <= maxLabelKeyBytes && regexpLabelKey.MatchString(label) && isLabelValue(value)
}

// isLabelValue keeps terminals safe from control characters, people from text that looks
// like other text, and gRPC from text that it cannot carry, which would fail the whole
// node.
func isLabelValue(value string) bool {
	return len(value) <= maxLabelValueBytes && utf8.ValidString(value) && !strings.ContainsFunc(value, isUnseen)
}

// isUnseen reports whether a character is not seen, or changes how others are: controls,
// invisible and bidirectional format characters (Cf), line and paragraph separators (Zl,
// Zp), letters that fill without a shape, variation selectors, and U+FFFD, which stands
// for what could not be read.
func isUnseen(r rune) bool {
	switch r {
	case utf8.RuneError, '\u034f', '\u115f', '\u1160', '\u17b4', '\u17b5', '\u2800', '\u3164', '\uffa0':
		return true
	}
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point)
}

// fixedLabels come from verified facts only, so that access can be granted on
// them. The first three are those of Teleport's own discovery, which therefore
// leaves the instance alone.
func fixedLabels(f Facts, c Cluster, rule string) map[string]string {
	labels := map[string]string{
		"teleport.dev/instance-id": f.InstanceID,
		"teleport.dev/account-id":  f.Account,
		"teleport.dev/aws-region":  f.Region,
		"hallmark/signer":          c.Signer,
		"hallmark/account":         f.Account,
		"hallmark/vpc":             f.VPC,
		"hallmark/image-owner":     f.ImageOwner,
		"hallmark/rule":            rule,
	}
	// A fact that is not known gives no label rather than an empty one, which a
	// role could be made to match.
	maps.DeleteFunc(labels, func(_, value string) bool { return value == "" })
	return labels
}

// glob is a pattern in which * stands for any run of characters, "/" too.
type glob string

func (g glob) matches(s string) bool {
	parts := strings.Split(string(g), "*")
	s, ok := strings.CutPrefix(s, parts[0])
	if !ok {
		return false
	}
	if len(parts) == 1 {
		return s == ""
	}
	last := len(parts) - 1
	for _, part := range parts[1:last] {
		_, after, found := strings.Cut(s, part)
		if !found {
			return false
		}
		s = after
	}
	return strings.HasSuffix(s, parts[last])
}

func anyMatches(globs []glob, s string) bool {
	return slices.ContainsFunc(globs, func(g glob) bool { return g.matches(s) })
}
