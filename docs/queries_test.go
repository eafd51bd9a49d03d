package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
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
)

// keywords are the words of Logs Insights that the queries use.
func keywords() []string {
	return []string{"fields", "filter", "stats", "sort", "by", "as", "and", "or", "desc", "asc", "limit"}
}

// Each query for CloudWatch Logs Insights names only members that audit.md describes, which
// the tests of the lines compare with the code, and only values that the code writes.
func TestQueries(t *testing.T) {
	members, code := auditMembers(t), signerCode(t)
	count := 0
	for _, document := range []string{"operations.md", "audit.md"} {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range regexpBlock.FindAllStringSubmatch(string(text), -1) {
			count++
			for _, wrong := range unknownIn(block[1], members, code) {
				t.Errorf("%s: %s is unknown in the query\n%s", document, wrong, block[1])
			}
		}
	}
	if count < 10 {
		t.Errorf("%d queries found", count)
	}
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
	for _, m := range regexpLiteral.FindAllStringSubmatch(query, -1) {
		if !strings.HasPrefix(m[1], "i-") && !strings.Contains(code, m[0]) {
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
	text, err := os.ReadFile("audit.md")
	if err != nil {
		t.Fatal(err)
	}
	var members []string
	for line := range strings.Lines(string(text)) {
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
