package strictyaml

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Value is a place in a file: a value, or one that is missing.
type Value struct {
	file   *File
	parent *Value
	node   *yaml.Node // nil if the file does not have it
	mark   *yaml.Node // where its problems are shown
	name   string     // of its key
	title  string     // the entry it is in, such as: rule "web"
	path   string     // its keys after that
}

// Key returns the value of a key.
func (v Value) Key(name string) Value {
	if v.node != nil && v.node.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(v.node.Content); i += 2 {
			if key := v.node.Content[i]; key.Value == name && key.Kind == yaml.ScalarNode {
				return v.below(name, key, v.node.Content[i+1])
			}
		}
	}
	return v.below(name, nil, nil)
}

// below returns the value of a key, or what stands for a missing one.
func (v Value) below(name string, key, value *yaml.Node) Value {
	below := Value{file: v.file, parent: &v, node: value, mark: v.mark, name: name, title: v.title, path: name}
	if v.path != "" {
		below.path = v.path + "." + name
	}
	if key != nil {
		below.mark = key
	}
	if value != nil && value.Kind == yaml.ScalarNode && value.Value != "" {
		below.mark = value
	}
	return below
}

// Entry returns an entry of a list, which counts from 0.
func (v Value) Entry(i int) Value {
	below := Value{file: v.file, parent: &v, mark: v.mark, title: v.title, path: fmt.Sprintf("%s[%d]", v.path, i)}
	if v.node != nil && v.node.Kind == yaml.SequenceNode && i < len(v.node.Content) {
		below.node = v.node.Content[i]
		below.mark = below.node
	}
	if title, ok := v.file.options.Titles[v.path]; ok && v.title == "" {
		below.title, below.path = fmt.Sprintf("%s %d", title, i+1), ""
		if name := below.Key("name").node; name != nil && name.Kind == yaml.ScalarNode {
			below.title = fmt.Sprintf("%s %q", title, shorten(name.Value, maxExcerpt))
		}
	} else if below.node != nil && below.node.Kind == yaml.ScalarNode {
		below.path = v.path // its message quotes the entry
	}
	return below
}

// Present reports whether the file has the value.
func (v Value) Present() bool { return v.node != nil }

// Line returns the line where the value begins, or that of what would hold it.
func (v Value) Line() int {
	if v.mark == nil {
		return 0
	}
	return v.mark.Line
}

// Fail adds a problem, if there is an error.
func (v Value) Fail(err error) {
	if err != nil {
		v.Failf("%s", err)
	}
}

// Failf adds a problem with the value, unless it follows from one that was found before.
func (v Value) Failf(format string, args ...any) {
	if v.follows() {
		return
	}
	line, column := 0, 0
	if v.mark != nil {
		line, column = v.mark.Line, v.mark.Column
	}
	v.file.add(line, column, v.prefix()+fmt.Sprintf(format, args...))
}

// Missing adds the problem that a key is not there, with what to write.
func (v Value) Missing(fix string) {
	if !v.follows() && v.parent != nil {
		v.parent.Failf("%s is missing; %s", v.name, fix)
	}
}

// FailAt adds a problem with the value at a byte of its text.
func (v Value) FailAt(offset int, err error) {
	if v.follows() || v.node == nil {
		return
	}
	line, column := v.position(offset)
	v.file.add(line, column, v.prefix()+err.Error())
}

func (v Value) prefix() string {
	var b strings.Builder
	for _, part := range []string{v.title, shorten(v.path, maxExcerpt)} {
		if part != "" {
			b.WriteString(part + ": ")
		}
	}
	return b.String()
}

// follows reports whether a problem here follows from one that was found before.
func (v Value) follows() bool {
	for at := &v; at != nil; at = at.parent {
		if at.node != nil && v.file.broken[at.node] {
			return true
		}
	}
	if v.node != nil || v.parent == nil {
		return false
	}
	if v.file.partial {
		return true
	}
	for at := v.parent; at != nil; at = at.parent {
		if v.file.misnamed[missing{at.node, v.name}] {
			return true
		}
		if at != v.parent && at.node != nil { // the mapping itself and the one that holds it
			break
		}
	}
	return false
}

// position returns where in the file a byte of a scalar's text is. YAML folds lines and
// drops indentation, so it looks for each line of the file in the text.
func (v Value) position(offset int) (line, column int) {
	n, lines := v.node, v.file.lines
	line, column = n.Line, n.Column
	first := n.Line
	if n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		first++
	}
	done := 0 // bytes of the text that were found
	for at := first; at <= len(lines); at++ {
		raw, start := lines[at-1], 1
		if at == n.Line {
			raw, start = cutRunes(raw, n.Column)
		}
		trimmed := strings.TrimLeft(raw, " ")
		start += len(raw) - len(trimmed)
		trimmed = strings.TrimRight(trimmed, " ")
		if at == n.Line && n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 {
			trimmed, start = trimmed[min(1, len(trimmed)):], start+1
		}
		if first == n.Line { // what follows the text is not part of it, such as a quote or comment
			trimmed = trimmed[:commonPrefix(trimmed, strings.TrimLeft(n.Value[done:], " \n"))]
		}
		skip := strings.Index(n.Value[done:], trimmed)
		if skip < 0 {
			return line, column
		}
		if begin := done + skip; offset >= begin {
			line, column = at, start+len([]rune(n.Value[begin:min(offset, len(n.Value), begin+len(trimmed))]))
		}
		done = min(done+skip+len(trimmed), len(n.Value))
		if offset < done || done == len(n.Value) {
			return line, column
		}
	}
	return line, column
}

// cutRunes returns a line from a column on, and that column.
func cutRunes(line string, column int) (string, int) {
	runes := []rune(line)
	return string(runes[min(column-1, len(runes)):]), column
}

func commonPrefix(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}
