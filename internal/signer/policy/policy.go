// Package policy decides how an instance appears in Teleport: which rule admits it, its
// host name, address and labels, and how long its certificates last.
//
// A policy is the operator's file. People who may not change the deployment may change
// it. So it can only narrow what the deployment allows: it never adds an account, and
// never lengthens a certificate. Everything here is pure: the same file, facts and
// cluster always give the same decision.
package policy

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// ErrRefused says that the policy does not admit the instance. The wrapping error gives
// the reason, for the log.
var ErrRefused = errors.New("the policy refuses the instance")

// ErrIncomplete says that the policy cannot decide on the instance, because EC2 does not
// currently show a fact: an address while an Elastic IP moves, or a deregistered image.
// As with ErrRefused, nothing is granted, but the instance keeps what it has. The
// wrapping error names the fact.
var ErrIncomplete = errors.New("EC2 does not show a fact that the policy needs")

const (
	// DefaultLifetime is how long certificates last if a rule does not say.
	DefaultLifetime = 7 * 24 * time.Hour
	// LongestLifetime bounds every certificate: none can be revoked.
	LongestLifetime = 30 * 24 * time.Hour
	// ShortestLifetime leaves a machine time to renew.
	ShortestLifetime = time.Hour
)

// Limits are the deployment's limits, which a policy can only narrow.
type Limits struct {
	// Accounts are the listed AWS accounts whose instances may enroll.
	Accounts []ec2ref.Account
	// Organization says that accounts of an AWS organization may enroll, too. Which ones
	// changes without a deployment: the facts say whether an account is one.
	Organization bool
	// Regions are the AWS regions whose instances may enroll.
	Regions []ec2ref.Region
	// MaxLifetime bounds the certificates.
	MaxLifetime time.Duration

	// unlimited allows any account and region.
	unlimited bool
}

// Unlimited returns limits that allow every account and region, and the longest lifetime.
// Use them only to check a policy without its deployment: a signer with them would admit
// any account that the policy doesn't exclude. With them, the image owner "listed" means
// any known account.
func Unlimited() Limits {
	return Limits{MaxLifetime: LongestLifetime, unlimited: true}
}

// Decision is what the policy grants.
type Decision struct {
	// Rule is the name of the rule that decided.
	Rule string
	// Hostname is a lower-case DNS label that ends in the instance's id, or, where the
	// rule allows that, a name from the tag TeleportHostname, which may have dots.
	Hostname string
	// Fallback is the host name to use if another instance holds Hostname. It ends in the
	// instance's id, and is empty if Hostname already does.
	Fallback string
	// Names are other principals, such as addresses, that belong to the instance.
	Names []string
	// Address is the host:port that the proxy dials.
	Address string
	// Labels are all of the node's labels.
	Labels map[string]string
	// SkippedTags are the keys of tags that cannot become labels, sorted.
	SkippedTags []string
	// Notes say what this instance's tags or addresses prevented. They are for the log.
	Notes []string
	// Lifetime is how long the certificates last.
	Lifetime time.Duration
	// RemoveWhenStopped says that the node is deleted when the instance is stopped,
	// rather than when its lease expires.
	RemoveWhenStopped bool
}

// Policy is a valid policy file.
type Policy struct {
	// SHA256 is the hash of the file's exact bytes, in hexadecimal.
	SHA256 string
	// Size is the file's size in bytes.
	Size int

	limits Limits
	rules  []rule
}

// rule is one entry of the file, checked and with its defaults filled in.
type rule struct {
	name       string
	line       int
	document   ruleDocument // for the warnings
	match      []condition
	when       *expression // or nil
	hostname   template
	tagName    *tagName // or nil: the tag TeleportHostname doesn't count
	address    addressKind
	port       int
	principals []principalKind
	labels     labelRules
	lifetime   time.Duration

	removeWhenStopped bool
}

// Outcome is the result of a rule.
type Outcome string

// The outcomes of a rule.
const (
	Matched    Outcome = "matches"
	Unmatched  Outcome = "does not match"
	Failed     Outcome = "failed"          // its condition could not be evaluated
	NotReached Outcome = "was not reached" // a rule before it decided
)

// Verdict is the result of one rule for an instance.
type Verdict struct {
	Rule    string
	Line    int // on which the rule starts
	Outcome Outcome
	// Why names the first condition that did not hold, or the failure. It is empty for
	// the other outcomes.
	Why string
}

// Explanation is a decision with the result of each rule.
type Explanation struct {
	// Rules are the policy's rules, in order.
	Rules []Verdict
	// Decision is the decision if Err is nil.
	Decision Decision
	// Err is the refusal. It wraps ErrRefused or ErrIncomplete.
	Err error
}

// Decide applies the first rule that matches the instance. Its errors wrap ErrRefused or
// ErrIncomplete, and say why each rule does not match. Their length is bounded.
func (p *Policy) Decide(f node.Facts, c node.Cluster, now time.Time) (Decision, error) {
	e := p.Explain(f, c, now)
	return e.Decision, e.Err
}

