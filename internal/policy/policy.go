// Package policy decides how an instance appears in Teleport: which rule admits
// it, its host name, address and labels, and how long its certificates last.
//
// A policy is the operator's file, and it may be changed by people who may not
// change the deployment. So it only narrows what the deployment allows: it never
// adds an account, and never lengthens a certificate. Everything here is pure:
// the same file, facts and cluster always give the same decision.
package policy

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrRefused says that the policy does not admit the instance. The error that
// wraps it says why; it is for the log.
var ErrRefused = errors.New("the policy refuses the instance")

const (
	// DefaultLifetime is how long certificates last where a rule says nothing.
	DefaultLifetime = 7 * 24 * time.Hour
	// LongestLifetime bounds every certificate: none can be revoked.
	LongestLifetime = 30 * 24 * time.Hour
	// ShortestLifetime leaves a machine time to renew.
	ShortestLifetime = time.Hour
)

// Limits are what the deployment allows, which a policy can only narrow.
type Limits struct {
	// Accounts are the AWS accounts whose instances may enroll.
	Accounts []string
	// Regions are the AWS regions whose instances may enroll.
	Regions []string
	// MaxLifetime bounds the certificates.
	MaxLifetime time.Duration
}

// Facts are what is known of an instance, all of it from the signed document or
// from EC2, and none of it said by the caller alone. Tags are the exception in
// spirit: whoever may call ec2:CreateTags chooses them.
type Facts struct {
	Account    string
	Region     string
	InstanceID string
	VPC        string
	ImageOwner string // empty if the image is gone

	PrivateIP string
	PublicIP  string
	IPv6      string

	Tags map[string]string
}

// Cluster names what no node may be called.
type Cluster struct {
	// Name is the cluster's name.
	Name string
	// Proxy is the public host name of its proxy, without a port.
	Proxy string
	// Signer is the signer's audience, the value of the label hallmark/signer.
	Signer string
}

// Decision is what the policy grants.
type Decision struct {
	// Rule is the name of the rule that decided.
	Rule string
	// Hostname is one lower-case DNS label that ends in the instance's id.
	Hostname string
	// Address is where the proxy dials: host:port.
	Address string
	// Labels are all of the node's labels.
	Labels map[string]string
	// SkippedTags are the keys of tags that a label could not be made of, sorted.
	SkippedTags []string
	// Lifetime is how long the certificates last.
	Lifetime time.Duration
}

// Policy is a valid policy file.
type Policy struct {
	// SHA256 is the hash of the file's exact bytes, in hexadecimal.
	SHA256 string

	rules []rule
}

// rule is one entry of the file, checked and with its defaults filled in.
type rule struct {
	name     string
	accounts []string // empty: all that the deployment allows
	regions  []string // likewise
	hostname template
	address  addressKind
	port     int
	labels   labelRules
	lifetime time.Duration
}

// Decide applies the first rule that matches the instance. Its errors wrap
// ErrRefused.
func (p *Policy) Decide(f Facts, c Cluster) (Decision, error) {
	i := slices.IndexFunc(p.rules, func(r rule) bool { return r.matches(f) })
	if i < 0 {
		return Decision{}, fmt.Errorf("%w: no rule matches account %s in region %s", ErrRefused, f.Account, f.Region)
	}
	return p.rules[i].decide(f, c)
}

func (r rule) matches(f Facts) bool {
	return admits(r.accounts, f.Account) && admits(r.regions, f.Region)
}

func admits(list []string, value string) bool {
	return len(list) == 0 || slices.Contains(list, value)
}

func (r rule) decide(f Facts, c Cluster) (Decision, error) {
	hostname, err := r.hostname.hostname(f, c)
	if err != nil {
		return Decision{}, fmt.Errorf("%w: rule %q: %w", ErrRefused, r.name, err)
	}
	address, err := r.address.of(f, r.port)
	if err != nil {
		return Decision{}, fmt.Errorf("%w: rule %q: %w", ErrRefused, r.name, err)
	}
	labels, skipped := r.labels.render(f.Tags)
	for key, value := range fixedLabels(f, c, r.name) {
		labels[key] = value
	}
	return Decision{
		Rule:        r.name,
		Hostname:    hostname,
		Address:     address,
		Labels:      labels,
		SkippedTags: skipped,
		Lifetime:    r.lifetime,
	}, nil
}
