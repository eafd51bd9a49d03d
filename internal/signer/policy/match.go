package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// condition is one condition of a rule. It returns why an instance does not meet it, or
// the zero value.
type condition func(f node.Facts, now time.Time) unmet

// unmet says why a condition does not hold, for the log.
type unmet struct {
	why string
	// gap says that the condition depends on a fact that EC2 does not show now.
	gap bool
}

func not(why string) unmet { return unmet{why: why} }

// These are a policy's keywords for the instance's own account, for the listed accounts,
// and for waiving a condition.
const (
	ownAccount     = "self"
	listedAccounts = "listed"
	anything       = "any"
)

// oneOf holds if the fact is in the list.
func oneOf(key string, list []string, fact func(node.Facts) string) condition {
	return func(f node.Facts, _ time.Time) unmet {
		if value := fact(f); !slices.Contains(list, value) {
			return not(fmt.Sprintf("%s: %s is not listed", key, quote(value)))
		}
		return unmet{}
	}
}

// exception reports whether an instance need not meet a condition.
type exception func(node.Facts) bool

func (e exception) or(holds condition) condition {
	if e == nil {
		return holds
	}
	return func(f node.Facts, now time.Time) unmet {
		if e(f) {
			return unmet{}
		}
		return holds(f, now)
	}
}

// members returns the exception for accounts of the deployment's organization. Only its
// members have a known path: the signer fills that in.
func (l Limits) members() exception {
	if !l.Organization {
		return nil
	}
	return func(f node.Facts) bool { return f.AccountPath != "" }
}

// profiles holds for the instance-profile ARNs in a list. The last part of an entry may
// be a pattern. It does not match "/", so it stays within one path of profiles.
func profiles(key string, list []string) condition {
	return func(f node.Facts, _ time.Time) unmet {
		folder, name := splitLast(f.InstanceProfile)
		matches := func(pattern string) bool {
			patternFolder, patternName := splitLast(pattern)
			return folder == patternFolder && glob(patternName).matches(name)
		}
		if f.InstanceProfile == "" {
			return not(key + ": the instance has none")
		}
		if !slices.ContainsFunc(list, matches) {
			return not(fmt.Sprintf("%s: %s is not listed", key, quote(f.InstanceProfile)))
		}
		return unmet{}
	}
}

func splitLast(arn string) (folder, name string) {
	i := strings.LastIndex(arn, "/") + 1
	return arn[:i], arn[i:]
}

// imageOwners holds if an account in the list owns the image. An image's name and tags
// prove nothing, because anyone can give them to their own image; the owner's account
// can't be forged. An unknown owner is not in any list.
func imageOwners(key string, list []string, limits Limits) condition {
	return func(f node.Facts, _ time.Time) unmet {
		owner := f.ImageOwner
		switch {
		case owner == "":
			return unmet{key + ": the image's owner is unknown", true}
		case slices.Contains(list, owner.String()),
			slices.Contains(list, ownAccount) && owner == f.Account,
			slices.Contains(list, listedAccounts) && limits.admits(f):
			return unmet{}
		}
		return not(fmt.Sprintf("%s: %s is not listed", key, quote(owner.String())))
	}
}

// admits reports whether the image's owner is an account that may enroll instances.
func (l Limits) admits(f node.Facts) bool {
	return l.unlimited || slices.Contains(l.Accounts, f.ImageOwner) || l.Organization && f.ImageOwnerMember
}

// maxAge bounds the time since launch at the first enrollment: a document never expires,
// so an old machine that never enrolled may have been taken over. After that, the ledger
// replaces this check.
func maxAge(key string, longest time.Duration) condition {
	return func(f node.Facts, now time.Time) unmet {
		if f.Enrolled {
			return unmet{}
		}
		switch age, known := f.Age(now); {
		case !known:
			return not(key + ": the launch time is unknown or in the future")
		case age > longest:
			return not(fmt.Sprintf("%s: launched %s, more than %s, and never enrolled", key, ago(age), Duration(longest)))
		}
		return unmet{}
	}
}

// tagged holds if the tag exists and its value matches one of the patterns.
func tagged(key, tag string, patterns []glob, tags func(node.Facts) map[string]string) condition {
	return func(f node.Facts, _ time.Time) unmet {
		value, ok := tags(f)[tag]
		switch {
		case !ok:
			return not(fmt.Sprintf("%s: there is no tag %s", key, quote(tag)))
		case !anyMatches(patterns, value):
			// Leave out the value: people put secrets into tags, and this goes into a
			// log.
			return not(fmt.Sprintf("%s: the value of %s is not listed", key, quote(tag)))
		}
		return unmet{}
	}
}

// ofOwnImage returns the condition on image tags, after ownImage.
func ofOwnImage(holds condition) condition {
	return func(f node.Facts, now time.Time) unmet {
		if u := ownImage(f, now); u.why != "" {
			return u
		}
		return holds(f, now)
	}
}

// ownImage holds for images of the instance's own account whose tags are known. It
// precedes every condition on image tags: AWS shows an image's tags to no other account,
// and someone who copies the image can give the copy any tags.
func ownImage(f node.Facts, _ time.Time) unmet {
	switch {
	case f.ImageOwner == "":
		return unmet{"image_tags: the image's owner is unknown", true}
	case f.ImageOwner != f.Account:
		return not("image_tags: the image does not belong to the instance's own account")
	case f.ImageTags == nil:
		return unmet{"image_tags: the image's tags are unknown", true}
	}
	return unmet{}
}

// quote makes untrusted text safe for a log line.
func quote(s string) string {
	const longest = 100
	if len(s) > longest {
		return fmt.Sprintf("%q…", s[:longest])
	}
	return fmt.Sprintf("%q", s)
}
