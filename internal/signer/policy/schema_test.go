package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	templates "github.com/hallmark-ssh/hallmark/templates/policy"
)

// schema is the part of JSON Schema (draft 7) that the policy's schema uses.
type schema struct {
	Schema      string `json:"$schema"`
	Title       string `json:"title"`
	Description string `json:"description"`
	Default     any    `json:"default"`

	Ref         string             `json:"$ref"`
	Definitions map[string]*schema `json:"definitions"`

	Type    string  `json:"type"`
	Const   any     `json:"const"`
	Enum    []any   `json:"enum"`
	Not     *schema `json:"not"`
	Pattern string  `json:"pattern"`

	MinLength     int  `json:"minLength"`
	MaxLength     *int `json:"maxLength"`
	MinItems      int  `json:"minItems"`
	MaxItems      *int `json:"maxItems"`
	UniqueItems   bool `json:"uniqueItems"`
	MinProperties int  `json:"minProperties"`
	MaxProperties *int `json:"maxProperties"`
	Minimum       *int `json:"minimum"`
	Maximum       *int `json:"maximum"`

	Items                *schema            `json:"items"`
	Required             []string           `json:"required"`
	Properties           map[string]*schema `json:"properties"`
	PropertyNames        *schema            `json:"propertyNames"`
	AdditionalProperties json.RawMessage    `json:"additionalProperties"` // false or a schema
}

func readSchema(t testing.TB) *schema {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(string(templates.Schema)))
	d.DisallowUnknownFields()
	var s schema
	if err := d.Decode(&s); err != nil {
		t.Fatalf("the schema uses what this test does not know: %v", err)
	}
	return &s
}

// of follows a reference, and returns the schema of properties without their own.
func (s *schema) of(root *schema) (self, others *schema) {
	if name, ok := strings.CutPrefix(s.Ref, "#/definitions/"); ok {
		s = root.Definitions[name]
	}
	others = &schema{}
	if string(s.AdditionalProperties) == "false" {
		others = nil
	} else if s.AdditionalProperties != nil {
		if err := json.Unmarshal(s.AdditionalProperties, others); err != nil {
			panic(err)
		}
	}
	return s, others
}

// The schema has every key that the parser knows, and no other.
func TestSchemaHasTheParsersKeys(t *testing.T) {
	root := readSchema(t)
	compareKeys(t, root, root, reflect.TypeFor[fileDocument](), "policy")
}

func compareKeys(t *testing.T, root, s *schema, document reflect.Type, path string) {
	s, others := s.of(root)
	switch document.Kind() {
	case reflect.Pointer:
		compareKeys(t, root, s, document.Elem(), path)
	case reflect.Slice:
		if s.Type != "array" || s.Items == nil {
			t.Fatalf("%s is a list, the schema says %q", path, s.Type)
		}
		compareKeys(t, root, s.Items, document.Elem(), path+"[]")
	case reflect.Map:
		if s.Type != "object" || others == nil {
			t.Fatalf("%s is a map, the schema says %q", path, s.Type)
		}
		compareKeys(t, root, others, document.Elem(), path+".*")
	case reflect.Struct:
		if others != nil {
			t.Errorf("%s: the schema admits unknown keys", path)
		}
		var known []string
		for i := range document.NumField() {
			field := document.Field(i)
			key := field.Tag.Get("yaml")
			known = append(known, key)
			if sub := s.Properties[key]; sub != nil {
				compareKeys(t, root, sub, field.Type, path+"."+key)
			}
		}
		slices.Sort(known)
		if listed := slices.Sorted(maps.Keys(s.Properties)); !slices.Equal(listed, known) {
			t.Errorf("%s: the parser knows %q, the schema %q", path, known, listed)
		}
	default: // a plain value
	}
}

