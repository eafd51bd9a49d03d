package report

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/golden"
)

var update = flag.Bool("update", false, "write the golden files")

func TestWrite(t *testing.T) {
	gaps := []Gap{{Source: sourceEC2, Account: "444455556666", Region: "eu-west-1", Error: "AccessDenied"}, {Source: sourceTeleport, Error: "no login"}}
	hostile := someRows()[:1]
	hostile[0].Hostname, hostile[0].Rule = "web\x1b[2J\tx", "=HYPERLINK(\"http://192.0.2.1\")"
	full, none, odd := New(someRows(), gaps, noon()), New(nil, nil, noon()), New(hostile, nil, noon())
	for name, write := range map[string]func(io.Writer) error{
		"full.json": full.WriteJSON, "full.csv": full.WriteCSV, "full.txt": full.WriteTable,
		"none.json": none.WriteJSON, "none.csv": none.WriteCSV, "none.txt": none.WriteTable,
		"hostile.txt": odd.WriteTable, "hostile.csv": odd.WriteCSV,
	} {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			if err := write(&got); err != nil {
				t.Fatal(err)
			}
			golden.Compare(t, filepath.Join("testdata", name), got.Bytes(), *update)
		})
	}
}

func TestWriteFails(t *testing.T) {
	r := New(someRows(), nil, noon())
	for name, write := range map[string]func(io.Writer) error{"json": r.WriteJSON, "csv": r.WriteCSV, "table": r.WriteTable} {
		if err := write(full{}); err == nil {
			t.Errorf("%s: a full disk is no error", name)
		}
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, os.ErrClosed }

// docs/reference.md describes every member of the JSON object, and no other.
func TestSchemaIsDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "reference.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n### `report --format json`\n")
	if !found {
		t.Fatal("docs/reference.md has no section on the report")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var documented []string
	table, states, _ := strings.Cut(section, "\n| state |")
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_0-9.\\[\\]]+)` \\|").FindAllStringSubmatch(table, -1) {
		documented = append(documented, m[1])
	}
	slices.Sort(documented)
	want := members("", reflect.TypeFor[Report]())
	slices.Sort(want)
	if !slices.Equal(documented, want) {
		t.Errorf("documented %q\nwant       %q", documented, want)
	}
	for _, s := range States() {
		if !strings.Contains(states, "\n| `"+string(s)+"`") {
			t.Errorf("the state %s is not described", s)
		}
	}
}

// members returns the paths of the members of an object and of those inside it.
func members(prefix string, of reflect.Type) []string {
	var all []string
	for n := range of.NumField() {
		field := of.Field(n)
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		inner := field.Type
		if inner.Kind() == reflect.Slice {
			name, inner = name+"[]", inner.Elem()
		}
		all = append(all, prefix+name)
		if inner.Kind() == reflect.Struct && inner.PkgPath() == of.PkgPath() {
			all = append(all, members(prefix+name+".", inner)...)
		}
	}
	return all
}

func TestSummaryHasAllStates(t *testing.T) {
	var out bytes.Buffer
	if err := New(nil, nil, noon()).WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Summary struct{ States map[State]int }
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || len(got.Summary.States) != len(States()) {
		t.Errorf("states %v, error %v", got.Summary.States, err)
	}
}
