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

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/strictyaml"
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
		Add       []string          `yaml:"add"`
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

// rule checks a document, adds what is wrong to the file's problems, and fills in the
// defaults.
func (b *builder) rule(d ruleDocument, at strictyaml.Value) rule {
	r := rule{name: d.Name, line: at.Line(), document: d, principals: d.Principals, port: or(d.Port, defaultPort)}
	if name := at.Key("name"); !name.Present() {
		name.Missing("use 1 to 63 lower-case letters, digits and hyphens")
	} else if !regexpRuleName.MatchString(d.Name) {
		name.Failf("use 1 to 63 lower-case letters, digits and hyphens")
	}
	r.match = d.Match.conditions(b.limits, at.Key("match"))
	r.when = b.expression(d.When, at.Key("when"))
	r.tagName = d.TeleportHostname.tagName(at.Key("teleport_hostname"))
	r.labels = d.Labels.rules(at.Key("labels"))
	if r.port < 1 || r.port > 65535 {
		at.Key("port").Failf("%d is not in 1 to 65535", r.port)
	}
	checkPrincipals(d.Principals, at.Key("principals"))
	var err error
	r.hostname, err = parseTemplate(or(d.Hostname, defaultTemplate))
	at.Key("hostname").Fail(err)
	r.address, err = parseAddress(d.Address)
	at.Key("address").Fail(err)
	r.lifetime, err = lifetime(d.CertificateLifetime, b.limits.MaxLifetime)
	at.Key("certificate_lifetime").Fail(err)
	r.removeWhenStopped, err = parseWhenStopped(d.WhenStopped)
	at.Key("when_stopped").Fail(err)
	return r
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

func (b *builder) expression(text *string, at strictyaml.Value) *expression {
	if text == nil {
		return nil
	}
	if b.env == nil {
		env, err := expressions()
		if err != nil {
			at.Fail(err)
			return nil
		}
		b.env = env
	}
	e, wrong := compile(b.env, *text)
	for _, w := range wrong {
		at.FailAt(w.offset, w.err)
	}
	return e
}

// conditions returns a rule's conditions in the order in which a refusal names them:
// where the instance is, what it runs, and last its tags.
func (d matchDocument) conditions(limits Limits, at strictyaml.Value) []condition {
	imageTags := tagConditions("image_tags", d.ImageTags, func(f node.Facts) map[string]string { return f.ImageTags }, at.Key("image_tags"))
	tags := tagConditions("tags", d.Tags, func(f node.Facts) map[string]string { return f.Tags }, at.Key("tags"))
	for n, holds := range imageTags {
		imageTags[n] = ofOwnImage(holds)
	}
	return slices.Concat(d.place(limits, at), d.provenance(limits, at), imageTags, tags)
}

func (d matchDocument) place(limits Limits, at strictyaml.Value) []condition {
	var list []condition
	for _, m := range []struct {
		key              string
		entries, allowed []string
		form             form
		fact             func(node.Facts) string
		// open admits more than is listed; nil admits no more.
		open exception
	}{
		{"accounts", d.Accounts, texts(limits.Accounts), formAccount(), func(f node.Facts) string { return f.Account.String() }, limits.members()},
		{"regions", d.Regions, texts(limits.Regions), formRegion(), func(f node.Facts) string { return f.Region.String() }, nil},
	} {
		if m.entries == nil {
			if !limits.unlimited {
				list = append(list, m.open.or(oneOf(m.key, m.allowed, m.fact)))
			}
			continue
		}
		checkEntries(m.entries, m.form, at.Key(m.key))
		if !limits.unlimited && m.open == nil {
			narrows(m.entries, m.allowed, m.form, at.Key(m.key))
		}
		list = append(list, oneOf(m.key, m.entries, m.fact))
	}
	for _, m := range []struct {
		key     string
		entries []string
		form    form
		holds   condition
	}{
		{"vpcs", d.VPCs, formVPC(), oneOf("vpcs", d.VPCs, func(f node.Facts) string { return f.VPC })},
		{"subnets", d.Subnets, formSubnet(), oneOf("subnets", d.Subnets, func(f node.Facts) string { return f.Subnet })},
		{"instance_profiles", d.InstanceProfiles, formProfile(), profiles("instance_profiles", d.InstanceProfiles)},
	} {
		if m.entries != nil {
			checkEntries(m.entries, m.form, at.Key(m.key))
			list = append(list, m.holds)
		}
	}
	return list
}

// provenance returns the conditions on the image and the age. Every rule must set both: a
// rule without them would admit any image that someone in a listed account starts, and
// any old machine.
func (d matchDocument) provenance(limits Limits, at strictyaml.Value) []condition {
	var list []condition
	owners := at.Key("image_owners")
	switch {
	case d.ImageOwners == nil:
		owners.Failf("required: list accounts, self or listed; [any] waives it")
	case !slices.Equal(d.ImageOwners, []string{anything}):
		if slices.Contains(d.ImageOwners, anything) {
			owners.Failf("any waives the check, so it stands alone: write [any]")
		} else {
			checkEntries(d.ImageOwners, formImageOwner(), owners)
		}
		list = append(list, imageOwners("image_owners", d.ImageOwners, limits))
	}
	if d.Images != nil {
		checkEntries(d.Images, formImage(), at.Key("images"))
		list = append(list, oneOf("images", d.Images, func(f node.Facts) string { return f.Image }))
	}
	switch age := at.Key("max_age"); {
	case d.MaxAge == nil:
		age.Failf("required: the longest time from launch to first enrollment, such as 24h or 7d; any waives it")
	case *d.MaxAge != anything:
		longest, err := ParseDuration(*d.MaxAge)
		if err != nil || longest <= 0 {
			age.Failf("%s is neither any nor a duration above 0; write %s", quote(*d.MaxAge), exampleOf(*d.MaxAge))
		}
		list = append(list, maxAge("max_age", longest))
	}
	return list
}

// form is the form of an identifier of AWS: a mistyped one would never match.
type form struct {
	matches func(text string) bool
	is      string // what it is, with an example
}

var (
	regexpVPC    = regexp.MustCompile(`^vpc-([0-9a-f]{17}|[0-9a-f]{8})$`)
	regexpSubnet = regexp.MustCompile(`^subnet-([0-9a-f]{17}|[0-9a-f]{8})$`)
	regexpImage  = regexp.MustCompile(`^ami-([0-9a-f]{17}|[0-9a-f]{8})$`)
	// Allow one * at most, in the last part (IAM User Guide, "IAM identifiers": a path has any
	// ASCII characters except control characters and space, a name letters, digits and
	// +=,.@_-).
	regexpProfile = regexp.MustCompile(`^arn:aws[a-z-]*:iam::[0-9]{12}:instance-profile/([!-)+-.0-~]+/)*[A-Za-z0-9+=,.@_*-]+$`)
)

func formAccount() form {
	return form{isAccount, "an account of 12 digits, in quotes, such as \"111122223333\""}
}

func formRegion() form {
	return form{func(text string) bool { _, err := ec2ref.ParseRegion(text); return err == nil }, "an AWS region, such as us-west-2"}
}

func formImageOwner() form {
	return form{
		func(text string) bool { return text == ownAccount || text == listedAccounts || isAccount(text) },
		"self, listed or an account of 12 digits, in quotes",
	}
}

func isAccount(text string) bool {
	_, err := ec2ref.ParseAccount(text)
	return err == nil
}

func formVPC() form {
	return form{regexpVPC.MatchString, "a VPC id, such as vpc-0123456789abcdef0"}
}

func formSubnet() form {
	return form{regexpSubnet.MatchString, "a subnet id, such as subnet-0123456789abcdef0"}
}

func formImage() form {
	return form{regexpImage.MatchString, "an image id, such as ami-0123456789abcdef0"}
}

func formProfile() form {
	return form{regexpProfile.MatchString,
		"the ARN of an instance profile, such as arn:aws:iam::111122223333:instance-profile/web; a * may be in its last part only"}
}

// checkEntries checks the number and the form of a list's entries.
func checkEntries(list []string, form form, at strictyaml.Value) {
	switch {
	case len(list) == 0:
		at.Failf("an empty list matches nothing; leave it out to match all")
	case len(list) > maxEntries:
		at.Failf("%d entries, more than %d", len(list), maxEntries)
		return
	}
	for i, entry := range list {
		if !form.matches(entry) {
			at.Entry(i).Failf("%s is not %s", quote(entry), form.is)
		}
	}
}

func texts[T ~string](list []T) []string {
	plain := make([]string, len(list))
	for n, value := range list {
		plain[n] = string(value)
	}
	return plain
}

// narrows stops a policy from admitting more than the deployment does: a person who may
// edit the policy must not be able to admit another account.
func narrows(list, allowed []string, form form, at strictyaml.Value) {
	for i, entry := range list[:min(len(list), maxEntries)] {
		if form.matches(entry) && !slices.Contains(allowed, entry) {
			at.Entry(i).Failf("%s is not in the deployment's list; a policy can only narrow it", quote(entry))
		}
	}
}

func tagConditions(key string, tags map[string][]string, of func(node.Facts) map[string]string, at strictyaml.Value) []condition {
	if tags != nil && len(tags) == 0 || len(tags) > maxEntries {
		at.Failf("%d tags; list 1 to %d or leave it out", len(tags), maxEntries)
		return nil
	}
	var list []condition
	for _, tag := range slices.Sorted(maps.Keys(tags)) {
		patterns := globs(tags[tag], at.Key(tag))
		if len(patterns) == 0 {
			at.Key(tag).Failf(`an empty list matches nothing; ["*"] matches every value`)
		}
		list = append(list, tagged(key, tag, patterns, of))
	}
	return list
}

func (d *tagNameDocument) tagName(at strictyaml.Value) *tagName {
	if d == nil {
		return nil
	}
	if key := at.Key("pattern"); !key.Present() {
		key.Missing("write a regular expression for the names that the tag " + hostnameTag + " may give")
	}
	pattern, err := parseNamePattern(d.Pattern)
	if at.Key("pattern").Present() {
		at.Key("pattern").Fail(err)
	}
	suffixes := at.Key("suffixes")
	if len(d.Suffixes) > maxSuffixes {
		suffixes.Failf("%d entries, more than %d", len(d.Suffixes), maxSuffixes)
		return nil
	}
	for i, suffix := range d.Suffixes {
		suffixes.Entry(i).Fail(checkSuffix(suffix))
	}
	return &tagName{pattern: pattern, suffixes: d.Suffixes}
}

func checkPrincipals(list []principalKind, at strictyaml.Value) {
	for i, kind := range list {
		if !slices.Contains(principalKinds(), kind) {
			at.Entry(i).Failf("%s is not private_ip, public_ip, ipv6 or private_dns", quote(string(kind)))
		} else if slices.Contains(list[:i], kind) {
			at.Entry(i).Failf("%s appears twice; remove one", kind)
		}
	}
}

func lifetime(asked *Duration, longest time.Duration) (time.Duration, error) {
	if asked == nil {
		return min(DefaultLifetime, longest), nil
	}
	switch d := time.Duration(*asked); {
	case d < ShortestLifetime:
		return 0, fmt.Errorf("%s is shorter than %s", *asked, Duration(ShortestLifetime))
	case d > longest:
		return 0, fmt.Errorf("%s is longer than the deployment's %s; a policy can only narrow it", *asked, Duration(longest))
	default:
		return d.Truncate(time.Second), nil // the resolution of certificates
	}
}

func (d labelsDocument) rules(at strictyaml.Value) labelRules {
	l := labelRules{static: d.Static, add: d.Add, tagPrefix: or(d.TagPrefix, defaultTagPrefix)}
	static := at.Key("static")
	if len(d.Static) > maxStaticLabels {
		static.Failf("%d labels, more than %d", len(d.Static), maxStaticLabels)
		return l
	}
	for _, key := range slices.Sorted(maps.Keys(d.Static)) {
		static.Key(key).Fail(checkStatic(key, d.Static[key]))
	}
	at.Key("add").Fail(checkAdded(d.Add))
	at.Key("tag_prefix").Fail(checkTagPrefix(l.tagPrefix))
	if d.AllowTags == nil {
		d.AllowTags = []string{"*"}
	}
	l.allow = globs(d.AllowTags, at.Key("allow_tags"))
	l.deny = globs(d.DenyTags, at.Key("deny_tags"))
	return l
}

// checkAdded checks the names of labels that a rule asks for.
func checkAdded(list []string) error {
	known := node.AddedLabels()
	for i, name := range list {
		if !slices.Contains(known, name) {
			return fmt.Errorf("%s is none of %s", quote(name), strings.Join(known, ", "))
		}
		if slices.Contains(list[:i], name) {
			return fmt.Errorf("%s appears twice", name)
		}
	}
	return nil
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

func globs(patterns []string, at strictyaml.Value) []glob {
	if len(patterns) > maxEntries {
		at.Failf("%d patterns, more than %d", len(patterns), maxEntries)
		return nil
	}
	list := make([]glob, 0, len(patterns))
	for i, p := range patterns {
		if p == "" || len(p) > maxGlobBytes {
			at.Entry(i).Failf("pattern %s: use 1 to %d characters", quote(p), maxGlobBytes)
		}
		list = append(list, glob(p))
	}
	return list
}
