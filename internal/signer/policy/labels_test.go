package policy

import (
	"fmt"
	"slices"
	"testing"
)

// A tag with characters that are invisible, or change how others appear, makes no label.
func TestLabelValuesCanBeSeen(t *testing.T) {
	for _, r := range []rune{
		'\x01', '\x7f', '\u0085', '\u00ad', '\u200b', '\u200e', '\u202e', '\u2066', '\u2060', '\ufeff', '\u2028', '\u2029', '\u061c',
		'\u3164', '\u115f', '\u034f', '\ufe0f', '\U000e0041', '\U000e0100', '\ufffd',
	} {
		t.Run(fmt.Sprintf("U+%04X", r), func(t *testing.T) {
			f := facts()
			f.Tags = map[string]string{"env": "prod" + string(r), "Name": "we" + string(r) + "b", "k" + string(r): "v", "ok": "caf\u00e9 \u6771\u4eac"}
			d, err := mustParse(t, builtIn).Decide(f, cluster(), clock())
			if err != nil {
				t.Fatal(err)
			}
			if d.Labels["aws/ok"] == "" || len(d.SkippedTags) != 3 || slices.Contains(d.SkippedTags, "ok") {
				t.Errorf("labels %q, skipped %q", d.Labels, d.SkippedTags)
			}
			if d.Hostname != "we-b-"+ownID {
				t.Errorf("host name %q", d.Hostname)
			}
			if _, err := Parse(anyImage(fmt.Sprintf("version: 1\nrules: [{name: a, match: {ANY}, labels: {static: {team: \"x\\U%08x\"}}}]", r)), limits()); err == nil {
				t.Error("a static label may hold it")
			}
		})
	}
}

func TestSuffixesThatEveryMachineHas(t *testing.T) {
	for suffix, valid := range map[string]bool{
		".localdomain": false, ".localdomain6": false, ".localhost": false, ".localhost4": false, ".localdomain.example.net": true, ".lan": true,
	} {
		if err := checkSuffix(suffix); (err == nil) != valid {
			t.Errorf("%s: error %v", suffix, err)
		}
	}
}
