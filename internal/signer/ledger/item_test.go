package ledger

import (
	"reflect"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

func TestRecordItemRoundTrip(t *testing.T) {
	end := time.Date(2026, 1, 9, 3, 4, 5, 0, time.UTC)
	for name, r := range map[string]record{
		"an image without tags":  {version: 1, generation: 1, names: map[string]time.Time{}, image: "ami-1", imageOwner: "111122223333", imageTags: map[string]string{}},
		"ended before any claim": {version: 1, generation: 1, names: map[string]time.Time{}, retired: true},
		"all there is": {
			version: 1 << 60, generation: 3, keys: []string{"SHA256:a", "SHA256:b"},
			names:             map[string]time.Time{"web": end, "10.0.0.1": end.Add(time.Second), "db.example.com": end},
			confirmedHostname: "web", image: "ami-1", imageOwner: "111122223333", rekeyedBy: "an operator",
			imageTags: map[string]string{"release": "stable", "empty": ""},
			permit:    Permit{Fingerprint: "SHA256:c", ValidUntil: end, By: "another"},
			left:      true, leftAt: end.Add(-time.Hour), askedAt: end.Add(-2 * time.Hour),
			renewed: end, rule: "web",
			retired: true, retiredBy: "a third",
			health: Health{Reported: "ok", ReportedAt: end, Unreachable: true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			i := ec2ref.Instance{Account: "111122223333", Region: "us-west-2", ID: "i-0123456789abcdef0"}
			got, err := parseRecord(formatRecord(i, r))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, r) || !got.equal(r) {
				t.Errorf("record %+v, want %+v", got, r)
			}
		})
	}
}

// TestRecordEqual changes each field: one that equal forgets would never be written.
func TestRecordEqual(t *testing.T) {
	var zero record
	fields := reflect.TypeFor[record]()
	changed := map[string]record{
		"generation":        {generation: 1},
		"keys":              {keys: []string{"k"}},
		"names":             {names: map[string]time.Time{"n": {}}},
		"confirmedHostname": {confirmedHostname: "n"},
		"image":             {image: "ami-1"},
		"imageOwner":        {imageOwner: "111122223333"},
		"imageTags":         {imageTags: map[string]string{}},
		"signer":            {signer: "hallmark.example.com"},
		"lease":             {lease: time.Unix(1, 0)},
		"renewed":           {renewed: time.Unix(1, 0)},
		"rule":              {rule: "web"},
		"program":           {program: "v1.2.3"},
		"expires":           {expires: time.Unix(1, 0)},
		"permit":            {permit: Permit{By: "me"}},
		"tagsVersion":       {tagsVersion: 1},
		"rekeyedBy":         {rekeyedBy: "me"},
		"left":              {left: true},
		"leftAt":            {leftAt: time.Unix(1, 0)},
		"askedAt":           {askedAt: time.Unix(1, 0)},
		"retired":           {retired: true},
		"retiredBy":         {retiredBy: "me"},
		"health":            {health: Health{Unreachable: true}},
	}
	for n := range fields.NumField() {
		name := fields.Field(n).Name
		if name == "version" {
			continue
		}
		if r, there := changed[name]; !there || r.equal(zero) {
			t.Errorf("a record with another %s is equal", name)
		}
	}
}

// An image's owner decides whether a policy admits the image.
func TestImageOwnerIsAnAccount(t *testing.T) {
	of := ec2ref.Instance{Account: "111122223333", Region: "us-west-2", ID: "i-0123456789abcdef0"}
	for owner, fine := range map[string]bool{"": true, "444455556666": true, "amazon": false, "1": false, "4444555566660": false} {
		it := formatRecord(of, record{version: 1})
		it[attrOwner] = text(owner)
		r, err := parseRecord(it)
		if (err == nil) != fine || fine && r.imageOwner.String() != owner {
			t.Errorf("owner %q: %q, error %v", owner, r.imageOwner, err)
		}
	}
}
