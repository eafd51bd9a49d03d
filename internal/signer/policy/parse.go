package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/hallmark-ssh/hallmark/internal/strictyaml"
)

const (
	// fileVersion is the version of the file format that this package reads.
	fileVersion = 1

	maxFileBytes    = 256 << 10
	maxRules        = 100
	maxEntries      = 100 // of a list
	maxStaticLabels = 32
	maxGlobBytes    = 256 // as long as a tag's value can be
	defaultPort     = 22
)

// builtIn is the policy of a deployment without a policy file: it admits everything that
// the deployment allows, from images of its own accounts, soon after launch.
const builtIn = `version: 1
rules:
  - name: default
    match:
      image_owners: [listed]
      max_age: 24h
`

// Default returns the policy of a deployment without a policy file: one rule
// named "default".
func Default(limits Limits) (*Policy, error) { return Parse([]byte(builtIn), limits) }

// Parse reads a policy file strictly: unknown and repeated keys, keys without a value,
// aliases, and anything that would widen the limits are errors. If the file is wrong, the
// error wraps a *strictyaml.Error that lists everything that is wrong.
func Parse(data []byte, limits Limits) (*Policy, error) {
	p, err := parse(data, limits)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return p, nil
}

func parse(data []byte, limits Limits) (*Policy, error) {
	if m := limits.MaxLifetime; m < ShortestLifetime || m > LongestLifetime {
		return nil, fmt.Errorf("the deployment's longest lifetime is %s; it must be %s to %s", Duration(m), Duration(ShortestLifetime), Duration(LongestLifetime))
	}
	var document fileDocument
	file := strictyaml.Decode(data, &document, strictyaml.Options{MaxBytes: maxFileBytes, Titles: map[string]string{"rules": "rule"}})
	sum := sha256.Sum256(data)
	p := &Policy{SHA256: hex.EncodeToString(sum[:]), Size: len(data), limits: limits}
	if file.Readable() {
		p.rules = rules(document, file.Top(), limits)
	}
	if err := file.Err(); err != nil {
		return nil, err
	}
	return p, nil
}

// rules checks a document, and returns its rules.
func rules(d fileDocument, at strictyaml.Value, limits Limits) []rule {
	version, list := at.Key("version"), at.Key("rules")
	switch {
	case !version.Present():
		version.Missing(fmt.Sprintf("write version: %d", fileVersion))
	case d.Version != fileVersion:
		version.Failf("version is %d; this signer reads version %d", d.Version, fileVersion)
	}
	switch {
	case !list.Present():
		list.Missing(fmt.Sprintf("list 1 to %d rules", maxRules))
		return nil
	case len(d.Rules) == 0 || len(d.Rules) > maxRules:
		list.Failf("%d rules; list 1 to %d", len(d.Rules), maxRules)
		return nil
	}
	b := builder{limits: limits}
	var all []rule
	lines := make(map[string]int) // of names
	for i, document := range d.Rules {
		entry := list.Entry(i)
		name := entry.Key("name")
		if line, again := lines[document.Name]; again && document.Name != "" {
			name.Failf("the rule on line %d has the same name", line)
		}
		lines[document.Name] = entry.Line()
		all = append(all, b.rule(document, entry))
	}
	return all
}
