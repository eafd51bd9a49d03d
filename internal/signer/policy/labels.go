package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

const (
	defaultTagPrefix = "aws/"
	maxTagLabels     = 64 // an instance has at most 50 tags of its own
)

// yieldsReserved reports whether some tag key after the prefix would make a reserved
// label.
func yieldsReserved(prefix string) bool {
	return node.IsReserved(prefix) ||
		slices.ContainsFunc(node.ReservedPrefixes(), func(p string) bool { return strings.HasPrefix(p, prefix) })
}

// labelRules say which labels a node gets in addition to the fixed ones.
type labelRules struct {
	static    map[string]string
	add       []string // of node.AddedLabels
	tagPrefix string
	allow     []glob
	deny      []glob
}

// render returns the labels from tags and the static ones, which take precedence, the
// keys of listed tags that cannot become labels, and a note for each tag that a static
// label hides. Two tags never make the same label, because all get the same prefix.
func (l labelRules) render(tags map[string]string) (labels map[string]string, skipped, notes []string) {
	labels = make(map[string]string)
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		if !anyMatches(l.allow, key) || anyMatches(l.deny, key) {
			continue
		}
		label, value := l.tagPrefix+key, tags[key]
		if _, hidden := l.static[label]; hidden {
			notes = append(notes, fmt.Sprintf("tag %.100q: the rule's static label overrides it", key))
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

// isLabel reports whether a tag can become a label. It refuses reserved keys, too,
// although no valid prefix makes one.
func isLabel(tag, label, value string) bool {
	return tag != node.Wildcard && !node.IsReserved(label) && node.IsLabelKey(label) && node.IsLabelValue(value)
}

// glob is a pattern in which * matches any characters, including "/".
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
