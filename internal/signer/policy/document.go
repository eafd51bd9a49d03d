package policy

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"

	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// These types mirror the file. A pointer or a nil slice distinguishes "not set" from "set
// to nothing", which differ in a policy. The JSON schema for editors
// (templates/policy/policy.schema.json) says the same; a test compares them.
type (
	fileDocument struct {
		Version int            `yaml:"version"`
		Rules   []ruleDocument `yaml:"rules"`
	}
	ruleDocument struct {
		Name                string           `yaml:"name"`
		Match               matchDocument    `yaml:"match"`
		When                *string          `yaml:"when"`
		Hostname            *string          `yaml:"hostname"`
		TeleportHostname    *tagNameDocument `yaml:"teleport_hostname"`
		Address             *string          `yaml:"address"`
		Port                *int             `yaml:"port"`
		Principals          []principalKind  `yaml:"principals"`
		Labels              labelsDocument   `yaml:"labels"`
		CertificateLifetime *Duration        `yaml:"certificate_lifetime"`
		WhenStopped         *string          `yaml:"when_stopped"`
	}
	matchDocument struct {
		Accounts         []string            `yaml:"accounts"`
		Regions          []string            `yaml:"regions"`
		VPCs             []string            `yaml:"vpcs"`
		Subnets          []string            `yaml:"subnets"`
		InstanceProfiles []string            `yaml:"instance_profiles"`
		ImageOwners      []string            `yaml:"image_owners"`
		Images           []string            `yaml:"images"`
		ImageTags        map[string][]string `yaml:"image_tags"`
		Tags             map[string][]string `yaml:"tags"`
		MaxAge           *string             `yaml:"max_age"`
	}
	tagNameDocument struct {
		Pattern  string   `yaml:"pattern"`
		Suffixes []string `yaml:"suffixes"`
	}
	labelsDocument struct {
		Static    map[string]string `yaml:"static"`
		TagPrefix *string           `yaml:"tag_prefix"`
		AllowTags []string          `yaml:"allow_tags"`
		DenyTags  []string          `yaml:"deny_tags"`
	}
)

// builder turns documents into rules: it checks them and fills in defaults.
type builder struct {
	limits Limits
	// env is the environment for compiling conditions. It is created for the first one: a
	// policy without conditions pays nothing for it.
	env *cel.Env
}

var regexpRuleName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (b *builder) rule(d ruleDocument) (rule, error) {
	if !regexpRuleName.MatchString(d.Name) {
		return rule{}, in("name", errors.New("use 1 to 63 lower-case letters, digits and hyphens"))
	}
	r := rule{name: d.Name, principals: d.Principals}
	var err error
	if r.match, err = d.Match.conditions(b.limits); err != nil {
		return rule{}, in("match", err)
	}
	if r.when, err = b.expression(d.When); err != nil {
		return rule{}, in("when", err)
	}
	if r.hostname, err = parseTemplate(or(d.Hostname, defaultTemplate)); err != nil {
		return rule{}, in("hostname", err)
	}
	if r.tagName, err = d.TeleportHostname.tagName(); err != nil {
		return rule{}, in("teleport_hostname", err)
	}
	if r.address, err = parseAddress(d.Address); err != nil {
		return rule{}, in("address", err)
	}
	if r.port = or(d.Port, defaultPort); r.port < 1 || r.port > 65535 {
		return rule{}, in("port", fmt.Errorf("%d is not in 1 to 65535", r.port))
	}
	if err = checkPrincipals(d.Principals); err != nil {
		return rule{}, in("principals", err)
	}
	if r.labels, err = d.Labels.rules(); err != nil {
		return rule{}, in("labels", err)
	}
	if r.lifetime, err = lifetime(d.CertificateLifetime, b.limits.MaxLifetime); err != nil {
		return rule{}, in("certificate_lifetime", err)
	}
	if r.removeWhenStopped, err = parseWhenStopped(d.WhenStopped); err != nil {
		return rule{}, in("when_stopped", err)
	}
	return r, nil
}

// parseWhenStopped reports whether an instance that is stopped loses its node.
func parseWhenStopped(text *string) (remove bool, err error) {
	switch value := or(text, "keep"); value {
	case "keep":
		return false, nil
	case "remove":
		return true, nil
	default:
		return false, fmt.Errorf("%s is neither keep nor remove", quote(value))
	}
}

func or[T any](value *T, otherwise T) T {
	if value == nil {
		return otherwise
	}
	return *value
}

func (b *builder) expression(text *string) (_ *expression, err error) {
	if text == nil {
		return nil, nil
	}
	if b.env == nil {
		if b.env, err = expressions(); err != nil {
			return nil, err
		}
	}
	return compile(b.env, *text)
}

