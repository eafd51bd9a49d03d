package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// maxSyntaxErrors bounds how often a file is parsed again without the lines that cannot
// be parsed.
const maxSyntaxErrors = 10

// checkText reports whether a file is text at all.
func (f *File) checkText(data []byte) bool {
	if len(data) >= 2 && (data[0] == 0xff && data[1] == 0xfe || data[0] == 0xfe && data[1] == 0xff) {
		f.add(0, 0, "the file is UTF-16; save it as UTF-8")
		return false
	}
	if bytes.IndexByte(data, 0) >= 0 {
		f.add(0, 0, "the file is binary, not YAML")
		return false
	}
	for n, line := range f.lines {
		for column, r := range []rune(line) {
			switch {
			case r == unicode.ReplacementChar && !utf8.ValidString(line):
				f.add(n+1, column+1, "this is not UTF-8; save the file as UTF-8, or remove the character")
				return false
			case r < ' ' && r != '\t' || r == 0x7f:
				f.add(n+1, column+1, fmt.Sprintf("remove the control character %U", r))
				return false
			}
		}
	}
	return true
}

// parse returns the file's tree. If the syntax is wrong, it reports the line, leaves it
// out together with what is indented below it, and goes on: the rest may hold more
// errors. It returns nil if nothing can be read.
func (f *File) parse() *yaml.Node {
	lines := slices.Clone(f.lines)
	var last syntax
	for range maxSyntaxErrors {
		top, err := load(strings.Join(lines, "\n"))
		e, isSyntax := errors.AsType[*yaml.LoadError](err)
		switch {
		case err == nil:
			return f.checkTop(top)
		case f.partial && errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, io.EOF):
			f.add(0, 0, "the file is empty")
			return nil
		case errors.Is(err, errSecond):
			f.second(lines)
			return nil
		case !isSyntax:
			f.add(0, 0, "not valid YAML: "+strings.TrimPrefix(err.Error(), "yaml: "))
			return nil
		}
		if !f.partial && f.tabs(lines) {
			f.partial = true
			continue
		}
		p := explain(e, lines)
		if p == last {
			return nil // without that line, nothing changed
		}
		last, f.partial = p, true
		f.add(p.line, p.column, p.message)
		if p.unclosed {
			lines = lines[:p.line-1]
			continue
		}
		leaveOut(lines, p.line)
	}
	return nil
}

func (f *File) checkTop(top *yaml.Node) *yaml.Node {
	if top.Kind != yaml.MappingNode {
		f.add(top.Line, top.Column, "write keys and values, not "+kindOf(top))
		return nil
	}
	return top
}

// second reports where a second document begins.
func (f *File) second(lines []string) {
	content := false
	for n, line := range lines {
		if content && strings.HasPrefix(line, "---") {
			f.add(n+1, 1, errSecond.Error())
			return
		}
		content = content || strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "#")
	}
	f.add(0, 0, errSecond.Error())
}

// tabs reports the lines that are indented with tabs, one problem for each run of them,
// and replaces the tabs. It returns false if there are none.
func (f *File) tabs(lines []string) bool {
	found := false
	for n := 0; n < len(lines); n++ {
		first := n
		for n < len(lines) && strings.Contains(indentation(lines[n]), "\t") && strings.TrimSpace(lines[n]) != "" {
			indent := indentation(lines[n])
			lines[n] = strings.ReplaceAll(indent, "\t", "  ") + lines[n][len(indent):]
			f.tabbed[n+1] = true
			n++
		}
		if n == first {
			continue
		}
		found = true
		message := "indented with a tab; use spaces"
		if n-first > 1 {
			message += fmt.Sprintf(" (so are the lines up to %d)", n)
		}
		f.append(first+1, 1+strings.Index(f.lines[first], "\t"), message)
	}
	return found
}

func indentation(line string) string {
	return line[:len(line)-len(strings.TrimLeft(line, " \t"))]
}

// leaveOut blanks a line and those indented more than it that follow.
func leaveOut(lines []string, line int) {
	text := strings.TrimSpace(lines[line-1])
	indent := len(indentation(lines[line-1]))
	isKey := strings.HasSuffix(text, ":") && !strings.HasPrefix(text, "-") // a list may stand below it, as far left
	lines[line-1] = ""
	for n := line; n < len(lines); n++ {
		text, own := strings.TrimSpace(lines[n]), len(indentation(lines[n]))
		isEntry := isKey && own == indent && strings.HasPrefix(text, "-")
		if text != "" && own <= indent && !isEntry {
			return
		}
		lines[n] = ""
	}
}

