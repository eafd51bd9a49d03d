package upkeep

import (
	"maps"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
)

// Between two addresses an instance has none. Its node waits, and then follows.
func TestANodeOutlivesAMovingAddress(t *testing.T) {
	w := newWorld(t)
	w.setPolicy("{name: default, match: {image_owners: [listed], max_age: 24h}, address: public}")
	i := w.run(1)
	i.PublicIP = "203.0.113.7"
	w.enrollInstance(1, i)
	i.PublicIP = "" // the Elastic IP is on its way
	i.Tags["env"] = "staging"
	w.tagsChanged(TagChange{ref(1), 5})
	if got, want := w.sweep(0), (Report{Nodes: 1, Incomplete: 1}); got != want {
		t.Errorf("report %+v, want %+v", got, want)
	}
	if node, ok := w.node(1); !ok || node.Address != "203.0.113.7:22" {
		t.Fatalf("node %+v is there: %v", node, ok)
	}
	i.PublicIP = "203.0.113.8"
	if got, want := w.sweep(0), (Report{Nodes: 1, Repaired: 1}); got != want {
		t.Errorf("report %+v, want %+v", got, want)
	}
	if node, _ := w.node(1); node.Address != "203.0.113.8:22" || node.Labels["aws/env"] != "staging" {
		t.Errorf("node %+v", node)
	}
}

// Nor does a launch time that EC2 does not show cost an enrolled instance its node.
func TestANodeOutlivesAnUnknownLaunchTime(t *testing.T) {
	for _, when := range []string{`age < duration("1000h")`, `launch_time > timestamp("2020-01-01T00:00:00Z")`} {
		w := newWorld(t)
		w.setPolicy("{name: default, match: {image_owners: [listed], max_age: 24h}, when: '" + when + "'}")
		i := w.enroll(1)
		launched := i.LaunchTime
		i.LaunchTime, i.Tags["env"] = time.Time{}, "staging"
		w.tagsChanged(TagChange{ref(1), 5})
		if node, ok := w.node(1); !ok || node.Labels["aws/env"] != "prod" {
			t.Errorf("%s: node %+v is there: %v", when, node, ok)
		}
		i.LaunchTime = launched
		if got, want := w.sweep(0), (Report{Nodes: 1, Repaired: 1}); got != want {
			t.Errorf("%s: report %+v, want %+v", when, got, want)
		}
	}
}

// What the ledger remembers about an image replaces an image that EC2 no longer shows, and no
// other.
func TestImagesThatEC2NoLongerShows(t *testing.T) {
	const (
		owner = "{name: default, match: {image_owners: [self], max_age: 24h}}"
		tags  = "{name: default, match: {image_owners: [self], max_age: 24h, image_tags: {release: [stable]}}}"
		when  = `{name: default, match: {image_owners: [self], max_age: 24h}, when: 'image_tags.get("release") == "stable"'}`
	)
	gone := func(i *inventory.Instance) { i.ImageOwner, i.ImageTags = "", nil }
	for name, tt := range map[string]struct {
		rule   string
		change func(*inventory.Instance)
		labels bool // the label of the new tag is there
		refuse bool // and the node goes
	}{
		"gone, by owner":                       {owner, gone, true, false},
		"gone, by tags":                        {tags, gone, true, false},
		"gone, by a condition":                 {when, gone, true, false},
		"gone, its owner still told":           {tags, func(i *inventory.Instance) { i.ImageTags = nil }, true, false},
		"another image that is shown":          {tags, func(i *inventory.Instance) { i.ImageID = "ami-2" }, true, false},
		"another image that is not":            {owner, func(i *inventory.Instance) { gone(i); i.ImageID = "ami-2" }, false, false},
		"another image that is not, by tags":   {tags, func(i *inventory.Instance) { gone(i); i.ImageID = "ami-2" }, false, false},
		"a stranger's image":                   {owner, func(i *inventory.Instance) { gone(i); i.ImageID, i.ImageOwner = "ami-2", "999999999999" }, false, true},
		"another image of the owner, no tags":  {tags, func(i *inventory.Instance) { i.ImageID, i.ImageTags = "ami-2", nil }, false, false},
		"the image, with other tags than then": {tags, func(i *inventory.Instance) { i.ImageTags = map[string]string{"release": "beta"} }, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.setPolicy(tt.rule)
			i := w.run(1)
			i.ImageTags = map[string]string{"release": "stable"}
			w.enrollInstance(1, i)
			i.ImageTags = maps.Clone(i.ImageTags)
			tt.change(i)
			i.Tags["cost-center"] = "42"
			w.now = w.now.Add(48 * time.Hour)
			before := w.sweep(0)
			if refused := before.Refused == 1; refused != tt.refuse {
				t.Errorf("report %+v, want a refusal: %v", before, tt.refuse)
			}
			w.tagsChanged(TagChange{ref(1), 2})
			node, there := w.node(1)
			if there == tt.refuse || (node.Labels["aws/cost-center"] == "42") != tt.labels {
				t.Errorf("node is there: %v, labels %v", there, node.Labels)
			}
			if w.retired(1) {
				t.Error("the record ended")
			}
		})
	}
}
