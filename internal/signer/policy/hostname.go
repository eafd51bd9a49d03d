package policy

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/google/uuid"
)

// maxLabelBytes bounds a DNS label (RFC 1035, section 2.3.4).
const maxLabelBytes = 63

// idPlaceholder must end every host-name template.
const idPlaceholder = "{instance-id}"

// defaultTemplate gives "<Name tag>-<instance id>".
const defaultTemplate = "{tag:Name}-" + idPlaceholder

// template makes a host name: literal text and placeholders, of which the last
// is the instance id.
//
// The id at the end is what makes a name safe to hand out. Under Teleport's
// routing the node with the latest expiry wins among those of one name, so if
// tags alone made the name, whoever may set tags could take a bastion's.
type template struct {
	// before are the parts in front of the instance id.
	before []templatePart
}

// templatePart is literal text, or the placeholder of a fact.
type templatePart struct {
	literal string
	fact    func(Facts) string
}

const maxTemplateBytes = 256

func parseTemplate(text string) (template, error) {
	if len(text) > maxTemplateBytes {
		return template{}, fmt.Errorf("has %d bytes, more than %d", len(text), maxTemplateBytes)
	}
	rest, ok := strings.CutSuffix(text, idPlaceholder)
	if !ok {
		return template{}, fmt.Errorf("must end in %s: without it a tag could give a machine the name of another", idPlaceholder)
	}
	var t template
	for rest != "" {
		literal, after, found := strings.Cut(rest, "{")
		if !regexpLiteral.MatchString(literal) {
			return template{}, fmt.Errorf("%q: use lower-case letters, digits and hyphens outside placeholders", literal)
		}
		if literal != "" {
			t.before = append(t.before, templatePart{literal: literal})
		}
		if !found {
			break
		}
		name, after, closed := strings.Cut(after, "}")
		if !closed {
			return template{}, fmt.Errorf("placeholder {%s is not closed", name)
		}
		fact, err := placeholder(name)
		if err != nil {
			return template{}, err
		}
		t.before = append(t.before, templatePart{fact: fact})
		rest = after
	}
	return t, nil
}

var regexpLiteral = regexp.MustCompile(`^[a-z0-9-]*$`)

func placeholder(name string) (func(Facts) string, error) {
	if key, ok := strings.CutPrefix(name, "tag:"); ok && key != "" {
		return func(f Facts) string { return f.Tags[key] }, nil
	}
	switch name {
	case "account":
		return func(f Facts) string { return f.Account }, nil
	case "region":
		return func(f Facts) string { return f.Region }, nil
	case "vpc":
		return func(f Facts) string { return f.VPC }, nil
	}
	return nil, fmt.Errorf("unknown placeholder {%s}: there are {tag:KEY}, {account}, {region}, {vpc}, and %s at the end", name, idPlaceholder)
}

// hostname renders the template. The part in front of the instance id is made to
// fit and may vanish; the id is always whole. A name that may not be used for
// what stands in front (an account number, say) falls back to the bare id:
// an unlucky tag must not keep a machine out.
func (t template) hostname(f Facts, c Cluster) (string, error) {
	id := f.InstanceID
	if name := t.prefix(f, maxLabelBytes-len("-")-len(id)); name != "" {
		if full := name + "-" + id; checkHostname(full, f, c) == nil {
			return full, nil
		}
	}
	if err := checkHostname(id, f, c); err != nil {
		return "", fmt.Errorf("host name: %w", err)
	}
	return id, nil
}

func (t template) prefix(f Facts, maxBytes int) string {
	var b strings.Builder
	for _, part := range t.before {
		if part.fact != nil {
			b.WriteString(part.fact(f))
			continue
		}
		b.WriteString(part.literal)
	}
	name := sanitize(b.String())
	if len(name) > maxBytes {
		name = name[:max(maxBytes, 0)]
	}
	return strings.Trim(name, "-")
}

// sanitize keeps ASCII letters, lower case, and digits, and turns every run of
// anything else into one hyphen. Lower case because OpenSSH lowers what people
// type and Teleport's routing compares exactly. ASCII only, so that no letter
// that looks like another gets through.
func sanitize(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r >= 'A' && r <= 'Z':
			b.WriteRune(r - 'A' + 'a')
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	return strings.Trim(b.String(), "-")
}

var (
	regexpLabel      = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	regexpInteger    = regexp.MustCompile(`^([0-9]+|0x[0-9a-f]*)$`)
	regexpInstanceID = regexp.MustCompile(`i-([0-9a-f]{17}|[0-9a-f]{8})$`)
	regexpDiscovery  = regexp.MustCompile(`^[0-9]{12}-i-`)
)

