package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	// Version is the version of the file format that this package reads.
	Version = 1

	maxFileBytes    = 256 << 10
	maxRules        = 100
	maxStaticLabels = 32
	maxGlobs        = 100
	maxGlobBytes    = 128
	defaultPort     = 22
)

// builtIn is the policy of a deployment without a policy file: all that the
// deployment allows, in the default form.
const builtIn = "version: 1\nrules:\n  - name: default\n"

// Default returns the policy of a deployment without a policy file: one rule
// named "default".
func Default(limits Limits) (*Policy, error) { return Parse([]byte(builtIn), limits) }

// The file's own form. A pointer or a nil slice tells "not set" from "set to
// nothing", which are different things in a policy.
type (
	fileDocument struct {
		Version int            `yaml:"version"`
		Rules   []ruleDocument `yaml:"rules"`
	}
	ruleDocument struct {
		Name                string         `yaml:"name"`
		Match               matchDocument  `yaml:"match"`
		Hostname            *string        `yaml:"hostname"`
		Address             *string        `yaml:"address"`
		Port                *int           `yaml:"port"`
		Labels              labelsDocument `yaml:"labels"`
		CertificateLifetime *time.Duration `yaml:"certificate_lifetime"`
	}
	matchDocument struct {
		Accounts []string `yaml:"accounts"`
		Regions  []string `yaml:"regions"`
	}
	labelsDocument struct {
		Static    map[string]string `yaml:"static"`
		TagPrefix *string           `yaml:"tag_prefix"`
		AllowTags []string          `yaml:"allow_tags"`
		DenyTags  []string          `yaml:"deny_tags"`
	}
)

// Parse reads a policy file strictly: unknown and repeated keys, keys without a
// value, aliases, and anything that would widen the limits are errors that name
// the line.
func Parse(data []byte, limits Limits) (*Policy, error) {
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("policy: %d bytes, more than %d", len(data), maxFileBytes)
	}
	if m := limits.MaxLifetime; m < ShortestLifetime || m > LongestLifetime {
		return nil, fmt.Errorf("policy: the deployment's longest lifetime is %s; it must be %s to %s", m, ShortestLifetime, LongestLifetime)
	}
	file, lines, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	if file.Version != Version {
		return nil, fmt.Errorf("policy: version is %d; this signer reads version %d", file.Version, Version)
	}
	if len(file.Rules) == 0 || len(file.Rules) > maxRules {
		return nil, fmt.Errorf("policy: %d rules; there must be 1 to %d", len(file.Rules), maxRules)
	}
	sum := sha256.Sum256(data)
	p := &Policy{SHA256: hex.EncodeToString(sum[:])}
	for i, document := range file.Rules {
		r, err := document.rule(limits)
		if err == nil && slices.ContainsFunc(p.rules, func(other rule) bool { return other.name == r.name }) {
			err = errors.New("name: another rule has it")
		}
		if err != nil {
			return nil, fmt.Errorf("policy: line %d: rule %q: %w", lines[i], document.Name, err)
		}
		p.rules = append(p.rules, r)
	}
	return p, nil
}

// decode returns the file's content and the line on which each rule starts.
func decode(data []byte) (file fileDocument, ruleLines []int, err error) {
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil {
		return file, nil, err
	}
	if err := refuseLoose(&root); err != nil {
		return file, nil, err
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the file is empty")
		}
		return file, nil, err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return file, nil, errors.New("the file holds more than one YAML document")
	}
	for _, n := range rulesOf(&root) {
		ruleLines = append(ruleLines, n.Line)
	}
	return file, ruleLines, nil
}

// refuseLoose refuses what YAML allows and a policy is better without: a key
// without a value, which would silently mean its default, and aliases and merge
// keys, behind which a rule does not say what it does.
func refuseLoose(n *yaml.Node) error {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return fmt.Errorf("line %d: anchors and aliases are not allowed", n.Line)
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		return fmt.Errorf("line %d: a key or an entry without a value", n.Line)
	}
	for _, child := range n.Content {
		if err := refuseLoose(child); err != nil {
			return err
		}
	}
	return nil
}

func rulesOf(root *yaml.Node) []*yaml.Node {
	if len(root.Content) == 0 {
		return nil
	}
	top := root.Content[0].Content
	for i := 0; i+1 < len(top); i += 2 {
		if top[i].Value == "rules" {
			return top[i+1].Content
		}
	}
	return nil
}

