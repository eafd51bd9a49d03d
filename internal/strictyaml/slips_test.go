package strictyaml

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// slips returns texts with one slip each: what people leave out, cut off, or type too much.
func slips(text string) []string {
	var all []string
	for i := range len(text) {
		all = append(all, text[:i], text[:i]+text[i+1:])
		for _, extra := range []string{"[", "]", "{", "}", "'", "\"", ":", "-", ",", "#", "*", "&", "!", "%", "@", "|", ">", "?", "\t", " ", "\n", "\\"} {
			all = append(all, text[:i]+extra+text[i:])
		}
	}
	return all
}

// Whatever slip breaks a file, each problem is reported once, and in our words: the parser's
// own describe its grammar.
func TestSlips(t *testing.T) {
	const text = "version: 1\nrules:\n  - name: web\n    match:\n      tags: {env: [prod, 'x y']}\n    form: >-\n      a b\nlabels: {a: \"b\"}\n"
	wrong := make(map[string]string) // a slip for each wrong message
	for _, slip := range append(slips(text), "key: [\n", "a: {\n\n\n", "[", "{", "\"", "- ", "?", "a: ]", "a: }", "%", "...", "--- - x", "|", "a: |x", "? - a\n- b") {
		f, _ := decode(slip)
		e, ok := errors.AsType[*Error](f.Err())
		if !ok {
			continue
		}
		seen := make(map[Problem]bool)
		for _, p := range e.List {
			if seen[p] {
				wrong[fmt.Sprintf("twice: %s", p)] = slip
			}
			seen[p] = true
			if strings.Contains(p.Message, "not valid YAML") {
				wrong[p.Message] = slip
			}
		}
	}
	for message, slip := range wrong {
		t.Errorf("%s\n%q", message, slip)
	}
}

func TestBracketsAndSigns(t *testing.T) {
	for text, want := range map[string]string{
		"names: [\n":                "line 1: this [ is not closed",
		"version: 1\nlabels: {\n\n": "line 2: this { is not closed",
		"labels: {a: #b}\n":         "line 1: this { is not closed",
		"names: }":                  "line 1: a value is missing before this }; put a text that begins with it in quotes",
		"names: |x":                 "line 1: after | or >, begin the text on the next line; put a text that begins with | or > in quotes",
		"%names: [x]":               "line 1: a line cannot begin with %; put the text in quotes",
		"names: [x]#":               "line 1: put a space before #, or put a text with # in it in quotes",
	} {
		f, _ := decode(text)
		if err := f.Err(); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}
