package policy

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// Warning is something in a valid policy that is probably a mistake.
type Warning struct {
	// Line is where the rule begins.
	Line int
	// Rule is the rule's name.
	Rule string
	// Text says what is odd, and what to do.
	Text string
}

// String returns the warning with its line.
func (w Warning) String() string { return fmt.Sprintf("line %d: rule %q: %s", w.Line, w.Rule, w.Text) }

// Warnings returns what is probably a mistake, in the order of the rules: a rule that can
// never match, because one before it matches every instance that it matches, and a tag key
// that is almost another's.
func (p *Policy) Warnings() []Warning {
	var all []Warning
	for i, later := range p.rules {
		for _, earlier := range p.rules[:i] {
			if earlier.document.covers(later.document, p.limits) {
				all = append(all, Warning{later.line, later.name, fmt.Sprintf(
					"never matches: rule %q on line %d matches every instance that it matches; move it up, or remove it", earlier.name, earlier.line)})
				break
			}
		}
	}
	all = append(all, p.tagWarnings()...)
	slices.SortStableFunc(all, func(a, b Warning) int { return a.Line - b.Line })
	return all
}

// covers reports whether the rule matches every instance that the other matches. It
// decides by the lists alone; where it cannot tell, it says no.
func (d ruleDocument) covers(other ruleDocument, limits Limits) bool {
	if d.When != nil && (other.When == nil || strings.TrimSpace(*d.When) != strings.TrimSpace(*other.When)) {
		return false
	}
	a, b := d.Match, other.Match
	return coversPlace(a.Accounts, b.Accounts, limits.knownAccounts()) &&
		coversPlace(a.Regions, b.Regions, limits.knownRegions()) &&
		coversList(a.VPCs, b.VPCs) && coversList(a.Subnets, b.Subnets) && coversList(a.Images, b.Images) &&
		coversProfiles(a.InstanceProfiles, b.InstanceProfiles) &&
		coversOwners(a, b, limits) &&
		coversAge(or(a.MaxAge, anything), or(b.MaxAge, anything)) &&
		coversTags(a.ImageTags, b.ImageTags) && coversTags(a.Tags, b.Tags)
}

// knownAccounts returns all accounts that may enroll instances, nil if they are not known: those
// of an organization change without a deployment.
func (l Limits) knownAccounts() []string {
	if l.unlimited || l.Organization {
		return nil
	}
	return texts(l.Accounts)
}

// knownRegions returns all regions that may enroll instances, nil if they are not known.
func (l Limits) knownRegions() []string {
	if l.unlimited {
		return nil
	}
	return texts(l.Regions)
}

// coversPlace compares lists of accounts or regions, which are all that the deployment allows
// if they are not set.
func coversPlace(a, b, all []string) bool {
	if b == nil {
		b = all
	}
	return coversList(a, b)
}

// coversList reports whether each value of b is in a. A list that is not set has all.
func coversList(a, b []string) bool {
	return a == nil || b != nil && !slices.ContainsFunc(b, func(entry string) bool { return !slices.Contains(a, entry) })
}

func coversProfiles(a, b []string) bool {
	return a == nil || b != nil && !slices.ContainsFunc(b, func(entry string) bool {
		folder, name := splitLast(entry)
		return !slices.ContainsFunc(a, func(pattern string) bool {
			patternFolder, patternName := splitLast(pattern)
			return folder == patternFolder && glob(patternName).covers(glob(name))
		})
	})
}

// covers reports whether the pattern matches everything that the other matches. Read as a
// text, the other's stars can only fall to the pattern's own.
func (g glob) covers(other glob) bool { return g.matches(string(other)) }

