package policy

import (
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

func TestHostname(t *testing.T) {
	tests := map[string]struct {
		template, nameTag, want string
	}{
		"name and id":            {defaultTemplate, "web", "web-" + ownID},
		"no name":                {defaultTemplate, "", ownID},
		"upper case":             {defaultTemplate, "WEB-1", "web-1-" + ownID},
		"dots and spaces":        {defaultTemplate, " web.example.com  #2 ", "web-example-com-2-" + ownID},
		"letters outside ASCII":  {defaultTemplate, "wéb\u212aß", "w-b-" + ownID},
		"nothing usable":         {defaultTemplate, "日本語", ownID},
		"long":                   {defaultTemplate, strings.Repeat("a", 300), strings.Repeat("a", 63-1-len(ownID)) + "-" + ownID},
		"cut at a hyphen":        {defaultTemplate, strings.Repeat("a", 42) + "-b", strings.Repeat("a", 42) + "-" + ownID},
		"another instance's id":  {defaultTemplate, "x-" + otherID, "x-" + otherID + "-" + ownID},
		"like Teleport's own":    {defaultTemplate, account, ownID},
		"an address":             {defaultTemplate, "10.0.0.1", "10-0-0-1-" + ownID},
		"bare id":                {idPlaceholder, "web", ownID},
		"literal text and facts": {"n-{account}-{tag:Name}-{instance-id}", "web", "n-111122223333-web-" + ownID},
		"no hyphen before id":    {"web{instance-id}", "", "web-" + ownID},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tpl, err := parseTemplate(tt.template)
			if err != nil {
				t.Fatal(err)
			}
			f := facts()
			f.Tags["Name"] = tt.nameTag
			got, err := tpl.hostname(f, cluster())
			if err != nil || got != tt.want {
				t.Errorf("got %q, error %v; want %q", got, err, tt.want)
			}
		})
	}
}

func TestHostnameRefusesOnlyAnUnusableID(t *testing.T) {
	tpl, err := parseTemplate(defaultTemplate)
	if err != nil {
		t.Fatal(err)
	}
	c := cluster()
	c.Name = ownID + ".example.com"
	f := facts()
	f.Tags = nil
	if got, err := tpl.hostname(f, c); err == nil {
		t.Errorf("got %q, the cluster's name", got)
	}
}

func TestParseTemplateRefuses(t *testing.T) {
	for _, text := range []string{
		"", "web", "{tag:Name}", "{instance-id}-{tag:Name}", "{tag:}-{instance-id}", "{nope}-{instance-id}",
		"{instance-id}-{instance-id}", "{tag:Name-{instance-id}", "Web-{instance-id}", "web.{instance-id}", "a}b{instance-id}",
		strings.Repeat("a", maxTemplateBytes) + "{instance-id}",
	} {
		if _, err := parseTemplate(text); err == nil {
			t.Errorf("template %q was accepted", text)
		}
	}
}

// Whatever the tag contains, the name is one label, ends in the instance's own id, and passes
// the checks.
func FuzzHostname(f *testing.F) {
	for _, name := range []string{"web", "", "10.0.0.1", account, "x-" + otherID, "日本語", strings.Repeat("-a", 80), "LOCALHOST"} {
		f.Add(name)
	}
	tpl, err := parseTemplate(defaultTemplate)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name string) {
		fs := facts()
		fs.Tags["Name"] = name
		got, err := tpl.hostname(fs, cluster())
		if err != nil {
			t.Fatalf("tag %q: %v", name, err)
		}
		if strings.Contains(got, ".") || len(got) > 63 {
			t.Errorf("tag %q: %q is no DNS label", name, got)
		}
		if got != ownID && !strings.HasSuffix(got, "-"+ownID) {
			t.Errorf("tag %q: %q does not end in the instance's id", name, got)
		}
		if err := node.CheckHostname(got, fs, cluster()); err != nil {
			t.Errorf("tag %q: %v", name, err)
		}
	})
}