// conditions returns a rule's conditions in the order in which a refusal names them:
// where the instance is, what it runs, and last its tags.
func (d matchDocument) conditions(limits Limits) ([]condition, error) {
	place, err := d.place(limits)
	if err != nil {
		return nil, err
	}
	provenance, err := d.provenance(limits)
	if err != nil {
		return nil, err
	}
	imageTags, err := tagConditions("image_tags", d.ImageTags, func(f node.Facts) map[string]string { return f.ImageTags })
	if err != nil {
		return nil, in("image_tags", err)
	}
	tags, err := tagConditions("tags", d.Tags, func(f node.Facts) map[string]string { return f.Tags })
	if err != nil {
		return nil, in("tags", err)
	}
	for n, holds := range imageTags {
		imageTags[n] = ofOwnImage(holds)
	}
	return slices.Concat(place, provenance, imageTags, tags), nil
}

func (d matchDocument) place(limits Limits) ([]condition, error) {
	var list []condition
	for _, m := range []struct {
		key              string
		entries, allowed []string
		form             *regexp.Regexp
		fact             func(node.Facts) string
	}{
		{"accounts", d.Accounts, texts(limits.Accounts), regexpAccount, func(f node.Facts) string { return f.Account }},
		{"regions", d.Regions, texts(limits.Regions), regexpRegion, func(f node.Facts) string { return f.Region }},
	} {
		if m.entries == nil {
			if !limits.unlimited {
				list = append(list, oneOf(m.key, m.allowed, m.fact))
			}
			continue
		}
		if err := checkEntries(m.entries, m.form); err != nil {
			return nil, in(m.key, err)
		}
		if err := narrows(m.entries, m.allowed); err != nil && !limits.unlimited {
			return nil, in(m.key, err)
		}
		list = append(list, oneOf(m.key, m.entries, m.fact))
	}
	for _, m := range []struct {
		key     string
		entries []string
		form    *regexp.Regexp
		holds   condition
	}{
		{"vpcs", d.VPCs, regexpVPC, oneOf("vpcs", d.VPCs, func(f node.Facts) string { return f.VPC })},
		{"subnets", d.Subnets, regexpSubnet, oneOf("subnets", d.Subnets, func(f node.Facts) string { return f.Subnet })},
		{"instance_profiles", d.InstanceProfiles, regexpProfile, profiles("instance_profiles", d.InstanceProfiles)},
	} {
		if m.entries == nil {
			continue
		}
		if err := checkEntries(m.entries, m.form); err != nil {
			return nil, in(m.key, err)
		}
		list = append(list, m.holds)
	}
	return list, nil
}

// provenance returns the conditions on the image and the age. Every rule must set both: a
// rule without them would admit any image that someone in a listed account starts, and
// any old machine.
func (d matchDocument) provenance(limits Limits) ([]condition, error) {
	var list []condition
	if d.ImageOwners == nil {
		return nil, in("image_owners", errors.New("required: list accounts, self or listed; [any] waives it"))
	}
	if !slices.Equal(d.ImageOwners, []string{anything}) {
		if err := checkEntries(d.ImageOwners, regexpImageOwner); err != nil {
			return nil, in("image_owners", err)
		}
		list = append(list, imageOwners("image_owners", d.ImageOwners, limits))
	}
	if d.Images != nil {
		if err := checkEntries(d.Images, regexpImage); err != nil {
			return nil, in("images", err)
		}
		list = append(list, oneOf("images", d.Images, func(f node.Facts) string { return f.Image }))
	}
	if d.MaxAge == nil {
		return nil, in("max_age", errors.New("required: the longest time from launch to first enrollment, 24h for example; any waives it"))
	}
	if *d.MaxAge != anything {
		longest, err := ParseDuration(*d.MaxAge)
		if err != nil || longest <= 0 {
			return nil, in("max_age", fmt.Errorf("%s is neither a duration (90m, 24h, 7d) nor any", quote(*d.MaxAge)))
		}
		list = append(list, maxAge("max_age", longest))
	}
	return list, nil
}