var regexpRuleName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// rule checks the document and fills in the defaults.
func (d ruleDocument) rule(limits Limits) (rule, error) {
	if !regexpRuleName.MatchString(d.Name) {
		return rule{}, errors.New("name: use 1 to 63 lower-case letters, digits and hyphens")
	}
	r := rule{name: d.Name, accounts: d.Match.Accounts, regions: d.Match.Regions}
	if err := subset("match.accounts", "account", r.accounts, limits.Accounts); err != nil {
		return rule{}, err
	}
	if err := subset("match.regions", "region", r.regions, limits.Regions); err != nil {
		return rule{}, err
	}
	var err error
	if r.hostname, err = parseTemplate(or(d.Hostname, defaultTemplate)); err != nil {
		return rule{}, fmt.Errorf("hostname: %w", err)
	}
	r.address = addressKind(or(d.Address, string(addressPrivate)))
	if !slices.Contains([]addressKind{addressPrivate, addressPublic, addressIPv6}, r.address) {
		return rule{}, fmt.Errorf("address: %q is not private, public or ipv6", r.address)
	}
	if r.port = or(d.Port, defaultPort); r.port < 1 || r.port > 65535 {
		return rule{}, fmt.Errorf("port: %d is not in 1 to 65535", r.port)
	}
	if r.lifetime, err = lifetime(d.CertificateLifetime, limits.MaxLifetime); err != nil {
		return rule{}, fmt.Errorf("certificate_lifetime: %w", err)
	}
	if r.labels, err = d.Labels.rules(); err != nil {
		return rule{}, fmt.Errorf("labels.%w", err)
	}
	return r, nil
}

func or[T any](value *T, otherwise T) T {
	if value == nil {
		return otherwise
	}
	return *value
}

// subset stops a policy from admitting what the deployment does not: whoever may
// edit the policy must not be able to let a stranger's account in.
func subset(field, what string, list, allowed []string) error {
	if list != nil && len(list) == 0 {
		return fmt.Errorf("%s: an empty list matches nothing; leave it out to match all of the deployment's", field)
	}
	for _, value := range list {
		if !slices.Contains(allowed, value) {
			return fmt.Errorf("%s: %s %q is not in the deployment's list; a policy can only narrow it", field, what, value)
		}
	}
	return nil
}

func lifetime(asked *time.Duration, longest time.Duration) (time.Duration, error) {
	if asked == nil {
		return min(DefaultLifetime, longest), nil
	}
	switch d := *asked; {
	case d < ShortestLifetime:
		return 0, fmt.Errorf("%s is shorter than %s", d, ShortestLifetime)
	case d > longest:
		return 0, fmt.Errorf("%s is longer than the deployment's %s; a policy can only narrow it", d, longest)
	default:
		return d.Truncate(time.Second), nil // the resolution of certificates
	}
}

func (d labelsDocument) rules() (labelRules, error) {
	l := labelRules{static: d.Static, tagPrefix: or(d.TagPrefix, defaultTagPrefix)}
	if len(d.Static) > maxStaticLabels {
		return l, fmt.Errorf("static: %d labels, more than %d", len(d.Static), maxStaticLabels)
	}
	for _, key := range slices.Sorted(maps.Keys(d.Static)) {
		if err := checkStatic(key, d.Static[key]); err != nil {
			return l, fmt.Errorf("static: %w", err)
		}
	}
	if yieldsReserved(l.tagPrefix) {
		return l, fmt.Errorf("tag_prefix: %q lets a tag make a label that begins with %s, which are the signer's",
			l.tagPrefix, strings.Join(reservedPrefixes(), ", "))
	}
	if len(l.tagPrefix) > maxGlobBytes || !regexpLabelKey.MatchString(l.tagPrefix) {
		return l, fmt.Errorf("tag_prefix: %q cannot begin a label's key", l.tagPrefix)
	}
	if d.AllowTags == nil {
		d.AllowTags = []string{"*"}
	}
	var err error
	if l.allow, err = globs(d.AllowTags); err != nil {
		return l, fmt.Errorf("allow_tags: %w", err)
	}
	if l.deny, err = globs(d.DenyTags); err != nil {
		return l, fmt.Errorf("deny_tags: %w", err)
	}
	return l, nil
}

func checkStatic(key, value string) error {
	switch {
	case key == wildcard:
		return errors.New("the key * means any label in a Teleport role")
	case isReserved(key):
		return fmt.Errorf("the key %q is the signer's to set", key)
	case len(key) > maxLabelKeyBytes || !regexpLabelKey.MatchString(key):
		return fmt.Errorf("%q is not a label key that Teleport accepts (%s)", key, regexpLabelKey)
	case !isLabelValue(value):
		return fmt.Errorf("the value of %q is too long or not plain text", key)
	}
	return nil
}

func globs(patterns []string) ([]glob, error) {
	if len(patterns) > maxGlobs {
		return nil, fmt.Errorf("%d patterns, more than %d", len(patterns), maxGlobs)
	}
	list := make([]glob, 0, len(patterns))
	for _, p := range patterns {
		if p == "" || len(p) > maxGlobBytes {
			return nil, fmt.Errorf("pattern %q: use 1 to %d characters", p, maxGlobBytes)
		}
		list = append(list, glob(p))
	}
	return list, nil
}
