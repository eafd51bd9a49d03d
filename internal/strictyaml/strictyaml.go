// Package strictyaml reads the YAML files that people write: policies, deployments and
// the configuration of machines. It finds everything that is wrong with a file in one
// pass, and gives each problem its line, the text of the line and the fix.
//
// It is stricter than YAML: unknown and repeated keys, anchors, aliases, merge keys and
// tags are errors. They make a file ambiguous, or hide what it does.
package strictyaml

import (
	"fmt"
	"strings"
)

// Options say how to read a file.
type Options struct {
	// MaxBytes bounds the file.
	MaxBytes int
	// Titles name the entries of lists: with {"rules": "rule"}, an entry of the list
	// "rules" is called rule "web", after its key "name".
	Titles map[string]string
	// EmptyIsUnset takes a key without a value for one that was left out. Otherwise it is
	// an error.
	EmptyIsUnset bool
}

// Problem is one thing that is wrong with a file.
type Problem struct {
	// Line and Column count from 1. They are 0 if the problem is the whole file's.
	Line, Column int
	// Message names the key, says what is wrong and how to fix it.
	Message string
	// Excerpt is the text of the line, shortened.
	Excerpt string
}

// String returns the message with its line.
func (p Problem) String() string {
	if p.Line == 0 {
		return p.Message
	}
	return fmt.Sprintf("line %d: %s", p.Line, p.Message)
}

// Error lists the problems of a file, in the order of their lines.
type Error struct {
	List []Problem
	// More is how many problems the list leaves out.
	More int
}

const (
	// maxProblems bounds the list of an Error.
	maxProblems = 100
	// maxBrief bounds the problems in the text of an Error, which may go to a log.
	maxBrief = 5
	// maxMessage bounds the message of a problem, in bytes.
	maxMessage = 300
	// maxExcerpt bounds an excerpt, in characters.
	maxExcerpt = 100
)

// Error returns the first problems, in one line and without excerpts.
func (e *Error) Error() string {
	var brief []string
	for _, p := range e.List[:min(len(e.List), maxBrief)] {
		brief = append(brief, p.String())
	}
	if more := len(e.List) + e.More - len(brief); more > 0 {
		brief = append(brief, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(brief, "; ")
}

// Problems returns a text for each problem: a line that says what is wrong, and where
// there is one a second with the position and the excerpt.
func (e *Error) Problems() []string {
	var all []string
	for _, p := range e.List {
		text := p.String()
		if p.Excerpt != "" {
			text += fmt.Sprintf("\n  %d:%d | %s", p.Line, p.Column, p.Excerpt)
		}
		all = append(all, text)
	}
	if e.More > 0 {
		all = append(all, fmt.Sprintf("and %d more errors", e.More))
	}
	return all
}