// syntax is an error of syntax, where it was made and with the fix.
type syntax struct {
	line, column int
	message      string
	unclosed     bool // the rest of the file cannot be read
}

// explain turns an error of the parser into one for the author of the file. The parser
// reports where it could not go on; the mistake is often earlier.
func explain(e *yaml.LoadError, lines []string) syntax {
	at := syntax{line: clamp(e.Mark.Line, lines), column: max(e.Mark.Column, 1)}
	begun := syntax{line: clamp(e.ContextMark.Line, lines), column: max(e.ContextMark.Column, 1)}
	if quoted, ok := unquoted(lines, at.line); ok && e.Stage != "reader" {
		return quoted
	}
	switch {
	case e.Message == "found unexpected end of stream":
		begun.message, begun.unclosed = "this quote is not closed", true
		return begun
	case strings.HasPrefix(e.Message, "did not find expected ',' or"):
		open := map[byte]string{'}': "{", ']': "["}[e.Message[len(e.Message)-2]]
		if begun.line != at.line {
			begun.message, begun.unclosed = fmt.Sprintf("this %s is not closed, or a comma is missing after it", open), true
			return begun
		}
		at.message = fmt.Sprintf("the %s in column %d is not closed, or a comma is missing", open, begun.column)
	case e.Message == "could not find expected ':'":
		begun.message = noColon(lines[begun.line-1])
		return begun
	case e.Message == "mapping values are not allowed in this context":
		return misplacedValue(at, lines)
	case e.ContextMsg == "while parsing a block mapping" || e.ContextMsg == "while parsing a block collection":
		return misindented(at, begun, lines)
	case strings.Contains(e.Message, "tab"):
		at.message = "indented with a tab; use spaces"
	case e.Message == "did not find expected node content":
		return noContent(at, lines)
	case e.ContextMsg == "while scanning a tag" || strings.HasSuffix(e.Message, "in a YAML tag"):
		at.message = "put a text that begins with ! in quotes"
	case e.ContextMsg == "while scanning a directive":
		at.message = "a line cannot begin with %; put the text in quotes"
	case e.ContextMsg == "while scanning a block scalar":
		at.message = "after | or >, begin the text on the next line; put a text that begins with | or > in quotes"
	case e.Message == "found a comment without preceding whitespace":
		at.message = "put a space before #, or put a text with # in it in quotes"
	case e.Message == "did not find expected <document start>":
		at.message = "write KEY: VALUE on one line"
	case e.Message == "found unknown escape character":
		at.message = `unknown escape after \ in double quotes; use single quotes`
	case e.Message == "found character that cannot start any token":
		at.message = "a value cannot begin with this character; put it in quotes"
	case e.ContextMsg == "while scanning an alias" || e.ContextMsg == "while scanning an anchor" || strings.HasPrefix(e.Message, "unknown anchor"):
		at.message = "put a text that begins with * or & in quotes"
	case e.Message == "block sequence entries are not allowed in this context":
		at.message = "a list cannot begin here; write it on the lines below its key"
	default:
		at.message = "not valid YAML: " + e.Message
	}
	return at
}

// noContent explains where a value is missing inside brackets or braces.
func noContent(at syntax, lines []string) syntax {
	column := min(at.column-1, len([]rune(lines[at.line-1])))
	rest := strings.TrimLeft(string([]rune(lines[at.line-1])[column:]), " ")
	if rest != "" && !strings.HasPrefix(rest, "#") {
		at.message = fmt.Sprintf("a value is missing before this %c; put a text that begins with it in quotes", []rune(rest)[0])
		return at
	}
	if open, ok := unclosed(lines); ok {
		return open
	}
	at.message = "a value is missing here"
	return at
}

