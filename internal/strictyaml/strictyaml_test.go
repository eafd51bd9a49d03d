package strictyaml

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

type document struct {
	Version int               `yaml:"version"`
	On      bool              `yaml:"on"`
	Rules   []entry           `yaml:"rules"`
	Names   []string          `yaml:"names"`
	Labels  map[string]string `yaml:"labels"`
}

type entry struct {
	Name  string   `yaml:"name"`
	Match *matches `yaml:"match"`
	Port  int      `yaml:"port"`
	Form  form     `yaml:"form"`
}

type matches struct {
	Owners []string            `yaml:"image_owners"`
	MaxAge string              `yaml:"max_age"`
	Tags   map[string][]string `yaml:"tags"`
}

type form string

func (f *form) UnmarshalText(text []byte) error {
	if string(text) != "good" {
		return errors.New("write good")
	}
	*f = form(text)
	return nil
}

func decode(text string) (*File, document) {
	var d document
	f := Decode([]byte(text), &d, Options{MaxBytes: 64 << 10, Titles: map[string]string{"rules": "rule"}})
	return f, d
}

func TestProblems(t *testing.T) {
	const head = "version: 1\nrules:\n  - name: web\n"
	for name, test := range map[string]struct{ text, want string }{
		"good":             {head + "    match: {image_owners: [self], tags: {env: [prod]}}\n    form: good\n", ""},
		"a tab as a space": {head + "    port:\t22\n", ""},

		"unknown key":            {head + "    prt: 1\n", "line 4: rule \"web\": unknown key prt; did you mean port?\n  4:5 |     prt: 1"},
		"a terminal's escape":    {head + "    \"\\e[2J\\nx\\u202e\": 1\n", "line 4: rule \"web\": unknown key ·[2J·x·; the keys here are name, match, port, form\n  4:5 |     \"\\e[2J\\nx\\u202e\": 1"},
		"another spelling":       {head + "    match: {Image-Owners: [a]}\n", "line 4: rule \"web\": match: unknown key Image-Owners; did you mean image_owners?\n  4:13 |     match: {Image-Owners: [a]}"},
		"one word of the key":    {head + "    match: {owners: [a]}\n", "line 4: rule \"web\": match: unknown key owners; did you mean image_owners?\n  4:13 |     match: {owners: [a]}"},
		"like no key":            {head + "    shade: red\n", "line 4: rule \"web\": unknown key shade; the keys here are name, match, port, form\n  4:5 |     shade: red"},
		"indented too little":    {head + "    match:\n      tags: {}\n    max_age: 1\n", "line 6: rule \"web\": unknown key max_age; it belongs under match\n  6:5 |     max_age: 1"},
		"indented too much":      {head + "    match:\n      port: 1\n", "line 5: rule \"web\": match: unknown key port; indent it less: it does not belong here\n  5:7 |       port: 1"},
		"repeated key":           {head + "    port: 1\n    port: 2\n", "line 5: rule \"web\": key port already defined on line 4; remove one\n  5:5 |     port: 2"},
		"repeated key of a map":  {"labels: {a: b, a: c}\n", "line 1: labels: key a already defined on line 1; remove one\n  1:16 | labels: {a: b, a: c}"},
		"empty value":            {head + "    port:\n", "line 4: rule \"web\": port: empty value; write one, or remove the key\n  4:5 |     port:"},
		"scalar for a list":      {head + "    match: {tags: {env: prod}}\n", "line 4: rule \"web\": match.tags.env: write a list, [prod]\n  4:25 |     match: {tags: {env: prod}}"},
		"scalar with a star":     {"names: \"*\"\n", "line 1: names: write a list, [\"*\"]\n  1:8 | names: \"*\""},
		"map for a list":         {"names: {a: b}\n", "line 1: names: write a list: begin each entry with a dash\n  1:1 | names: {a: b}"},
		"list for a scalar":      {head + "    port: [22]\n", "line 4: rule \"web\": port: write one value, not a list: 22\n  4:5 |     port: [22]"},
		"map for a scalar":       {"names: [{a: b}]\n", "line 1: names[0]: write one value, not keys and values; put a text that begins with { or [ in quotes\n  1:9 | names: [{a: b}]"},
		"scalar for a struct":    {"rules: [a]\n", "line 1: rule 1: write keys and values, not \"a\"\n  1:9 | rules: [a]"},
		"not a number":           {head + "    port: ssh\n", "line 4: rule \"web\": port: \"ssh\" is not a whole number\n  4:11 |     port: ssh"},
		"a number in quotes":     {"version: \"1\"\n", "line 1: version: \"1\" is not a whole number; remove the quotes\n  1:10 | version: \"1\""},
		"a number that is large": {"version: 99999999999999999999\n", "line 1: version: \"99999999999999999999\" is not a whole number\n  1:10 | version: 99999999999999999999"},
		"a word for a number":    {"version: \"one\"\n", "line 1: version: \"one\" is not a whole number\n  1:10 | version: \"one\""},
		"a bool in quotes":       {"on: 'true'\n", "line 1: on: \"true\" is neither true nor false; remove the quotes\n  1:5 | on: 'true'"},
		"a word for a bool":      {"on: 'perhaps'\n", "line 1: on: \"perhaps\" is neither true nor false\n  1:5 | on: 'perhaps'"},
		"an empty bool":          {"on: ''\n", "line 1: on: \"\" is neither true nor false\n  1:1 | on: ''"},
		"not a bool":             {"on: perhaps\n", "line 1: on: \"perhaps\" is neither true nor false\n  1:5 | on: perhaps"},
		"a text of another form": {head + "    form: bad\n", "line 4: rule \"web\": form: write good\n  4:11 |     form: bad"},
		"anchor and alias":       {"names: &a [x]\nlabels: *a\n", "line 1: names: anchors and aliases are not allowed; write the value out\n  1:1 | names: &a [x]\nline 2: labels: anchors and aliases are not allowed; write the value out\n  2:1 | labels: *a"},
		"merge key":              {"<<: {on: true}\n", "line 1: anchors, aliases and merge keys (<<) are not allowed; write the keys out\n  1:1 | <<: {on: true}"},
		"alias of itself":        {"names: &a [*a]\n", "line 1: names: anchors and aliases are not allowed; write the value out\n  1:1 | names: &a [*a]"},
		"tag":                    {"names: [!!binary YQ==]\n", "line 1: names: !!binary is a YAML tag; put a text that begins with ! in quotes\n  1:9 | names: [!!binary YQ==]"},
		"a text with !":          {"names: [!tags.x]\n", "line 1: names: !tags.x is a YAML tag; put a text that begins with ! in quotes\n  1:9 | names: [!tags.x]"},
		"key that is a map":      {"{a: b}: c\n", "line 1: a key must be plain text; put a text that begins with { or [ in quotes\n  1:1 | {a: b}: c"},
		"no key":                 {": c\n", "line 1: a key is missing before the colon\n  1:1 | : c"},

		"empty":         {"", "the file is empty"},
		"only comments": {"# nothing\n\n", "the file is empty"},
		"null":          {"~\n", "line 1: write keys and values, not \"~\"\n  1:1 | ~"},
		"a text":        {"some text\n", "line 1: write keys and values, not \"some text\"\n  1:1 | some text"},
		"a list":        {"- a\n", "line 1: write keys and values, not a list\n  1:1 | - a"},
		"two documents": {"version: 1\n---\nversion: 2\n", "line 2: the file holds more than one YAML document; remove this line and what follows it\n  2:1 | ---"},
		"too long":      {strings.Repeat("#", 64<<10+1), "the file has 65537 bytes, more than 65536"},
		"binary":        {"\x7fELF\x02\x01\x00", "the file is binary, not YAML"},
		"UTF-16":        {"\xff\xfea\x00:\x00", "the file is UTF-16; save it as UTF-8"},
		"Latin-1":       {"version: 1\nnames: [\xe9]\n", "line 2: this is not UTF-8; save the file as UTF-8, or remove the character\n  2:9 | names: [�]"},
		"escape":        {"version: 1\nnames: [\x1b]\n", "line 2: remove the control character U+001B\n  2:9 | names: [·]"},

		"a tab":               {head + "\tport: x\n", "line 4: indented with a tab; use spaces\n  4:1 | →port: x"},
		"tabs":                {"rules:\n\t- name: a\n\t  prt: 1\nnams: [a]\n", "line 2: indented with a tab; use spaces (so are the lines up to 3)\n  2:1 | →- name: a\nline 4: unknown key nams; did you mean names?\n  4:1 | nams: [a]"},
		"one space more":      {head + "    match:\n      image_owners: [a]\n       max_age: 1\n    port: x\n", "line 6: indented by 7 spaces; align it with the lines of its block (6 spaces, as on line 5)\n  6:8 |        max_age: 1\nline 7: rule \"web\": port: \"x\" is not a whole number\n  7:11 |     port: x"},
		"one space less":      {head + "    match:\n      image_owners: [a]\n     max_age: 1\n", "line 6: indented by 5 spaces; align it with the lines of its block (4 spaces, as on line 3)\n  6:6 |      max_age: 1"},
		"far from its block":  {head + strings.Repeat("    # a comment\n", 40) + "   port: 1\n", "line 44: indented by 3 spaces; align it with the lines of its block (2 spaces, as on line 3)\n  44:4 |    port: 1"},
		"two lines":           {head + "   port: 1\n  - name: b\n     port: 2\n", "line 4: indented by 3 spaces; align it with the lines of its block (2 spaces, as on line 3)\n  4:4 |    port: 1\nline 6: indented by 5 spaces, more than line 5, which has a value already; indent it by 4 spaces\n  6:6 |      port: 2"},
		"below a value":       {head + "      port: 1\n    prt: 1\n", "line 4: indented by 6 spaces, more than line 3, which has a value already; indent it by 4 spaces\n  4:7 |       port: 1\nline 5: rule \"web\": unknown key prt; did you mean port?\n  5:5 |     prt: 1"},
		"a list below":        {"version: 1\n names:\n - a\n", "line 2: indented by 1 space, more than line 1, which has a value already; indent it by 0 spaces\n  2:2 |  names:"},
		"colon in a value":    {"rules:\n  - name: a: b\n", "line 2: a value with \": \" in it must be in quotes\n  2:12 |   - name: a: b"},
		"no colon":            {"rules:\n  - name web\n    port: 22\n", "line 2: a colon is missing; write name: web\n  2:3 |   - name web"},
		"no space after it":   {head + "    port:22\n    form: bad\n", "line 4: write a space after the colon: port: 22\n  4:5 |     port:22\nline 5: rule \"web\": form: write good\n  5:11 |     form: bad"},
		"open quote":          {head + "    form: \"good\n    port: 1\n", "line 4: this quote is not closed\n  4:11 |     form: \"good"},
		"open brace":          {head + "    match: {tags: {}\n  - name: b\n", "line 4: this { is not closed, or a comma is missing after it\n  4:12 |     match: {tags: {}"},
		"wrong bracket":       {"names: [a, {b: c]\n", "line 1: the { in column 12 is not closed, or a comma is missing\n  1:17 | names: [a, {b: c]"},
		"a placeholder":       {head + "    form: {tag:Name}-{instance-id}\n    port: x\n", "line 4: put a text that begins with { in quotes\n  4:11 |     form: {tag:Name}-{instance-id}\nline 5: rule \"web\": port: \"x\" is not a whole number\n  5:11 |     port: x"},
		"a star":              {"names: [*]\n", "line 1: put a text that begins with * or & in quotes\n  1:10 | names: [*]"},
		"an at sign":          {head + "    form: @good\n", "line 4: put a text that begins with @ in quotes\n  4:11 |     form: @good"},
		"an escape":           {"names: [\"\\q\"]\n", "line 1: unknown escape after \\ in double quotes; use single quotes\n  1:10 | names: [\"\\q\"]"},
		"unknown anchor":      {"names: [a]\nlabels: *b\n", "line 2: put a text that begins with * in quotes\n  2:9 | labels: *b"},
		"an escape in a line": {"nams: [\"a\"] # \u202e\n", "line 1: unknown key nams; did you mean names?\n  1:1 | nams: [\"a\"] # ·"},
		"CRLF":                {"version: 1\r\nnams: [a]\r\n", "line 2: unknown key nams; did you mean names?\n  2:1 | nams: [a]"},
	} {
		t.Run(name, func(t *testing.T) {
			f, _ := decode(test.text)
			got := ""
			if e, ok := errors.AsType[*Error](f.Err()); ok {
				got = strings.Join(e.Problems(), "\n")
			}
			if got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
}

func TestDecode(t *testing.T) {
	f, d := decode("version: 1\non: yes\nnames: [007, true, 1.50, ~x]\nlabels: {a: 1}\nrules: [{name: web, form: good, match: {max_age: 1h, tags: {a: [b]}}}]\n")
	if err := f.Err(); err != nil {
		t.Fatal(err)
	}
	want := document{
		Version: 1, On: true, Names: []string{"007", "true", "1.50", "~x"}, Labels: map[string]string{"a": "1"},
		Rules: []entry{{Name: "web", Form: "good", Match: &matches{MaxAge: "1h", Tags: map[string][]string{"a": {"b"}}}}},
	}
	if !reflect.DeepEqual(d, want) {
		t.Errorf("got  %+v\nwant %+v", d, want)
	}
}

// What the caller finds wrong with a value does not repeat what was said of it.
func TestFollowingProblemsAreLeftOut(t *testing.T) {
	for text, want := range map[string]string{
		"rules: [{match: {}}]":                    "line 1: rule 1: match.image_owners: required",
		"rules: [{match: {image_owners: x}}]":     "line 1: rule 1: match.image_owners: write a list, [x]",
		"rules: [{match: {image_owner: [x]}}]":    "line 1: rule 1: match: unknown key image_owner; did you mean image_owners?",
		"rules: [{image_owners: [x]}]":            "line 1: rule 1: unknown key image_owners; it belongs under match",
		"rules: [{match: x}]":                     "line 1: rule 1: match: write keys and values, not \"x\"",
		"rules:\n  - match:\n      a: b: c\n":     "line 3: a value with \": \" in it must be in quotes",
		"rules: [{image_owners: [x]}, {port: 1}]": "line 1: rule 1: unknown key image_owners; it belongs under match; line 1: rule 2: match.image_owners: required",
	} {
		f, d := decode(text)
		if f.Readable() {
			for i := range d.Rules {
				f.Top().Key("rules").Entry(i).Key("match").Key("image_owners").Failf("required")
			}
		}
		if got := f.Err().Error(); got != want {
			t.Errorf("%q: got %s, want %s", text, got, want)
		}
	}
}

// A position in a text is one in the file, however the text is written.
func TestFailAt(t *testing.T) {
	for name, text := range map[string]string{
		"plain":         "version: 1\nrules:\n  - name: one two HERE four\n",
		"single quotes": "version: 1\nrules:\n  - name: 'one two HERE four'\n",
		"double quotes": "version: 1\nrules:\n  - {port: 1, name: \"one two HERE four\"}\n",
		"literal":       "rules:\n  - name: |\n      one\n      two\n\n      three HERE four\n",
		"folded":        "rules:\n  - name: >-\n      one\n      two é HERE\n      four\n",
		"folded lines":  "rules:\n  - name: >-\n      one\n\n      two\n      HERE four\n",
		"plain lines":   "rules:\n  - name: one\n      two\n      three HERE\n",
		"quoted lines":  "rules:\n  - name: \"one\n      two\n      three HERE\"\n",
	} {
		t.Run(name, func(t *testing.T) {
			f, d := decode(text)
			at := f.Top().Key("rules").Entry(0).Key("name")
			at.FailAt(strings.Index(d.Rules[0].Name, "HERE"), errors.New("wrong"))
			e, ok := errors.AsType[*Error](f.Err())
			if !ok || len(e.List) != 1 {
				t.Fatalf("error %v", f.Err())
			}
			p := e.List[0]
			line := []rune(strings.Split(text, "\n")[p.Line-1])
			if got := string(line[p.Column-1:]); !strings.HasPrefix(got, "HERE") {
				t.Errorf("line %d, column %d: %q", p.Line, p.Column, got)
			}
		})
	}
}

// However much is wrong, the list and each text are bounded.
func TestErrorsAreBounded(t *testing.T) {
	f, _ := decode(strings.Repeat("\""+strings.Repeat("k", 400)+"\": x\n", 100) + strings.Repeat("? [a]\n: b\n", 500))
	e, ok := errors.AsType[*Error](f.Err())
	if !ok || len(e.List) != maxProblems || e.More != 500 {
		t.Fatalf("%d problems and %d more", len(e.List), e.More)
	}
	if n := len(e.Error()); n > 2000 {
		t.Errorf("%d bytes of error", n)
	}
	if !strings.HasSuffix(e.Error(), "; and 595 more") {
		t.Errorf("error %s", e)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("version: 1\nrules:\n  - name: web\n    match: {image_owners: [self], tags: {env: [prod]}}\n"))
	f.Add([]byte("rules:\n\t- name: a\n\t  prt: 1\n"))
	f.Add([]byte("a: &a [*a]\nb: {<<: *a}\n? [x]\n: y\n---\n"))
	f.Add([]byte("rules:\n  - name: |\n      x\n     y\n  - name: >-\n      {tag:a}\n"))
	f.Add([]byte("\xef\xbb\xbfversion: 1\r\nnames: 'a\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, d := decode(string(data))
		if file.Readable() {
			for i := range d.Rules {
				at := file.Top().Key("rules").Entry(i)
				at.Key("name").FailAt(len(d.Rules[i].Name)/2, errors.New("no"))
				at.Key("match").Key("max_age").Missing("write one")
			}
		}
		e, ok := errors.AsType[*Error](file.Err())
		if !ok {
			return
		}
		lines := strings.Count(string(data), "\n") + 1
		for _, p := range e.List {
			if p.Line < 0 || p.Line > lines || p.Message == "" || len(p.Message) > maxMessage+10 || strings.ContainsAny(p.Excerpt, "\n\r\x1b") {
				t.Errorf("problem %+v of %d lines", p, lines)
			}
			for _, word := range []string{"strictyaml", "!!str", "unmarshal", "yaml:"} {
				if strings.Contains(p.Message, word) && !strings.Contains(string(data), word) {
					t.Errorf("message %q", p.Message)
				}
			}
		}
	})
}
