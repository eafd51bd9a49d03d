package ledger

import (
	"reflect"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// TestRecordTextSaysAll changes one field after another: if the text left one out, two
// different ledgers would look the same.
func TestRecordTextSaysAll(t *testing.T) {
	end := time.Date(2026, 1, 9, 3, 4, 5, 0, time.UTC)
	changed := map[string]record{
		"version": {version: 1}, "generation": {generation: 1}, "keys": {keys: []string{"SHA256:a"}},
		"names": {names: map[string]time.Time{"web": end}}, "confirmedHostname": {confirmedHostname: "web"},
		"image": {image: "ami-1"}, "imageOwner": {imageOwner: "111122223333"}, "imageTags": {imageTags: map[string]string{}},
		"signer": {signer: "hallmark.example.com"}, "lease": {lease: end}, "renewed": {renewed: end}, "rule": {rule: "web"}, "program": {program: "v1.2.3"}, "tagsVersion": {tagsVersion: 1},
		"permit": {permit: Permit{Fingerprint: "SHA256:c"}}, "rekeyedBy": {rekeyedBy: "an operator"},
		"retired": {retired: true}, "retiredBy": {retiredBy: "an operator"}, "expires": {expires: end}, "health": {health: Health{Unreachable: true}},
		"left": {left: true}, "leftAt": {leftAt: end}, "askedAt": {askedAt: end},
	}
	fields := reflect.TypeFor[record]()
	seen := map[string]string{record{}.text(ec2ref.Instance{}): "nothing"}
	for n := range fields.NumField() {
		name := fields.Field(n).Name
		r, ok := changed[name]
		if !ok {
			t.Errorf("no record changes %s", name)
			continue
		}
		text := r.text(ec2ref.Instance{})
		if other, same := seen[text]; same {
			t.Errorf("%s changes the text as little as %s: %s", name, other, text)
		}
		seen[text] = name
	}
	for name, h := range map[string]Health{"report": {Reported: "ok"}, "time": {ReportedAt: end}} {
		if text := (record{health: h}).text(ec2ref.Instance{}); seen[text] != "" {
			t.Errorf("%s of the health does not change the text", name)
		}
	}
	for name, p := range map[string]Permit{"end": {ValidUntil: end}, "by": {By: "an operator"}} {
		if text := (record{permit: p}).text(ec2ref.Instance{}); seen[text] != "" {
			t.Errorf("%s of the permit does not change the text", name)
		}
	}
}
