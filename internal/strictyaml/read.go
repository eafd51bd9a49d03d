package strictyaml

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// read reads a value into a Go value of a type that a file's struct may have: structs,
// pointers, lists, maps of strings, plain values, and encoding.TextUnmarshaler for texts
// of a form. A struct that implements it may be written as a text or as a mapping.
func (f *File) read(v Value, into reflect.Value) {
	n := v.node
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		f.breaks(v, "anchors and aliases are not allowed; write the value out")
	case n.Tag == "!!null":
		if f.partial {
			f.broken[n] = true // what it had may have been left out
		} else if !f.options.EmptyIsUnset {
			f.breaks(v, "empty value; write one, or remove the key")
		}
	case into.Kind() == reflect.Pointer:
		value := reflect.New(into.Type().Elem())
		f.read(v, value.Elem())
		into.Set(value)
	case n.Kind == yaml.ScalarNode:
		f.readScalar(v, into)
	case into.Kind() == reflect.Struct && n.Kind == yaml.MappingNode:
		f.readStruct(v, into)
	case into.Kind() == reflect.Map && n.Kind == yaml.MappingNode:
		f.readMap(v, into)
	case into.Kind() == reflect.Slice && n.Kind == yaml.SequenceNode:
		list := reflect.MakeSlice(into.Type(), len(n.Content), len(n.Content))
		for i := range n.Content {
			f.read(v.Entry(i), list.Index(i))
		}
		into.Set(list)
	default:
		f.breaks(v, wanted(into, n))
	}
}

// breaks adds a problem with a value that cannot be read.
func (f *File) breaks(v Value, message string) {
	v.Failf("%s", message)
	f.broken[v.node] = true
}

// wanted says what to write where something else was found.
func wanted(into reflect.Value, n *yaml.Node) string {
	kind := into.Kind()
	if kind == reflect.Slice && n.Kind == yaml.ScalarNode {
		return fmt.Sprintf("write a list, [%s]", shorten(quoteIfNeeded(n), maxExcerpt))
	}
	if kind == reflect.Slice {
		return "write a list: begin each entry with a dash"
	}
	if kind == reflect.Struct || kind == reflect.Map {
		return "write keys and values, not " + kindOf(n)
	}
	if n.Kind == yaml.SequenceNode && len(n.Content) == 1 && n.Content[0].Kind == yaml.ScalarNode {
		return fmt.Sprintf("write one value, not a list: %s", shorten(quoteIfNeeded(n.Content[0]), maxExcerpt))
	}
	return fmt.Sprintf("write one value, not %s; put a text that begins with { or [ in quotes", kindOf(n))
}

// quoteIfNeeded returns a scalar as it was written.
func quoteIfNeeded(n *yaml.Node) string {
	if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 || strings.ContainsAny(n.Value, ",[]{}#&*!|>'\"%@`:") {
		return fmt.Sprintf("%q", n.Value)
	}
	return n.Value
}

func kindOf(n *yaml.Node) string {
	if n.Kind == yaml.MappingNode {
		return "keys and values"
	}
	if n.Kind == yaml.SequenceNode {
		return "a list"
	}
	return fmt.Sprintf("%q", shorten(n.Value, maxExcerpt))
}

func (f *File) readScalar(v Value, into reflect.Value) {
	n := v.node
	if tag := n.Tag; tag != "" && !slices.Contains([]string{"!!str", "!!int", "!!float", "!!bool", "!!timestamp", "!!merge"}, tag) {
		f.breaks(v, fmt.Sprintf("%s is a YAML tag; put a text that begins with ! in quotes", shorten(tag, maxExcerpt)))
		return
	}
	if text, ok := into.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if err := text.UnmarshalText([]byte(n.Value)); err != nil {
			f.breaks(v, err.Error())
		}
		return
	}
	wrong := ""
	switch into.Kind() {
	case reflect.String:
		into.SetString(n.Value)
		return
	case reflect.Int:
		wrong = "is not a whole number"
	case reflect.Bool:
		wrong = "is neither true nor false"
	default:
		f.breaks(v, wanted(into, n))
		return
	}
	if n.Decode(into.Addr().Interface()) != nil {
		if kindWithoutQuotes(n) == into.Kind() {
			wrong += "; remove the quotes"
		}
		f.breaks(v, fmt.Sprintf("%q %s", shorten(n.Value, maxExcerpt), wrong))
	}
}

// kindWithoutQuotes returns what a quoted text would be without its quotes.
func kindWithoutQuotes(n *yaml.Node) reflect.Kind {
	if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) == 0 {
		return reflect.Invalid
	}
	bare := *n
	bare.Style, bare.Tag = 0, ""
	var value any
	if bare.Decode(&value) != nil {
		return reflect.Invalid
	}
	return reflect.ValueOf(value).Kind()
}

// pairs calls a function with each key of a mapping and its value, and reports keys that
// are none.
func (f *File) pairs(v Value, each func(key *yaml.Node, below Value)) {
	seen := make(map[string]int)
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		key, value := v.node.Content[i], v.node.Content[i+1]
		at := Value{file: f, parent: &v, node: key, mark: key, title: v.title, path: v.path}
		first, again := seen[key.Value]
		switch {
		case key.Kind == yaml.AliasNode || key.Anchor != "" || key.Tag == "!!merge":
			at.Failf("anchors, aliases and merge keys (<<) are not allowed; write the keys out")
		case key.Kind != yaml.ScalarNode:
			at.Failf("a key must be plain text; put a text that begins with { or [ in quotes")
		case key.Tag == "!!null":
			at.Failf("a key is missing before the colon")
		case again:
			at.Failf("key %s already defined on line %d; remove one", shorten(key.Value, maxExcerpt), first)
		default:
			seen[key.Value] = key.Line
			each(key, v.below(key.Value, key, value))
		}
	}
}

func (f *File) readMap(v Value, into reflect.Value) {
	m := reflect.MakeMapWithSize(into.Type(), len(v.node.Content)/2)
	f.pairs(v, func(key *yaml.Node, below Value) {
		value := reflect.New(into.Type().Elem()).Elem()
		f.read(below, value)
		m.SetMapIndex(reflect.ValueOf(key.Value), value)
	})
	into.Set(m)
}

func (f *File) readStruct(v Value, into reflect.Value) {
	fields := fieldsOf(into.Type())
	f.within = append(f.within, into.Type())
	f.pairs(v, func(key *yaml.Node, below Value) {
		if i := slices.IndexFunc(fields, func(k field) bool { return k.name == key.Value }); i >= 0 {
			f.read(below, into.Field(fields[i].index))
			return
		}
		f.unknown(v, key)
	})
	f.within = f.within[:len(f.within)-1]
}

// field is a key of a struct.
type field struct {
	name  string
	index int
}

// fieldsOf returns the keys of a struct, by the tags of its fields.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		if tag, ok := t.Field(i).Tag.Lookup("yaml"); ok {
			name, _, _ := strings.Cut(tag, ",")
			fields = append(fields, field{name, i})
		}
	}
	return fields
}
