package docs

import (
	"encoding/json"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var (
	regexpBlock   = regexp.MustCompile("(?s)\n```\n((?:fields|filter) .*?)```\n")
	regexpLiteral = regexp.MustCompile(`"([^"]*)"`)
	// Members of a line: neither a function, nor a value of Logs Insights' own.
	regexpMember  = regexp.MustCompile(`(^|[^@a-z0-9_])([a-z_][a-z0-9_]*)`)
	regexpAlias   = regexp.MustCompile(`\bas ([a-z_]+)`)
	regexpMembers = regexp.MustCompile("`([a-z0-9_]+)`")
	// The name of a line, in a query or a filter pattern. JSON quotes it with \".
	regexpLine = regexp.MustCompile(`\bmsg = \\?"([^"\\]+)`)
	// A query of the dashboard, as a JSON string.
	regexpWidget = regexp.MustCompile(`"query":("(?:[^"\\]|\\.)*")`)
	regexpSource = regexp.MustCompile(`SOURCE '[^']*' \| `)
)

// keywords are the words of Logs Insights that the queries use.
func keywords() []string {
	return []string{"fields", "filter", "stats", "sort", "by", "as", "and", "or", "desc", "asc", "limit"}
}

// Each query for CloudWatch Logs Insights, in the documents and on the dashboard, names only
// members that audit.md describes, which the tests of the lines compare with the code, and only
// values that the code writes.
func TestQueries(t *testing.T) {
	members, code := auditMembers(t), signerCode(t)
	for document, least := range map[string]int{"operations.md": 9, "audit.md": 1, "../template.yaml": 2} {
		queries := queriesIn(t, document)
		for _, query := range queries {
			for _, wrong := range unknownIn(query, members, code) {
				t.Errorf("%s: %s is unknown in the query\n%s", document, wrong, query)
			}
		}
		if len(queries) < least {
			t.Errorf("%s: %d queries found", document, len(queries))
		}
	}
}

// queriesIn returns the queries of a document, or of the dashboard in a template.
func queriesIn(t *testing.T, file string) (queries []string) {
	t.Helper()
	text := readFile(t, file)
	for _, block := range regexpBlock.FindAllStringSubmatch(text, -1) {
		queries = append(queries, block[1])
	}
	for _, widget := range regexpWidget.FindAllStringSubmatch(text, -1) {
		query, err := strconv.Unquote(widget[1])
		if err != nil {
			t.Fatalf("%s: %s: %v", file, widget[1], err)
		}
		queries = append(queries, regexpSource.ReplaceAllString(query, ""))
	}
	return queries
}

// Queries and filters find a line by its name, the msg of a golden line. A name that nothing
// writes would find nothing, without an error.
func TestLinesOfQueries(t *testing.T) {
	written := make(map[string]bool)
	for _, file := range glob(t, "../internal/signer/*/testdata/*.json") {
		var line struct {
			Message string `json:"msg"`
		}
		if json.Unmarshal([]byte(readFile(t, file)), &line) == nil {
			written[line.Message] = true
		}
	}
	asked := 0
	for _, file := range append(glob(t, "*.md"), "../template.yaml") {
		for _, name := range regexpLine.FindAllStringSubmatch(readFile(t, file), -1) {
			if asked++; !written[name[1]] {
				t.Errorf("%s: no golden line has msg %q", file, name[1])
			}
		}
	}
	if asked < 8 {
		t.Errorf("%d names of lines found", asked)
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: no files, error %v", pattern, err)
	}
	return files
}

func TestUnknownInQueries(t *testing.T) {
	members := []string{"msg", "code"}
	for query, want := range map[string]string{
		`filter msg = "enroll" and code != "granted"`:          "",
		`filter msg = "enrolled"`:                              `"enrolled"`,
		"fields @timestamp, cod":                               "cod",
		"filter ispresent(cod)":                                "cod",
		"stats count(*) as n by code, bin(1h) | sort n desc":   "",
		`filter instance = "i-0123456789abcdef0"`:              "instance",
		`filter code = "i-0123456789abcdef0" | sort code desc`: "",
	} {
		if got := strings.Join(unknownIn(query, members, `"enroll" "granted"`), " "); got != want {
			t.Errorf("%s: %q unknown, want %q", query, got, want)
		}
	}
}

// unknownIn returns the members and values of a query that nobody writes.
func unknownIn(query string, members []string, code string) []string {
	var unknown []string
	levels := []string{slog.LevelInfo.String(), slog.LevelWarn.String(), slog.LevelError.String()}
	for _, m := range regexpLiteral.FindAllStringSubmatch(query, -1) {
		if !strings.HasPrefix(m[1], "i-") && !slices.Contains(levels, m[1]) && !strings.Contains(code, m[0]) {
			unknown = append(unknown, m[0])
		}
	}
	query = regexpLiteral.ReplaceAllString(query, "")
	known := append(keywords(), members...)
	for _, m := range regexpAlias.FindAllStringSubmatch(query, -1) {
		known = append(known, m[1])
	}
	for _, m := range regexpMember.FindAllStringSubmatchIndex(query, -1) {
		word := query[m[4]:m[5]]
		if !strings.HasPrefix(query[m[5]:], "(") && !slices.Contains(known, word) {
			unknown = append(unknown, word)
		}
	}
	return unknown
}

// auditMembers returns the members in audit.md's tables.
func auditMembers(t *testing.T) []string {
	t.Helper()
	var members []string
	for line := range strings.Lines(readFile(t, "audit.md")) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		for _, m := range regexpMembers.FindAllStringSubmatch(strings.SplitN(line, "|", 3)[1], -1) {
			members = append(members, m[1])
		}
	}
	return members
}

// signerCode returns the code of the signer and of the protocol, without its tests.
func signerCode(t *testing.T) string {
	t.Helper()
	var code strings.Builder
	for _, folder := range []string{"signer", "protocol"} {
		err := filepath.WalkDir(filepath.Join("..", "internal", folder), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			code.Write(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return code.String()
}
