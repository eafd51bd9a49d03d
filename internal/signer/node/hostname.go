package node

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/google/uuid"
)

// MaxDNSLabelBytes bounds a DNS label (RFC 1035, section 2.3.4).
const MaxDNSLabelBytes = 63

var (
	regexpLabel      = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	regexpInteger    = regexp.MustCompile(`^([0-9]+|0x[0-9a-f]*)$`)
	regexpInstanceID = regexp.MustCompile(`i-([0-9a-f]{17}|[0-9a-f]{8})$`)
	regexpDiscovery  = regexp.MustCompile(`^[0-9]{12}-i-`)
)

// CheckHostname refuses names that mean something other than this instance. It does not rely
// on how the name was made.
func CheckHostname(name string, f Facts, c Cluster) error {
	switch {
	case len(name) > MaxDNSLabelBytes || !regexpLabel.MatchString(name):
		return fmt.Errorf("%q is not one lower-case DNS label", name)
	case regexpInteger.MatchString(name):
		// inet_aton, and every client that uses it to resolve names, reads 2130706433,
		// 0x7f000001 and 017700000001 as 127.0.0.1. Forms with dots or colons are not labels.
		return fmt.Errorf("%q is a notation of an IP address", name)
	case isUUID(name):
		// Teleport reads a UUID as a node's id, even if another node has it as its host name.
		return fmt.Errorf("%q is a UUID", name)
	case regexpDiscovery.MatchString(name):
		// Teleport itself gives such names to instances that it discovers.
		return fmt.Errorf("%q has the form of Teleport's own names, <account>-i-…", name)
	case isLoopbackName(name):
		return fmt.Errorf("%q is the name of every machine itself", name)
	case isOrBegins(c.Name, name):
		return fmt.Errorf("%q is the cluster's name", name)
	case isOrBegins(c.Proxy, name):
		return fmt.Errorf("%q is the proxy's name", name)
	}
	if id := regexpInstanceID.FindString(name); id != "" && id != f.InstanceID.String() {
		return fmt.Errorf("%q ends in the id of another instance", name)
	}
	return nil
}

// CheckDNSName refuses DNS names that mean something other than this instance. Its first label
// obeys the rules for a name without dots.
func CheckDNSName(name string, f Facts, c Cluster) error {
	label, domain, dotted := strings.Cut(name, ".")
	if err := CheckHostname(label, f, c); err != nil {
		return err
	}
	if !dotted {
		return nil
	}
	if err := CheckDomain(domain); err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	// Certificates also contain "<host name>.<cluster>", so such a name would belong to
	// another machine. Teleport's web applications are below the proxy's name.
	for _, taken := range []string{c.Name, c.Proxy} {
		if taken = strings.ToLower(strings.TrimSuffix(taken, ".")); taken != "" && IsWithin(name, taken) {
			return fmt.Errorf("%q is %q or below it", name, taken)
		}
	}
	if id := regexpInstanceID.FindString(name); id != "" && id != f.InstanceID.String() {
		return fmt.Errorf("%q ends in the id of another instance", name)
	}
	return nil
}

// MaxDomainBytes leaves room for a label in front (RFC 1035, section 2.3.4: a name has at most
// 253 characters as text).
const MaxDomainBytes = 253 - MaxDNSLabelBytes - len(".")

// CheckDomain refuses text that may not follow a host name.
func CheckDomain(domain string) error {
	if len(domain) > MaxDomainBytes {
		return fmt.Errorf("%d bytes of domain, more than %d", len(domain), MaxDomainBytes)
	}
	labels := strings.Split(domain, ".")
	for _, label := range labels {
		if len(label) > MaxDNSLabelBytes || !regexpLabel.MatchString(label) {
			return fmt.Errorf("%q is not a lower-case DNS label", label)
		}
	}
	switch last := labels[len(labels)-1]; {
	case regexpInteger.MatchString(last):
		// inet_aton reads 10.1 and 10.0x1 as addresses. Every such form ends with a number.
		return errors.New("the last label is a number: it could make an IP address")
	case isLoopbackName(last) || regexpLocalDomain.MatchString(last):
		return fmt.Errorf("names below %s always mean the machine itself (RFC 6761, section 6.3)", last)
	}
	return nil
}

var (
	// regexpLoopback are the names that distributions put into /etc/hosts for the machine
	// itself and for groups that it belongs to: localhost, localhost4, localhost6 (Fedora,
	// RHEL), ip6-localhost, ip6-loopback, ip6-allnodes (Debian), broadcasthost (BSD),
	// loopback.
	regexpLoopback    = regexp.MustCompile(`^((ip[46]-)?(localhost|loopback)[46]?|broadcasthost|ip6-(localnet|mcastprefix|all(nodes|routers|hosts)))$`)
	regexpLocalDomain = regexp.MustCompile(`^localdomain[46]?$`)
)

func isLoopbackName(label string) bool { return regexpLoopback.MatchString(label) }

// IsWithin reports whether name is the domain or below it.
func IsWithin(name, domain string) bool {
	return name == domain || strings.HasSuffix(name, "."+domain)
}

// Fallback returns the host name to use if another instance holds name: the same name with the
// instance's id at the end of the first label, or only the id if that name is not allowed. It
// is empty if the name already contains the id.
func Fallback(name string, f Facts, c Cluster) string {
	label, domain, dotted := strings.Cut(name, ".")
	id := f.InstanceID.String()
	if strings.HasSuffix(label, id) {
		return ""
	}
	if dotted {
		domain = "." + domain
	}
	room := max(MaxDNSLabelBytes-len("-")-len(id), 0)
	front := strings.TrimRight(label[:min(len(label), room)], "-")
	for _, unique := range []string{front + "-" + id, id} {
		if CheckDNSName(unique+domain, f, c) == nil {
			return unique + domain
		}
	}
	return ""
}

func isUUID(name string) bool {
	_, err := uuid.Parse(name)
	return err == nil
}

// isOrBegins reports whether name is the DNS name full or its first label.
func isOrBegins(full, name string) bool {
	full = strings.ToLower(strings.TrimSuffix(full, "."))
	first, _, _ := strings.Cut(full, ".")
	return full != "" && (name == full || name == first)
}
