package strictyaml

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v4"
)

// File is a file that was read, with the problems found so far.
type File struct {
	options  Options
	lines    []string
	top      *yaml.Node // nil if there is no tree
	problems []Problem
	more     int
	within   []reflect.Type // the structs that are being read, from the outermost
	// broken are values that could not be read. Whatever else is wrong with them or below
	// them follows from that.
	broken map[*yaml.Node]bool
	// misnamed are keys that are probably in the file under another name or in another
	// place.
	misnamed map[missing]bool
	// tabbed are lines that were indented with tabs: how deep is not known.
	tabbed map[int]bool
	// partial says that lines were left out because of their syntax, so that a missing key
	// means nothing.
	partial bool
}

// missing is a key that a mapping does not have.
type missing struct {
	holder *yaml.Node
	name   string
}

// Decode reads a file into a pointer to a struct, as far as the file can be read. The
// caller adds what is wrong with the values, and then calls File.Err.
func Decode(data []byte, into any, o Options) *File {
	f := &File{options: o, broken: make(map[*yaml.Node]bool), misnamed: make(map[missing]bool), tabbed: make(map[int]bool)}
	if o.MaxBytes > 0 && len(data) > o.MaxBytes {
		f.add(0, 0, fmt.Sprintf("the file has %d bytes, more than %d", len(data), o.MaxBytes))
		return f
	}
	f.lines = strings.Split(strings.ReplaceAll(string(data), "\r\n", "\n"), "\n")
	if !f.checkText(data) {
		return f
	}
	f.top = f.parse()
	if f.top == nil {
		return f
	}
	f.read(f.Top(), reflect.ValueOf(into).Elem())
	return f
}

// Err returns what is wrong with the file as an *Error, or nil.
func (f *File) Err() error {
	if len(f.problems) == 0 {
		return nil
	}
	slices.SortStableFunc(f.problems, func(a, b Problem) int { return cmp.Compare(a.Line, b.Line) })
	return &Error{List: f.problems, More: f.more}
}

// Readable reports whether there is anything to check.
func (f *File) Readable() bool { return f.top != nil }

// Top returns the whole file.
func (f *File) Top() Value { return Value{file: f, node: f.top, mark: f.top} }

func (f *File) add(line, column int, message string) {
	if !f.tabbed[line] {
		f.append(line, column, message)
	}
}

func (f *File) append(line, column int, message string) {
	if len(f.problems) >= maxProblems {
		f.more++
		return
	}
	p := Problem{Line: line, Column: column, Message: shorten(printable(message), maxMessage)}
	if line > 0 && line <= len(f.lines) {
		p.Excerpt = excerpt(f.lines[line-1])
	}
	f.problems = append(f.problems, p)
}

// printable returns one line that is safe to print on a terminal: a control character could
// rewrite what stands above. An escape in double quotes makes any character.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return '→'
		case !unicode.IsPrint(r):
			return '·'
		}
		return r
	}, text)
}

func excerpt(line string) string {
	text := printable(line)
	if runes := []rune(text); len(runes) > maxExcerpt {
		text = string(runes[:maxExcerpt]) + "…"
	}
	return strings.TrimRight(text, " ")
}

func shorten(text string, most int) string {
	if len(text) > most {
		return strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// load returns the tree of a text that holds one document.
func load(text string) (*yaml.Node, error) {
	var document yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader([]byte(text)))
	if err := decoder.Decode(&document); err != nil {
		return nil, err
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errSecond
	}
	if len(document.Content) == 0 || document.Content[0].Tag == "!!null" && document.Content[0].Value == "" {
		return nil, io.EOF
	}
	return document.Content[0], nil
}

var errSecond = errors.New("the file holds more than one YAML document; remove this line and what follows it")
