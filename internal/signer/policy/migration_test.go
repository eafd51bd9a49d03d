package policy

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// TestMigrationExample shows which machines the migration example admits, and when.
func TestMigrationExample(t *testing.T) {
	text, err := os.ReadFile("../../../templates/policy/migration.yaml")
	if err != nil {
		t.Fatal(err)
	}
	p, err := Parse(text, limits())
	if err != nil {
		t.Fatal(err)
	}
	var (
		old   = time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
		begin = time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
		end   = time.Date(2027, 2, 1, 0, 0, 0, 0, time.UTC)
	)
	for _, test := range []struct {
		name     string
		launched time.Time
		now      time.Time
		change   func(*node.Facts)
		want     string
	}{
		{"an old machine of the wave", old, begin, nil, "migration"},
		{"launched last", begin.Add(-time.Second), begin, nil, "migration"},
		{"launched since", begin, begin.Add(48 * time.Hour), nil, ""},
		{"a new machine of our own image", begin, begin.Add(time.Hour), func(f *node.Facts) { f.ImageOwner = account }, "default"},
		{"the last moment", old, end.Add(-time.Second), nil, "migration"},
		{"the end", old, end, nil, ""},
		{"renewal after the end", old, end, func(f *node.Facts) { f.Enrolled = true }, "migration"},
		{"renewal after a stop and a start", end.Add(time.Hour), end.Add(2 * time.Hour), func(f *node.Facts) { f.Enrolled = true }, "migration"},
		{"a later wave", old, begin, func(f *node.Facts) { f.Tags["hallmark-wave"] = "2" }, ""},
		{"no wave", old, begin, func(f *node.Facts) { delete(f.Tags, "hallmark-wave") }, ""},
		{"another account", old, begin, func(f *node.Facts) { f.Account = "444455556666" }, ""},
		{"unknown launch", time.Time{}, begin, nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := facts()
			f.Tags["hallmark-wave"], f.LaunchTime, f.ImageOwner = "1", test.launched, "999999999999"
			if test.change != nil {
				test.change(&f)
			}
			d, err := p.Decide(f, cluster(), test.now)
			if d.Rule != test.want || (test.want == "") != errors.Is(err, ErrRefused) {
				t.Errorf("rule %q, error %v; want rule %q", d.Rule, err, test.want)
			}
		})
	}
}
