package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// condition is one thing that a rule asks of an instance. It returns what is unmet, or
// the zero value if it holds.
type condition func(f node.Facts, now time.Time) unmet

// unmet says why a condition does not hold, for the log.
type unmet struct {
	why string
	// gap says that the condition might hold but for a fact that EC2 does not show now.
	gap bool
}

func not(why string) unmet { return unmet{why: why} }

// ownAccount, listedAccounts and anything are the words of a policy for accounts
// that it need not spell out, and for a condition that it waives.
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

// profiles holds for the instance-profile ARNs of a list. The last part of an entry
// may be a pattern; it does not reach across a "/", so that a path of profiles
// stays a border.
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

// imageOwners holds if the image is of an account of the list. A name and tags of
// an image prove nothing, since anyone may give them to an image of his own; the
// owner's account can't be forged. An owner whom nobody knows is not in any list.
func imageOwners(key string, list []string, limits Limits) condition {
	return func(f node.Facts, _ time.Time) unmet {
		owner := f.ImageOwner
		switch {
		case owner == "":
			return unmet{key + ": nobody knows the image's owner", true}
		case slices.Contains(list, owner),
			slices.Contains(list, ownAccount) && owner == f.Account,
			slices.Contains(list, listedAccounts) && (limits.unlimited || slices.Contains(limits.Accounts, ec2ref.Account(owner))):
			return unmet{}
		}
		return not(fmt.Sprintf("%s: %s is not listed", key, quote(owner)))
	}
}

// maxAge bounds the time since launch at the first enrollment: a document never
// expires, so an old machine that was never enrolled may be anybody's by now. Later
// the ledger stands in for the age.
func maxAge(key string, longest time.Duration) condition {
	return func(f node.Facts, now time.Time) unmet {
		if f.Enrolled {
			return unmet{}
		}
		switch age, known := f.Age(now); {
		case !known:
			return not(key + ": the launch time is not known or is yet to come")
		case age > longest:
			return not(fmt.Sprintf("%s: launched %s ago, more than %s, and never enrolled", key, age.Truncate(time.Second), longest))
		}
		return unmet{}
	}
}

// tagged holds if the tag is there and its value fits one of the patterns.
func tagged(key, tag string, patterns []glob, tags func(node.Facts) map[string]string) condition {
	return func(f node.Facts, _ time.Time) unmet {
		value, ok := tags(f)[tag]
		switch {
		case !ok:
			return not(fmt.Sprintf("%s: there is no tag %s", key, quote(tag)))
		case !anyMatches(patterns, value):
			// Not what it is: people put secrets into tags, and this goes into a log.
			return not(fmt.Sprintf("%s: the value of %s is not listed", key, quote(tag)))
		}
		return unmet{}
	}
}

// ofOwnImage returns the condition on image tags, behind ownImage.
func ofOwnImage(holds condition) condition {
	return func(f node.Facts, now time.Time) unmet {
		if u := ownImage(f, now); u.why != "" {
			return u
		}
		return holds(f, now)
	}
}

// ownImage holds for images of the instance's own account whose tags are known. It stands
// before every condition on image tags: AWS shows an image's tags to no other account, and
// whoever copies the image gives the copy what tags he likes.
func ownImage(f node.Facts, _ time.Time) unmet {
	switch {
	case f.ImageOwner == "":
		return unmet{"image_tags: nobody knows the image's owner", true}
	case f.ImageOwner != f.Account:
		return not("image_tags: the image is not of the instance's own account")
	case f.ImageTags == nil:
		return unmet{"image_tags: nobody knows the image's tags", true}
	}
	return unmet{}
}

// quote makes text of others fit for a log line.
func quote(s string) string {
	const longest = 100
	if len(s) > longest {
		return fmt.Sprintf("%q…", s[:longest])
	}
	return fmt.Sprintf("%q", s)
}