// checkHostname refuses names that stand for something else than this instance.
// hostname renders none of them; this is the gate behind it, which does not rely
// on how a name was made.
func checkHostname(name string, f Facts, c Cluster) error {
	switch {
	case len(name) > maxLabelBytes || !regexpLabel.MatchString(name):
		return fmt.Errorf("%q is not one lower-case DNS label", name)
	case regexpInteger.MatchString(name):
		// inet_aton reads 2130706433, 0x7f000001 and 017700000001 as 127.0.0.1, and
		// with it every client that resolves names by it. Forms with dots or colons
		// are no labels.
		return fmt.Errorf("%q is a notation of an IP address", name)
	case isUUID(name):
		// Teleport dials a UUID as a node's name, whoever bears it as a host name.
		return fmt.Errorf("%q is a UUID", name)
	case regexpDiscovery.MatchString(name):
		// So Teleport names the instances that it discovers itself.
		return fmt.Errorf("%q has the form of Teleport's own names, <account>-i-…", name)
	case isLoopbackName(name):
		return fmt.Errorf("%q is every machine's own name", name)
	case isOrBegins(c.Name, name):
		return fmt.Errorf("%q is the cluster's name", name)
	case isOrBegins(c.Proxy, name):
		return fmt.Errorf("%q is the proxy's name", name)
	}
	if id := regexpInstanceID.FindString(name); id != "" && id != f.InstanceID {
		return fmt.Errorf("%q ends in the id of another instance", name)
	}
	return nil
}

// checkDNSName refuses DNS names that stand for something else than this instance.
// Its first label obeys the rules for a name without dots.
func checkDNSName(name string, f Facts, c Cluster) error {
	label, domain, dotted := strings.Cut(name, ".")
	if err := checkHostname(label, f, c); err != nil {
		return err
	}
	if !dotted {
		return nil
	}
	if err := checkDomain(domain); err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	// Certificates carry "<host name>.<cluster>" too, so such a name would be another
	// machine's. Below the proxy's name are Teleport's web applications.
	for _, taken := range []string{c.Name, c.Proxy} {
		if taken = strings.ToLower(strings.TrimSuffix(taken, ".")); taken != "" && isWithin(name, taken) {
			return fmt.Errorf("%q is %q or below it", name, taken)
		}
	}
	if id := regexpInstanceID.FindString(name); id != "" && id != f.InstanceID {
		return fmt.Errorf("%q ends in the id of another instance", name)
	}
	return nil
}

// maxDomainBytes leaves room for a label in front (RFC 1035, section 2.3.4: a name
// has at most 253 characters as text).
const maxDomainBytes = 253 - maxLabelBytes - len(".")

// checkDomain refuses what may not stand behind a host name.
func checkDomain(domain string) error {
	if len(domain) > maxDomainBytes {
		return fmt.Errorf("%d bytes of domain, more than %d", len(domain), maxDomainBytes)
	}
	labels := strings.Split(domain, ".")
	for _, label := range labels {
		if len(label) > maxLabelBytes || !regexpLabel.MatchString(label) {
			return fmt.Errorf("%q is not a lower-case DNS label", label)
		}
	}
	switch last := labels[len(labels)-1]; {
	case regexpInteger.MatchString(last):
		// inet_aton reads 10.1 and 10.0x1 as addresses; none has another last part.
		return errors.New("the last label is a number: it could make an IP address")
	case isLoopbackName(last) || regexpLocalDomain.MatchString(last):
		return fmt.Errorf("names below %s are every machine's own (RFC 6761, section 6.3)", last)
	}
	return nil
}

var (
	// regexpLoopback are the names that distributions put into /etc/hosts for the machine
	// itself and for groups that it is in: localhost, localhost4, localhost6 (Fedora, RHEL),
	// ip6-localhost, ip6-loopback, ip6-allnodes (Debian), broadcasthost (BSD), loopback.
	regexpLoopback    = regexp.MustCompile(`^((ip[46]-)?(localhost|loopback)[46]?|broadcasthost|ip6-(localnet|mcastprefix|all(nodes|routers|hosts)))$`)
	regexpLocalDomain = regexp.MustCompile(`^localdomain[46]?$`)
	// regexpAWSName is how EC2 names public addresses ("EC2 instance hostnames and domains").
	regexpAWSName = regexp.MustCompile(`^ec2-[0-9]+(-[0-9]+){3}$`)
	// regexpInstanceShape are names that begin like an instance's id, of whatever length.
	regexpInstanceShape = regexp.MustCompile(`^i-[0-9a-f]{8,}(-|$)`)
)

func isLoopbackName(label string) bool { return regexpLoopback.MatchString(label) }

// isWithin reports whether name is the domain or below it.
func isWithin(name, domain string) bool {
	return name == domain || strings.HasSuffix(name, "."+domain)
}

// fallback returns the host name for when another instance holds name: the same with
// the instance's id at the end of the first label, or the id alone if that may not
// be. It is empty if the name bears the id already.
func fallback(name string, f Facts, c Cluster) string {
	label, domain, dotted := strings.Cut(name, ".")
	if strings.HasSuffix(label, f.InstanceID) {
		return ""
	}
	if dotted {
		domain = "." + domain
	}
	room := max(maxLabelBytes-len("-")-len(f.InstanceID), 0)
	front := strings.TrimRight(label[:min(len(label), room)], "-")
	for _, unique := range []string{front + "-" + f.InstanceID, f.InstanceID} {
		if checkDNSName(unique+domain, f, c) == nil {
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
