package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	// Version is the version of the file format that this package reads.
	Version = 1

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

// Parse reads a policy file strictly: unknown and repeated keys, keys without a
// value, aliases, and anything that would widen the limits are errors that name
// the line.
func Parse(data []byte, limits Limits) (*Policy, error) {
	p, err := parse(data, limits)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return p, nil
}

func parse(data []byte, limits Limits) (*Policy, error) {
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("%d bytes, more than %d", len(data), maxFileBytes)
	}
	if m := limits.MaxLifetime; m < ShortestLifetime || m > LongestLifetime {
		return nil, fmt.Errorf("the deployment's longest lifetime is %s; it must be %s to %s", m, ShortestLifetime, LongestLifetime)
	}
	file, root, err := decode(data)
	if err != nil {
		return nil, err
	}
	if file.Version != Version {
		return nil, fmt.Errorf("line %d: version is %d; this signer reads version %d", lineOf(root, "version"), file.Version, Version)
	}
	if len(file.Rules) == 0 || len(file.Rules) > maxRules {
		return nil, fmt.Errorf("line %d: %d rules; there must be 1 to %d", lineOf(root, "rules"), len(file.Rules), maxRules)
	}
	sum := sha256.Sum256(data)
	p := &Policy{SHA256: hex.EncodeToString(sum[:]), Size: len(data)}
	b := builder{limits: limits}
	_, rules := entry(root, "rules")
	for i, document := range file.Rules {
		node := rules.Content[i]
		r, err := b.rule(document)
		if slices.ContainsFunc(p.rules, func(other rule) bool { return other.name == document.Name }) {
			err = in("name", errors.New("another rule has the same name"))
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: rule %s: %w", lineOf(node, pathOf(err)...), quote(document.Name), err)
		}
		r.line = node.Line
		p.rules = append(p.rules, r)
	}
	return p, nil
}

// decode returns the file's content, and its tree, which has the lines.
func decode(data []byte) (file fileDocument, top *yaml.Node, err error) {
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
		return file, nil, plain(err)
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return file, nil, errors.New("the file holds more than one YAML document")
	}
	return file, root.Content[0], nil
}

// plain turns a decoder's error into one for the file's author, who does not know Go's
// types.
func plain(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("the file is empty")
	}
	if mismatches, ok := errors.AsType[*yaml.TypeError](err); ok {
		return fmt.Errorf("%.500s", regexpGoType.ReplaceAllString(strings.Join(mismatches.Errors, "; "), ""))
	}
	return err
}

var regexpGoType = regexp.MustCompile(` (in type|into) policy\.\w+`)

// refuseLoose refuses YAML features that would make a policy ambiguous: a key without a
// value, which would silently mean its default, and aliases and merge keys, which hide
// what a rule does.
func refuseLoose(n *yaml.Node) error {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return fmt.Errorf("line %d: anchors and aliases are not allowed", n.Line)
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		return fmt.Errorf("line %d: empty value; write one, or remove the key", n.Line)
	}
	for _, child := range n.Content {
		if err := refuseLoose(child); err != nil {
			return err
		}
	}
	return nil
}

// entry returns a mapping's key and its value, or nil.
func entry(n *yaml.Node, key string) (k, value *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i], n.Content[i+1]
		}
	}
	return nil, nil
}

// lineOf returns the line of the last key of a path that the file contains.
func lineOf(n *yaml.Node, path ...string) int {
	line := n.Line
	for _, key := range path {
		k, value := entry(n, key)
		if k == nil {
			break
		}
		line, n = k.Line, value
	}
	return line
}

// keyError is an error in the value of a key, or below it.
type keyError struct {
	key string
	err error
}

func in(key string, err error) error {
	if err == nil {
		return nil
	}
	return &keyError{key, err}
}

func (e *keyError) Error() string {
	separator := ": "
	if _, below := errors.AsType[*keyError](e.err); below {
		separator = "."
	}
	return fmt.Sprintf("%.128s%s%s", e.key, separator, e.err)
}

func (e *keyError) Unwrap() error { return e.err }

// pathOf returns the keys that lead to an error.
func pathOf(err error) []string {
	var path []string
	for e, ok := errors.AsType[*keyError](err); ok; e, ok = errors.AsType[*keyError](e.err) {
		path = append(path, e.key)
	}
	return path
}
