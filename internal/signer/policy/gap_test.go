package policy

import (
	"errors"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// If EC2 does not show a fact now, that is not a refusal, unless the instance would be refused
// anyway. It never makes a rule match either, nor lets a laxer one decide in place of a failed
// condition.
func TestGaps(t *testing.T) {
	gone := func(f *node.Facts) { f.ImageOwner, f.ImageTags = "", nil }
	own := func(f *node.Facts) { f.ImageOwner, f.ImageTags = f.Account, map[string]string{"release": "stable"} }
	forgotten := func(f *node.Facts) { f.ImageOwner, f.ImageTags = f.Account, nil }
	homeless := func(f *node.Facts) { f.PrivateIP, f.PublicIP, f.IPv6, f.PrivateDNS = "", "", "", "" }
	const (
		owners       = "{name: a, match: {image_owners: [self], max_age: any}}"
		tags         = "{name: a, match: {image_owners: [self], max_age: any, image_tags: {release: [stable]}}}"
		tagged       = "{name: a, match: {image_owners: [self], max_age: any, tags: {env: [nothing]}}}"
		whenTag      = `{name: a, match: {ANY}, when: 'image_tags.get("release") == "stable"'}`
		whenKey      = `{name: a, match: {ANY}, when: 'image_tags["release"] == "stable"'}`
		whenNoTag    = `{name: a, match: {ANY}, when: '!("broken" in image_tags)'}`
		whenNotTag   = `{name: a, match: {ANY}, when: 'image_tags.get("broken") != "yes"'}`
		whenFew      = `{name: a, match: {ANY}, when: 'size(image_tags) < 5'}`
		whenHas      = `{name: a, match: {ANY}, when: '!has(image_tags.broken)'}`
		whenNotOwner = `{name: a, match: {ANY}, when: 'image_owner != "999999999999"'}`
		whenListed   = `{name: a, match: {ANY}, when: '!(image_owner in ["999999999999"])'}`
		whenOr       = `{name: a, match: {ANY}, when: 'image_tags.get("x") == "y" || region == "us-west-2" || true'}`
		whenAnd      = `{name: a, match: {ANY}, when: 'image_tags.get("x") != "y" && account == "000000000000"'}`
		whenOwner    = `{name: a, match: {ANY}, when: 'image_owner == account'}`
		whenIP       = `{name: a, match: {ANY}, when: 'public_ip.startsWith("192.")'}`
		whenBoth     = `{name: a, match: {image_owners: [self], max_age: any}, when: 'tags.get("env") == "nothing"'}`
		lax          = ", {name: lax, match: {ANY}}"
	)
	for name, tt := range map[string]struct {
		rules  string
		change func(*node.Facts)
		want   error // nil: admitted
	}{
		"an owner that is known":                        {owners, own, nil},
		"an owner that nobody knows":                    {owners, gone, ErrIncomplete},
		"tags that are known":                           {tags, own, nil},
		"tags that nobody knows":                        {tags, forgotten, ErrIncomplete},
		"neither owner nor tags":                        {tags, gone, ErrIncomplete},
		"other tags":                                    {tags, func(f *node.Facts) { own(f); f.ImageTags["release"] = "beta" }, ErrRefused},
		"no tags at all":                                {tags, func(f *node.Facts) { own(f); f.ImageTags = map[string]string{} }, ErrRefused},
		"another's image":                               {tags, func(f *node.Facts) { f.ImageOwner = otherAccount }, ErrRefused},
		"an owner that nobody knows, and the wrong tag": {tagged, gone, ErrRefused},
		"a condition on a tag of a lost image":          {whenTag, gone, ErrIncomplete},
		"a condition on a lost tag":                     {whenTag, forgotten, ErrIncomplete},
		"a condition that fails on a lost tag":          {whenKey, forgotten, ErrIncomplete},
		"the same, with a laxer rule behind":            {whenKey + lax, forgotten, ErrIncomplete},
		"a condition that fails on a tag":               {whenKey, func(f *node.Facts) { f.ImageOwner, f.ImageTags = f.Account, map[string]string{} }, ErrRefused},
		"a condition on the owner":                      {whenOwner, gone, ErrIncomplete},
		"a condition on another owner":                  {whenOwner, func(*node.Facts) {}, ErrRefused},
		"a tag that must not be there, all lost":        {whenNoTag, gone, ErrIncomplete},
		"a tag that must not be there, and lost tags":   {whenNoTag, forgotten, ErrIncomplete},
		"a tag that must not be there, and is not":      {whenNoTag, own, nil},
		"a tag that must have another value":            {whenNotTag, forgotten, ErrIncomplete},
		"the same, with a laxer rule before it":         {"{name: lax, match: {ANY}}, " + whenNotTag, forgotten, nil},
		"the same of another's image, which has none":   {whenNotTag, func(*node.Facts) {}, nil},
		"how many tags there are":                       {whenFew, forgotten, ErrIncomplete},
		"has a tag":                                     {whenHas, forgotten, ErrIncomplete},
		"an owner who must be another":                  {whenNotOwner, gone, ErrIncomplete},
		"an owner in a list":                            {whenListed, gone, ErrIncomplete},
		"lost tags, and what is true without them":      {whenOr, forgotten, nil},
		"lost tags, and what is false without them":     {whenAnd, forgotten, ErrRefused},
		"a lost tag that shall choose a laxer rule":     {whenTag + lax, forgotten, ErrIncomplete},
		"a condition on a lost address":                 {whenIP, homeless, ErrIncomplete},
		"a condition on another address":                {whenIP, func(f *node.Facts) { f.PublicIP = "203.0.113.7" }, ErrRefused},
		"a lost owner, and a condition that is false":   {whenBoth, gone, ErrRefused},
		"no private address":                            {"{name: a, match: {ANY}}", homeless, ErrIncomplete},
		"one rule refuses, the other lacks an owner":    {owners + ", {name: b, match: {ANY, regions: [hm-test-1]}}", gone, ErrIncomplete},
	} {
		t.Run(name, func(t *testing.T) {
			f := facts()
			tt.change(&f)
			d, err := mustParse(t, "{version: 1, rules: ["+tt.rules+"]}").Decide(f, cluster(), clock())
			if !errors.Is(err, tt.want) || (err != nil) != (tt.want != nil) || errors.Is(err, ErrRefused) && errors.Is(err, ErrIncomplete) {
				t.Errorf("rule %q, error %v; want %v", d.Rule, err, tt.want)
			}
		})
	}
}

// If a fact that EC2 does not show keeps a rule from deciding, the next rule does not decide
// about a stopped machine either.
func TestAGapRemovesNoStoppedNode(t *testing.T) {
	p := mustParse(t, `{version: 1, rules: [
		{name: a, match: {image_owners: [self], max_age: any}, when_stopped: keep}, {name: b, match: {ANY}, when_stopped: remove}]}`)
	f := facts()
	if !p.RemovesStopped(f, clock()) {
		t.Error("the second rule does not decide")
	}
	f.ImageOwner = ""
	if p.RemovesStopped(f, clock()) {
		t.Error("the node would go while the image's owner is unknown")
	}
}