// RemovesStopped returns the RemoveWhenStopped that Decide would return for the instance.
// Unlike Decide, it works for an instance that lost its public address when it stopped.
// It returns false for an instance that the policy refuses or cannot decide on.
func (p *Policy) RemovesStopped(f node.Facts, now time.Time) bool {
	for _, r := range p.rules {
		if outcome, unmet := r.judge(f, now); outcome != Unmatched || unmet.gap {
			return outcome == Matched && r.removeWhenStopped
		}
	}
	return false
}

// Explain decides as Decide does, and adds the result of each rule.
func (p *Policy) Explain(f node.Facts, c node.Cluster, now time.Time) Explanation {
	e := Explanation{Rules: make([]Verdict, len(p.rules))}
	decided, refusal := false, ErrRefused
	for i, r := range p.rules {
		v := Verdict{Rule: r.name, Line: r.line, Outcome: NotReached}
		if !decided {
			var reason unmet
			v.Outcome, reason = r.judge(f, now)
			v.Why = reason.why
			decided = v.Outcome != Unmatched
			if reason.gap {
				refusal = ErrIncomplete
			}
		}
		e.Rules[i] = v
		if v.Outcome == Matched {
			e.Decision, e.Err = r.decide(f, c)
		}
		// A condition that can't be evaluated ends the search. If it were skipped, a tag
		// that breaks it would select a laxer rule further down.
		if v.Outcome == Failed {
			e.Err = fmt.Errorf("%w: rule %q: %s", refusal, r.name, v.Why)
		}
	}
	if !decided {
		e.Err = fmt.Errorf("%w: no rule matches: %s", refusal, summary(e.Rules))
	}
	return e
}

// judge checks the rule's conditions in order, and returns the first that does not hold.
// It checks all of them for whether that may change by itself (a gap): a condition that
// cannot hold outweighs one about a fact that EC2 does not show now.
func (r rule) judge(f node.Facts, now time.Time) (Outcome, unmet) {
	var first unmet
	for _, holds := range r.match {
		switch u := holds(f, now); {
		case u.why == "":
		case first.why == "":
			first = u
		default:
			first.gap = first.gap && u.gap
		}
		if first.why != "" && !first.gap {
			return Unmatched, first
		}
	}
	if r.when == nil {
		return outcomeOf(first), first
	}
	ok, err := r.when.holds(f, now)
	switch {
	case ok && err == nil:
		return outcomeOf(first), first
	case first.why != "": // the rule does not match, whatever the condition says
		first.gap = r.when.lacks(f) || err != nil
		return Unmatched, first
	case err != nil:
		return Failed, unmet{fmt.Sprintf("when: %.300s", err), errors.Is(err, errUnknown) || r.when.lacks(f)}
	case r.when.lacks(f):
		return Unmatched, unmet{"when: it is false, and depends on a fact that EC2 does not show now", true}
	}
	return Unmatched, not("when: it is false")
}

func outcomeOf(u unmet) Outcome {
	if u.why != "" {
		return Unmatched
	}
	return Matched
}

// maxSummaryBytes bounds what a refusal says about the rules: it goes into a log line.
const maxSummaryBytes = 2048

func summary(rules []Verdict) string {
	var b strings.Builder
	for i, v := range rules {
		text := fmt.Sprintf("%q: %s", v.Rule, v.Why)
		if b.Len()+len(text) > maxSummaryBytes {
			fmt.Fprintf(&b, "; and %d more rules", len(rules)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(text)
	}
	return b.String()
}

func (r rule) decide(f node.Facts, c node.Cluster) (Decision, error) {
	hostname, notes, err := r.hostnameOf(f, c)
	if err != nil {
		return Decision{}, fmt.Errorf("%w: rule %q: %w", ErrRefused, r.name, err)
	}
	address, err := r.address.of(f, r.port)
	if err != nil {
		return Decision{}, fmt.Errorf("%w: rule %q: %w", ErrIncomplete, r.name, err)
	}
	d := Decision{
		Rule:     r.name,
		Hostname: hostname,
		Fallback: node.Fallback(hostname, f, c),
		Address:  address,
		Lifetime: r.lifetime,

		RemoveWhenStopped: r.removeWhenStopped,
	}
	var more []string
	d.Names, more = names(r.principals, f, c)
	notes = append(notes, more...)
	d.Labels, d.SkippedTags, more = r.labels.render(f.Tags)
	d.Notes = append(notes, more...)
	maps.Copy(d.Labels, node.Labels(f, c, r.name, r.labels.add))
	return d, nil
}

// hostnameOf returns the name from the tag TeleportHostname if the rule allows the tag
// and its value is valid, and the template's name otherwise: a bad tag must not keep a
// machine out.
func (r rule) hostnameOf(f node.Facts, c node.Cluster) (name string, notes []string, err error) {
	if r.tagName != nil {
		name, err := r.tagName.of(f, c)
		if err == nil && name != "" {
			return name, nil, nil
		}
		if err != nil {
			notes = []string{fmt.Sprintf("tag %s: %s", hostnameTag, err)}
		}
	}
	name, err = r.hostname.hostname(f, c)
	return name, notes, err
}