// unclosed returns the innermost bracket or brace that is not closed before the end of the
// file. It looks at no more than brackets, quotes and comments.
func unclosed(lines []string) (syntax, bool) {
	var open []syntax
	for n, line := range lines {
		var quote, before rune
		for column, r := range []rune(line) {
			switch {
			case quote != 0:
				if r == quote {
					quote = 0
				}
			case r == '\'' || r == '"':
				quote = r
			case r == '[' || r == '{':
				open = append(open, syntax{line: n + 1, column: column + 1, unclosed: true, message: fmt.Sprintf("this %c is not closed", r)})
			case (r == ']' || r == '}') && len(open) > 0:
				open = open[:len(open)-1]
			}
			if r == '#' && quote == 0 && (before == 0 || before == ' ') {
				break
			}
			before = r
		}
	}
	if len(open) == 0 {
		return syntax{}, false
	}
	return open[len(open)-1], true
}

func clamp(line int, lines []string) int { return min(max(line, 1), len(lines)) }

// misindented explains a line that is indented differently from its block.
func misindented(at, begun syntax, lines []string) syntax {
	// At the end of the file, the fault is in the last line.
	for at.line > 1 && strings.TrimSpace(lines[at.line-1]) == "" {
		at.line--
		at.column = 1 + len(indentation(lines[at.line-1]))
	}
	is, want := at.column-1, begun.column-1
	switch {
	case is == want:
		at.message = fmt.Sprintf("this does not continue the block that begins on line %d: write KEY: VALUE, or - for an entry of a list", begun.line)
	case len(indentation(lines[at.line-1])) == is:
		at.message = fmt.Sprintf("indented by %s; align it with the lines of its block (%s, as on line %d)", spaces(is), spaces(want), begun.line)
	default:
		at.message = "this does not belong here; put a value that has quotes, brackets or braces in the middle in quotes as a whole"
	}
	return at
}

// misplacedValue explains a colon where none may be.
func misplacedValue(at syntax, lines []string) syntax {
	line := lines[at.line-1]
	before := string([]rune(line)[:min(at.column-1, len([]rune(line)))])
	if strings.Contains(strings.TrimLeft(before, " -"), ": ") {
		at.message = `a value with ": " in it must be in quotes`
		return at
	}
	above := at.line - 1
	for above > 0 && strings.TrimSpace(lines[above-1]) == "" {
		above--
	}
	if above == 0 {
		at.message = "begin the line with a key; write KEY: VALUE"
		return at
	}
	previous := lines[above-1]
	if !strings.Contains(previous, ": ") && !strings.HasSuffix(strings.TrimRight(previous, " "), ":") {
		return syntax{line: above, column: 1 + len(indentation(previous)), message: noColon(previous)}
	}
	key := strings.TrimLeft(previous, " -")
	at.column = 1 + len(indentation(line))
	at.message = fmt.Sprintf("indented by %s, more than line %d, which has a value already; indent it by %s",
		spaces(at.column-1), above, spaces(len(previous)-len(key)))
	return at
}

func spaces(n int) string {
	if n == 1 {
		return "1 space"
	}
	return fmt.Sprintf("%d spaces", n)
}

// noColon says how to make a line a key and its value.
func noColon(line string) string {
	text := strings.TrimLeft(line, " -")
	if key, value, ok := strings.Cut(text, ":"); ok && value != "" {
		return fmt.Sprintf("write a space after the colon: %s: %s", shorten(key, maxExcerpt), shorten(value, maxExcerpt))
	}
	key, value, _ := strings.Cut(text, " ")
	return strings.TrimRight(fmt.Sprintf("a colon is missing; write %s: %s", shorten(key, maxExcerpt), shorten(value, maxExcerpt)), " ")
}

// unquoted finds a value on a line that YAML takes for something else than text.
func unquoted(lines []string, line int) (syntax, bool) {
	text := lines[line-1]
	_, value, ok := strings.Cut(text, ": ")
	if !ok {
		_, value, ok = strings.Cut(text, "- ")
	}
	value = strings.TrimSpace(value)
	if !ok || value == "" {
		return syntax{}, false
	}
	at := syntax{line: line, column: 1 + len([]rune(text[:strings.Index(text, value)]))}
	switch first := value[0]; {
	case first == '{' && !strings.HasSuffix(value, "}") && strings.Contains(value, "}"):
		// A placeholder, as in {tag:Name}-{instance-id}.
	case first == '{' && strings.Count(value, "}-{") > 0, strings.Contains("*&@`%!", string(first)):
	default:
		return syntax{}, false
	}
	at.message = fmt.Sprintf("put a text that begins with %c in quotes", value[0])
	return at, true
}