// coversOwners compares the owners of images. The words self and listed stand for accounts
// that depend on the instance and the deployment.
func coversOwners(a, b matchDocument, limits Limits) bool {
	waived := []string{anything}
	if slices.Equal(a.ImageOwners, waived) {
		return true
	}
	if slices.Equal(b.ImageOwners, waived) {
		return false
	}
	known := limits.knownAccounts()
	accounts := b.Accounts // of the instances
	if accounts == nil {
		accounts = known
	}
	allIn := func(list []string) bool { return list != nil && coversList(a.ImageOwners, list) }
	return !slices.ContainsFunc(b.ImageOwners, func(owner string) bool {
		isListed := limits.unlimited || slices.Contains(limits.Accounts, ec2ref.Account(owner))
		switch {
		case slices.Contains(a.ImageOwners, owner):
			return false
		case owner == ownAccount:
			return !slices.Contains(a.ImageOwners, listedAccounts) && !allIn(accounts)
		case owner == listedAccounts:
			return !allIn(known)
		case slices.Contains(a.ImageOwners, listedAccounts) && isListed:
			return false
		}
		return !slices.Contains(a.ImageOwners, ownAccount) || !slices.Equal(accounts, []string{owner})
	})
}

func coversAge(a, b string) bool {
	if a == anything || b == anything {
		return a == anything
	}
	longer, err := ParseDuration(a)
	shorter, err2 := ParseDuration(b)
	return err == nil && err2 == nil && longer >= shorter
}

func coversTags(a, b map[string][]string) bool {
	for key, patterns := range a {
		values, ok := b[key]
		if !ok || slices.ContainsFunc(values, func(value string) bool {
			return !slices.ContainsFunc(patterns, func(p string) bool { return glob(p).covers(glob(value)) })
		}) {
			return false
		}
	}
	return true
}

// tagWarnings returns the tag keys that differ from another key of the policy, or from one
// that means something to AWS or to Hallmark, only in case, hyphens or underscores. Tag keys
// are case-sensitive: such a key most likely exists on no instance.
func (p *Policy) tagWarnings() []Warning {
	known := map[string]string{} // by what the spellings have in common
	for _, key := range []string{
		"Name", hostnameTag, "aws:autoscaling:groupName", "aws:cloudformation:stack-name", "aws:cloudformation:stack-id",
		"aws:cloudformation:logical-id", "aws:ec2launchtemplate:id", "aws:ec2launchtemplate:version", "aws:eks:cluster-name",
	} {
		known[folded(key)] = key
	}
	var all []Warning
	for _, r := range p.rules {
		for _, key := range r.document.tagKeys() {
			first, ok := known[folded(key)]
			if !ok {
				known[folded(key)] = key
				continue
			}
			if first != key {
				all = append(all, Warning{r.line, r.name, fmt.Sprintf("tag key %s: did you mean %s? Tag keys are case-sensitive", quote(key), quote(first))})
			}
		}
	}
	return all
}

func folded(key string) string {
	return strings.NewReplacer("-", "", "_", "", " ", "").Replace(strings.ToLower(key))
}

// tagOf finds tag keys in host names and conditions.
var tagOf = regexp.MustCompile(`\{tag:([^}]+)\}|\btags\.get\(\s*["']([^"'\\]+)["']\s*\)|\btags\[\s*["']([^"'\\]+)["']\s*\]|["']([^"'\\]+)["']\s+in\s+(?:image_)?tags\b`)

// tagKeys returns the keys of tags that a rule names.
func (d ruleDocument) tagKeys() []string {
	keys := slices.Concat(slices.Sorted(maps.Keys(d.Match.Tags)), slices.Sorted(maps.Keys(d.Match.ImageTags)))
	for _, found := range tagOf.FindAllStringSubmatch(or(d.Hostname, "")+"\n"+or(d.When, ""), -1) {
		keys = append(keys, strings.Join(found[1:], ""))
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// ago says how long ago something was.
func ago(age time.Duration) string {
	if days := int(age / day); days > 1 {
		return fmt.Sprintf("%d days ago", days)
	}
	return Duration(age.Truncate(time.Second)).String() + " ago"
}