// violation returns how a value violates the schema, or "".
func violation(root, s *schema, value any, path string) string {
	s, others := s.of(root)
	if s.Const != nil && fmt.Sprint(value) != fmt.Sprint(s.Const) || s.Enum != nil && !slices.Contains(s.Enum, value) {
		return path + ": not one of the values"
	}
	if s.Not != nil && violation(root, s.Not, value, path) == "" {
		return path + ": is what it must not be"
	}
	outside := func(n, least int, most *int) bool { return n < least || most != nil && n > *most }
	kind := "boolean"
	switch value := value.(type) {
	case string:
		kind = "string"
		if outside(len([]rune(value)), s.MinLength, s.MaxLength) || !regexp.MustCompile(s.Pattern).MatchString(value) {
			return path + ": not of the form"
		}
	case int:
		kind = "integer"
		if s.Minimum != nil && outside(value, *s.Minimum, s.Maximum) {
			return path + ": out of bounds"
		}
	case []any:
		kind = "array"
		if outside(len(value), s.MinItems, s.MaxItems) || s.UniqueItems && len(slices.Compact(slices.SortedFunc(slices.Values(value), byText))) < len(value) {
			return path + ": number of items"
		}
		for _, item := range value {
			if v := violation(root, orEmpty(s.Items), item, path+"[]"); v != "" {
				return v
			}
		}
	case map[string]any:
		kind = "object"
		if outside(len(value), s.MinProperties, s.MaxProperties) {
			return path + ": number of keys"
		}
		for _, key := range s.Required {
			if _, ok := value[key]; !ok {
				return path + "." + key + ": required"
			}
		}
		for key, v := range value {
			sub := s.Properties[key]
			if sub == nil {
				sub = others
			}
			if sub == nil {
				return path + "." + key + ": unknown"
			}
			if v := violation(root, sub, v, path+"."+key); v != "" {
				return v
			}
			if v := violation(root, orEmpty(s.PropertyNames), key, path+"."+key); v != "" {
				return v
			}
		}
	}
	if s.Type != "" && s.Type != kind {
		return path + ": is " + kind
	}
	return ""
}

func byText(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) }

func orEmpty(s *schema) *schema {
	if s == nil {
		return &schema{}
	}
	return s
}

// The parser refuses what an editor underlines, and an editor underlines what the parser
// refuses, as far as a schema can say it.
func TestSchemaAgreesWithTheParser(t *testing.T) {
	tests := map[string]bool{
		`name: a, match: {ANY}`:                                      true,
		`name: a`:                                                    false,
		`name: a, match: {max_age: any}`:                             false,
		`name: a, match: {image_owners: [any]}`:                      false,
		`name: A, match: {ANY}`:                                      false,
		`name: a, match: {ANY}, shade: red`:                          false,
		`name: a, match: {ANY, vpc: [vpc-0a1b2c3d]}`:                 false,
		`name: a, match: {ANY, vpcs: [vpc-0a1b2c3d]}`:                true,
		`name: a, match: {ANY, vpcs: []}`:                            false,
		`name: a, match: {ANY, vpcs: [vpc-x]}`:                       false,
		`name: a, match: {ANY, subnets: [subnet-0a1b2c3d4e5f60718]}`: true,
		`name: a, match: {ANY, subnets: [subnet-0a1b2c3d4e5f6071]}`:  false,
		`name: a, match: {ANY, images: ["ami-*"]}`:                   false,
		`name: a, match: {ANY, accounts: ["1"]}`:                     false,
		`name: a, match: {ANY, instance_profiles: ["arn:aws-cn:iam::111122223333:instance-profile/a/b*"]}`:  true,
		`name: a, match: {ANY, instance_profiles: ["arn:aws:iam::111122223333:instance-profile/*/b"]}`:      false,
		`name: a, match: {image_owners: [self, listed, "444455556666"], max_age: 1h30m}`:                    true,
		`name: a, match: {image_owners: [amazon], max_age: any}`:                                            false,
		`name: a, match: {image_owners: [any], max_age: 1d}`:                                                true,
		`name: a, match: {image_owners: [any], max_age: 1d12h30m}`:                                          true,
		`name: a, match: {image_owners: [any], max_age: 1.5d}`:                                              false,
		`name: a, match: {image_owners: [any], max_age: 12h1d}`:                                             false,
		`name: a, match: {image_owners: [any], max_age: 1w}`:                                                false,
		`name: a, match: {ANY, tags: {env: [prod, "st*"]}}`:                                                 true,
		`name: a, match: {ANY, tags: {env: prod}}`:                                                          false,
		`name: a, match: {ANY, tags: {env: []}}`:                                                            false,
		`name: a, match: {ANY, image_tags: {}}`:                                                             false,
		`name: a, match: {ANY}, when: "true"`:                                                               true,
		`name: a, match: {ANY}, hostname: "{instance-id}"`:                                                  true,
		`name: a, match: {ANY}, hostname: web`:                                                              false,
		`name: a, match: {ANY}, teleport_hostname: {pattern: a}`:                                            true,
		`name: a, match: {ANY}, teleport_hostname: {}`:                                                      false,
		`name: a, match: {ANY}, teleport_hostname: {pattern: a, suffixes: [.b.c]}`:                          true,
		`name: a, match: {ANY}, teleport_hostname: {pattern: a, suffixes: [b.c]}`:                           false,
		`name: a, match: {ANY}, address: ipv6, port: 2222`:                                                  true,
		`name: a, match: {ANY}, address: dns`:                                                               false,
		`name: a, match: {ANY}, port: 0`:                                                                    false,
		`name: a, match: {ANY}, port: 65536`:                                                                false,
		`name: a, match: {ANY}, port: ssh`:                                                                  false,
		`name: a, match: {ANY}, principals: [ipv6, private_dns]`:                                            true,
		`name: a, match: {ANY}, principals: [ipv6, ipv6]`:                                                   false,
		`name: a, match: {ANY}, principals: [dns]`:                                                          false,
		`name: a, match: {ANY}, labels: {static: {a: b}, tag_prefix: t/, allow_tags: [], deny_tags: ["*"]}`: true,
		`name: a, match: {ANY}, labels: {add: [account-name, account-path]}`:                                true,
		`name: a, match: {ANY}, labels: {add: [account-id]}`:                                                false,
		`name: a, match: {ANY}, labels: {add: [account-name, account-name]}`:                                false,
		`name: a, match: {ANY}, labels: {static: {hallmark/a: b}}`:                                          false,
		`name: a, match: {ANY}, labels: {static: {"*": b}}`:                                                 false,
		`name: a, match: {ANY}, labels: {static: {"a b": b}}`:                                               false,
		`name: a, match: {ANY}, labels: {tag_prefix: ""}`:                                                   false,
		`name: a, match: {ANY}, labels: {deny_tags: [""]}`:                                                  false,
		`name: a, match: {ANY}, certificate_lifetime: 36h`:                                                  true,
		`name: a, match: {ANY}, certificate_lifetime: 7d`:                                                   true,
		`name: a, match: {ANY}, certificate_lifetime: 1.5d`:                                                 false,
		`name: a, match: {ANY}, certificate_lifetime: 36`:                                                   false,
		`name: a, match: {ANY}, when_stopped: keep`:                                                         true,
		`name: a, match: {ANY}, when_stopped: remove`:                                                       true,
		`name: a, match: {ANY}, when_stopped: "true"`:                                                       false,
		`name: a, match: {ANY}, when_stopped: ""`:                                                           false,
	}
	root := readSchema(t)
	for text, want := range tests {
		file := anyImage("version: 1\nrules: [{" + text + "}]")
		if _, err := Parse(file, limits()); (err == nil) != want {
			t.Errorf("%s: the parser says %v", text, err)
		}
		if v := validate(t, root, file); (v == "") != want {
			t.Errorf("%s: the schema says %q", text, v)
		}
	}
}