// These are the forms of AWS's identifiers: a mistyped one would never match.
var (
	regexpAccount    = regexp.MustCompile(`^[0-9]{12}$`)
	regexpRegion     = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)+$`)
	regexpVPC        = regexp.MustCompile(`^vpc-([0-9a-f]{17}|[0-9a-f]{8})$`)
	regexpSubnet     = regexp.MustCompile(`^subnet-([0-9a-f]{17}|[0-9a-f]{8})$`)
	regexpImage      = regexp.MustCompile(`^ami-([0-9a-f]{17}|[0-9a-f]{8})$`)
	regexpImageOwner = regexp.MustCompile(`^([0-9]{12}|self|listed)$`)
	// Allow one * at most, in the last part (IAM User Guide, "IAM identifiers": a path has any
	// ASCII characters except control characters and space, a name letters, digits and
	// +=,.@_-).
	regexpProfile = regexp.MustCompile(`^arn:aws[a-z-]*:iam::[0-9]{12}:instance-profile/([!-)+-.0-~]+/)*[A-Za-z0-9+=,.@_*-]+$`)
)

// checkEntries checks the number and the form of a list's entries.
func checkEntries(list []string, form *regexp.Regexp) error {
	switch {
	case len(list) == 0:
		return errors.New("an empty list matches nothing; leave it out to match all")
	case len(list) > maxEntries:
		return fmt.Errorf("%d entries, more than %d", len(list), maxEntries)
	}
	for _, entry := range list {
		if !form.MatchString(entry) {
			return fmt.Errorf("%s does not have the form %s", quote(entry), form)
		}
	}
	return nil
}

// narrows stops a policy from admitting more than the deployment does: a person who may
// edit the policy must not be able to admit another account.
func texts[T ~string](list []T) []string {
	plain := make([]string, len(list))
	for n, value := range list {
		plain[n] = string(value)
	}
	return plain
}

func narrows(list, allowed []string) error {
	for _, entry := range list {
		if !slices.Contains(allowed, entry) {
			return fmt.Errorf("%s is not in the deployment's list; a policy can only narrow it", quote(entry))
		}
	}
	return nil
}

func tagConditions(key string, tags map[string][]string, of func(node.Facts) map[string]string) ([]condition, error) {
	if tags != nil && len(tags) == 0 || len(tags) > maxEntries {
		return nil, fmt.Errorf("%d tags; list 1 to %d or leave it out", len(tags), maxEntries)
	}
	var list []condition
	for _, tag := range slices.Sorted(maps.Keys(tags)) {
		patterns, err := globs(tags[tag])
		if err == nil && len(patterns) == 0 {
			err = errors.New(`an empty list matches nothing; ["*"] matches every value`)
		}
		if err != nil {
			return nil, in(tag, err)
		}
		list = append(list, tagged(key, tag, patterns, of))
	}
	return list, nil
}

func (d *tagNameDocument) tagName() (*tagName, error) {
	if d == nil {
		return nil, nil
	}
	pattern, err := parseNamePattern(d.Pattern)
	if err != nil {
		return nil, in("pattern", err)
	}
	if len(d.Suffixes) > maxSuffixes {
		return nil, in("suffixes", fmt.Errorf("%d entries, more than %d", len(d.Suffixes), maxSuffixes))
	}
	for _, suffix := range d.Suffixes {
		if err := checkSuffix(suffix); err != nil {
			return nil, in("suffixes", err)
		}
	}
	return &tagName{pattern: pattern, suffixes: d.Suffixes}, nil
}

func checkPrincipals(list []principalKind) error {
	for i, kind := range list {
		if !slices.Contains(principalKinds(), kind) {
			return fmt.Errorf("%s is none of %q", quote(string(kind)), principalKinds())
		}
		if slices.Contains(list[:i], kind) {
			return fmt.Errorf("%s appears twice", kind)
		}
	}
	return nil
}

func lifetime(asked *Duration, longest time.Duration) (time.Duration, error) {
	if asked == nil {
		return min(DefaultLifetime, longest), nil
	}
	switch d := time.Duration(*asked); {
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
		return l, in("static", fmt.Errorf("%d labels, more than %d", len(d.Static), maxStaticLabels))
	}
	for _, key := range slices.Sorted(maps.Keys(d.Static)) {
		if err := checkStatic(key, d.Static[key]); err != nil {
			return l, in("static", in(key, err))
		}
	}
	if err := checkTagPrefix(l.tagPrefix); err != nil {
		return l, in("tag_prefix", err)
	}
	if d.AllowTags == nil {
		d.AllowTags = []string{"*"}
	}
	var err error
	if l.allow, err = globs(d.AllowTags); err != nil {
		return l, in("allow_tags", err)
	}
	if l.deny, err = globs(d.DenyTags); err != nil {
		return l, in("deny_tags", err)
	}
	return l, nil
}

func checkTagPrefix(prefix string) error {
	if yieldsReserved(prefix) {
		return fmt.Errorf("%s would let a tag set a label that begins with %s; the signer reserves those",
			quote(prefix), strings.Join(node.ReservedPrefixes(), ", "))
	}
	if len(prefix) > node.MaxLabelKeyBytes/2 || !node.IsLabelKey(prefix) {
		return fmt.Errorf("a label's key cannot begin with %s", quote(prefix))
	}
	return nil
}

func checkStatic(key, value string) error {
	switch {
	case key == node.Wildcard:
		return errors.New("the key * means any label in a Teleport role")
	case node.IsReserved(key):
		return errors.New("the signer sets this label itself")
	case !node.IsLabelKey(key):
		return fmt.Errorf("not a label key that Teleport accepts: use 1 to %d letters, digits and characters of /._:*-", node.MaxLabelKeyBytes)
	case !node.IsLabelValue(value):
		return errors.New("the value is too long or not plain text")
	}
	return nil
}

func globs(patterns []string) ([]glob, error) {
	if len(patterns) > maxEntries {
		return nil, fmt.Errorf("%d patterns, more than %d", len(patterns), maxEntries)
	}
	list := make([]glob, 0, len(patterns))
	for _, p := range patterns {
		if p == "" || len(p) > maxGlobBytes {
			return nil, fmt.Errorf("pattern %s: use 1 to %d characters", quote(p), maxGlobBytes)
		}
		list = append(list, glob(p))
	}
	return list, nil
}
