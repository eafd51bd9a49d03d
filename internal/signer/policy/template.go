package policy

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// idPlaceholder must end every host-name template.
const idPlaceholder = "{instance-id}"

// defaultTemplate gives "<Name tag>-<instance id>".
const defaultTemplate = "{tag:Name}-" + idPlaceholder

// template makes a host name from literal text and placeholders, of which the last is the
// instance id.
//
// The id at the end makes a name safe to grant. With Teleport's most_recent routing, the node
// with the latest expiry wins among those with the same name. So if only tags made the name,
// anyone who may set tags could take over a bastion's.
type template struct {
	// before are the parts before the instance id.
	before []templatePart
}

// templatePart is literal text, or a placeholder for a fact.
type templatePart struct {
	literal string
	fact    func(node.Facts) string
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

func placeholder(name string) (func(node.Facts) string, error) {
	if key, ok := strings.CutPrefix(name, "tag:"); ok && key != "" {
		return func(f node.Facts) string { return f.Tags[key] }, nil
	}
	switch name {
	case "account":
		return func(f node.Facts) string { return f.Account.String() }, nil
	case "region":
		return func(f node.Facts) string { return f.Region.String() }, nil
	case "vpc":
		return func(f node.Facts) string { return f.VPC }, nil
	}
	return nil, fmt.Errorf("unknown placeholder {%s}: use {tag:KEY}, {account}, {region}, {vpc}, and %s at the end", name, idPlaceholder)
}

// hostname renders the template. It shortens or drops the part before the instance id as
// needed; the id always stays whole. If that part makes a name that is not allowed (an account
// number, for example), the name is the bare id: an unlucky tag must not keep a machine out.
func (t template) hostname(f node.Facts, c node.Cluster) (string, error) {
	id := f.InstanceID.String()
	if name := t.prefix(f, node.MaxDNSLabelBytes-len("-")-len(id)); name != "" {
		if full := name + "-" + id; node.CheckHostname(full, f, c) == nil {
			return full, nil
		}
	}
	if err := node.CheckHostname(id, f, c); err != nil {
		return "", fmt.Errorf("host name: %w", err)
	}
	return id, nil
}

func (t template) prefix(f node.Facts, maxBytes int) string {
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

// sanitize keeps ASCII letters, in lower case, and digits, and turns every run of other
// characters into one hyphen. Lower case, because OpenSSH lowers what people type and
// Teleport's routing compares exactly. ASCII only, so that no look-alike letter gets through.
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