func validate(t *testing.T, root *schema, file []byte) string {
	t.Helper()
	var value any
	if err := yaml.Unmarshal(file, &value); err != nil {
		t.Fatal(err)
	}
	return violation(root, root, value, "policy")
}

func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../../templates/policy/*.yaml")
	if err != nil || len(files) < 2 {
		t.Fatalf("examples %q, error %v", files, err)
	}
	l := limits()
	l.Accounts = []ec2ref.Account{account, "444455556666"}
	root := readSchema(t)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(text, l); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if v := validate(t, root, text); v != "" {
			t.Errorf("%s: %s", file, v)
		}
		if !strings.HasPrefix(string(text), "# yaml-language-server: $schema=policy.schema.json\n") {
			t.Errorf("%s does not name its schema", file)
		}
	}
}

func TestDefaultExampleIsTheBuiltInPolicy(t *testing.T) {
	text, err := os.ReadFile("../../../templates/policy/default.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var example, own fileDocument
	if err := yaml.Unmarshal(text, &example); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(builtIn), &own); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(example, own) {
		t.Errorf("the example is %+v, the built-in policy %+v", example, own)
	}
}

// The production example shows every key.
func TestProductionExampleHasEveryKey(t *testing.T) {
	text, err := os.ReadFile("../../../templates/policy/production.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, document := range []reflect.Type{
		reflect.TypeFor[ruleDocument](), reflect.TypeFor[matchDocument](), reflect.TypeFor[tagNameDocument](), reflect.TypeFor[labelsDocument](),
	} {
		for i := range document.NumField() {
			if key := document.Field(i).Tag.Get("yaml"); !regexp.MustCompile(`(?m)^[ -]*` + key + `:`).Match(text) {
				t.Errorf("no %s", key)
			}
		}
	}
}
