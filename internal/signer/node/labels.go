package node

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Labels that say which signer a node belongs to, and which instance it is.
const (
	SignerLabel   = "hallmark/signer"
	AccountLabel  = "teleport.dev/account-id"
	RegionLabel   = "teleport.dev/aws-region"
	InstanceLabel = "teleport.dev/instance-id"
	// RuleLabel names the rule that admitted the instance.
	RuleLabel = "hallmark/rule"
)

// Bounds of a label.
const (
	// MaxLabelKeyBytes leaves room for a tag's key, at most 128 characters, and a prefix.
	MaxLabelKeyBytes   = 256
	MaxLabelValueBytes = 1024
)

// added returns the labels that a node gets only if a policy's rule asks for them, by name.
func added(f Facts) map[string]string {
	return map[string]string{
		"account-name": f.AccountName,
		"account-path": f.AccountPath,
	}
}

// AddedLabels returns the names of the labels that a rule may ask for, sorted. The labels begin
// with "hallmark/".
func AddedLabels() []string { return slices.Sorted(maps.Keys(added(Facts{}))) }

// Labels returns the labels that come only from verified facts, so that people can grant
// access based on them. The first three are those of Teleport's own discovery, which therefore
// leaves the instance alone. names are those of further labels, from AddedLabels. To add a label,
// add a line here, or in added if a rule must ask for it.
func Labels(f Facts, c Cluster, rule string, names []string) map[string]string {
	labels := map[string]string{
		InstanceLabel:          f.InstanceID.String(),
		AccountLabel:           f.Account.String(),
		RegionLabel:            f.Region.String(),
		SignerLabel:            c.Signer,
		"hallmark/account":     f.Account.String(),
		"hallmark/vpc":         f.VPC,
		"hallmark/image-owner": f.ImageOwner.String(),
		RuleLabel:              rule,
	}
	for _, name := range names {
		labels["hallmark/"+name] = added(f)[name]
	}
	// An unknown fact gives no label. An empty label could match a role.
	maps.DeleteFunc(labels, func(_, value string) bool { return !IsLabelValue(value) || value == "" })
	return labels
}

// regexpLabelKey matches the label keys that Teleport accepts.
var regexpLabelKey = regexp.MustCompile(`^[a-zA-Z/.0-9_:*-]+$`)

// ReservedPrefixes lists the labels that only Teleport and the signer set. People grant access
// based on them, so neither tags nor a policy may choose them.
func ReservedPrefixes() []string {
	return []string{"teleport.dev/", "teleport.internal/", "teleport.hidden/", "hallmark/"}
}

// Wildcard is the key that means any label in a Teleport role.
const Wildcard = "*"

// IsReserved reports whether only Teleport and the signer set a label.
func IsReserved(key string) bool {
	return slices.ContainsFunc(ReservedPrefixes(), func(p string) bool { return strings.HasPrefix(key, p) })
}

// IsLabelKey reports whether Teleport accepts the key of a label.
func IsLabelKey(key string) bool {
	return len(key) <= MaxLabelKeyBytes && regexpLabelKey.MatchString(key)
}

// IsLabelValue protects terminals from control characters, people from text that looks like
// other text, and gRPC from text that it cannot carry, which would make it reject the whole
// node.
func IsLabelValue(value string) bool {
	return len(value) <= MaxLabelValueBytes && utf8.ValidString(value) && !strings.ContainsFunc(value, isUnseen)
}

// isUnseen reports whether a character is invisible, or changes how others appear: controls,
// invisible and bidirectional format characters (Cf), line and paragraph separators (Zl, Zp),
// letters that fill space without a shape, variation selectors, and U+FFFD, which replaces
// what could not be read.
func isUnseen(r rune) bool {
	switch r {
	case utf8.RuneError, '\u034f', '\u115f', '\u1160', '\u17b4', '\u17b5', '\u2800', '\u3164', '\uffa0':
		return true
	}
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point)
}
