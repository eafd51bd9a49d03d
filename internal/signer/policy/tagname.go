package policy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// hostnameTag is the tag that may give an instance another name than its template, if a rule
// allows it.
const hostnameTag = "TeleportHostname"

const (
	maxNamePatternBytes = 512
	maxSuffixes         = 10
)

// tagName lets the tag TeleportHostname choose the host name.
//
// Such a name does not end in the instance's id, so anyone who may set tags chooses it. The
// rule's pattern limits the choice. The checks here exclude names that mean another machine,
// and the ledger excludes names that another machine holds.
type tagName struct {
	pattern  *regexp.Regexp // of the whole value
	suffixes []string       // ".corp.example.com": suffixes that may follow the first label
}

func parseNamePattern(text string) (*regexp.Regexp, error) {
	if text == "" || len(text) > maxNamePatternBytes {
		return nil, fmt.Errorf("use 1 to %d characters", maxNamePatternBytes)
	}
	// Compile it alone first: "a)|(b" is valid only inside the anchors, which it would defeat.
	if _, err := regexp.Compile(text); err != nil {
		return nil, err
	}
	return regexp.Compile(`\A(?:` + text + `)\z`)
}

func checkSuffix(suffix string) error {
	domain, ok := strings.CutPrefix(suffix, ".")
	if !ok {
		return fmt.Errorf("%s: it must begin with a dot", quote(suffix))
	}
	if err := node.CheckDomain(domain); err != nil {
		return fmt.Errorf("%s: %w", quote(suffix), err)
	}
	// AWS itself assigns these names to addresses and instances.
	for _, taken := range append(ec2ref.DNSSuffixes(), "ec2.internal", "compute.internal") {
		if node.IsWithin(domain, taken) {
			return fmt.Errorf("%s: AWS assigns the names below %s", quote(suffix), taken)
		}
	}
	return nil
}

var (
	// regexpAddressName matches the names that EC2 gives private addresses ("EC2 instance
	// hostnames and domains", IP name).
	regexpAddressName = regexp.MustCompile(`^ip-[0-9]+(-[0-9]+){3}$`)
	// regexpAWSName matches the names that EC2 gives public addresses ("EC2 instance hostnames
	// and domains").
	regexpAWSName = regexp.MustCompile(`^ec2-[0-9]+(-[0-9]+){3}$`)
	// regexpInstanceShape matches names that begin like an instance's id, of any length.
	regexpInstanceShape = regexp.MustCompile(`^i-[0-9a-f]{8,}(-|$)`)
)

// of returns the name that the tag asks for, or nothing if there is no such tag. An error
// says why the name is not allowed.
func (t *tagName) of(f node.Facts, c node.Cluster) (string, error) {
	name := f.Tags[hostnameTag]
	if name == "" {
		return "", nil
	}
	label, domain, dotted := strings.Cut(name, ".")
	switch {
	case len(name) > node.MaxDNSLabelBytes+len(".")+node.MaxDomainBytes:
		return "", errors.New("it is too long for a host name")
	case !t.pattern.MatchString(name):
		return "", fmt.Errorf("%s does not match the rule's pattern", quote(name))
	case dotted && !slices.Contains(t.suffixes, "."+domain):
		return "", fmt.Errorf("%s: the rule has no such suffix", quote(name))
	case regexpAddressName.MatchString(label) || regexpAWSName.MatchString(label):
		return "", fmt.Errorf("%s is the name EC2 gives an address", quote(name))
	case regexpInstanceShape.MatchString(label) && !isOwnName(label, f):
		return "", fmt.Errorf("%s begins like the id of another instance", quote(name))
	case len(label) >= 4 && label[2:4] == "--":
		// Internationalized names (RFC 5890, section 2.3.1) may look like other names.
		return "", fmt.Errorf("%s is an encoded name", quote(name))
	}
	if err := node.CheckDNSName(name, f, c); err != nil {
		return "", err
	}
	return name, nil
}

// isOwnName reports whether a name that begins like an instance's id begins with this
// instance's id.
func isOwnName(label string, f node.Facts) bool {
	rest, ok := strings.CutPrefix(label, f.InstanceID.String())
	return ok && (rest == "" || rest[0] == '-')
}
