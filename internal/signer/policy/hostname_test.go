package policy

import (
	"strings"
	"testing"
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

func TestCheckHostname(t *testing.T) {
	tests := map[string]bool{
		"web":                                  true,
		"web-" + ownID:                         true,
		ownID:                                  true,
		"10-0-0-1":                             true,
		"beef":                                 true,
		strings.Repeat("a", 63):                true,
		"":                                     false,
		strings.Repeat("a", 64):                false,
		"-web":                                 false,
		"web-":                                 false,
		"Web":                                  false,
		"web_1":                                false,
		"web.example":                          false,
		"10.0.0.1":                             false,
		"127.1":                                false,
		"::1":                                  false,
		"2130706433":                           false,
		"0x7f000001":                           false,
		"0x":                                   false,
		"017700000001":                         false,
		"6ba7b810-9dad-11d1-80b4-00c04fd430c8": false,
		"6ba7b8109dad11d180b400c04fd430c8":     false,
		account + "-" + ownID:                  false,
		account + "-i-x":                       false,
		"localhost":                            false,
		"teleport":                             false,
		"proxy":                                false,
		otherID:                                false,
		"bastion-" + otherID:                   false,
		"bastion" + otherID:                    false,
		"web-i-12345678":                       false,
		"*":                                    false,
	}
	for name, want := range tests {
		if err := checkHostname(name, facts(), cluster()); (err == nil) != want {
			t.Errorf("%q: error %v, want allowed %v", name, err, want)
		}
	}
	c := Cluster{Name: "main", Proxy: "Main-Proxy."}
	for _, name := range []string{"main", "main-proxy"} {
		if checkHostname(name, facts(), c) == nil {
			t.Errorf("%q, a name of the cluster without dots, was accepted", name)
		}
	}
}

// Whatever the tag says, the name is one label, ends in the instance's own id,
// and passes the gate.
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
		if !regexpLabel.MatchString(got) || len(got) > 63 {
			t.Errorf("tag %q: %q is no DNS label", name, got)
		}
		if got != ownID && !strings.HasSuffix(got, "-"+ownID) {
			t.Errorf("tag %q: %q does not end in the instance's id", name, got)
		}
		if err := checkHostname(got, fs, cluster()); err != nil {
			t.Errorf("tag %q: %v", name, err)
		}
	})
}
