package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

const defaultName = "web-server-" + ownID

// The pattern accepts everything, so this tests only the checks after it.
const tagPolicy = `version: 1
rules:
  - name: a
    match: {ANY}
    teleport_hostname:
      pattern: "(?s).*"
      suffixes: [.corp.example.net, .lan]
`

func TestTeleportHostname(t *testing.T) {
	// Each row is the tag's value, the host name, and what the note says.
	tests := map[string]struct{ value, want, note string }{
		"label":                 {"bastion", "bastion", ""},
		"suffix":                {"db1.corp.example.net", "db1.corp.example.net", ""},
		"short suffix":          {"db1.lan", "db1.lan", ""},
		"own id":                {"x-" + ownID, "x-" + ownID, ""},
		"empty":                 {"", defaultName, ""},
		"upper case":            {"Bastion", defaultName, "not one lower-case DNS label"},
		"other suffix":          {"db1.example.net", defaultName, "no such suffix"},
		"two labels in front":   {"a.db1.corp.example.net", defaultName, "no such suffix"},
		"suffix alone":          {".corp.example.net", defaultName, "not one lower-case DNS label"},
		"dot at the end":        {"db1.corp.example.net.", defaultName, "no such suffix"},
		"principals":            {"a,b", defaultName, "not one lower-case DNS label"},
		"space":                 {"a b", defaultName, "not one lower-case DNS label"},
		"wildcard":              {"*", defaultName, "not one lower-case DNS label"},
		"wildcard below":        {"*.corp.example.net", defaultName, "not one lower-case DNS label"},
		"new line":              {"bastion\n", defaultName, "not one lower-case DNS label"},
		"new line inside":       {"a\nbastion", defaultName, "not one lower-case DNS label"},
		"nul":                   {"a\x00", defaultName, "not one lower-case DNS label"},
		"letter like another":   {"b\u0430stion", defaultName, "not one lower-case DNS label"},
		"encoded letters":       {"xn--bstion-7nf", defaultName, "encoded name"},
		"too long a label":      {strings.Repeat("a", 64), defaultName, "not one lower-case DNS label"},
		"far too long":          {strings.Repeat("a", 10<<10), defaultName, "too long"},
		"IPv4":                  {"10.0.0.1", defaultName, "no such suffix"},
		"short IPv4":            {"127.1", defaultName, "no such suffix"},
		"IPv6":                  {"2001:db8::1", defaultName, "not one lower-case DNS label"},
		"decimal address":       {"2130706433", defaultName, "IP address"},
		"hexadecimal address":   {"0x7f000001", defaultName, "IP address"},
		"octal address":         {"017700000001", defaultName, "IP address"},
		"EC2's name":            {"ip-10-0-0-1", defaultName, "the name EC2 gives an address"},
		"EC2's name below":      {"ip-10-0-0-1.lan", defaultName, "the name EC2 gives an address"},
		"UUID":                  {"6ba7b810-9dad-11d1-80b4-00c04fd430c8", defaultName, "is a UUID"},
		"UUID below":            {"6ba7b810-9dad-11d1-80b4-00c04fd430c8.lan", defaultName, "is a UUID"},
		"Teleport's own form":   {account + "-" + ownID, defaultName, "<account>-i-"},
		"localhost":             {"localhost", defaultName, "localhost"},
		"localhost below":       {"localhost.lan", defaultName, "localhost"},
		"localhost4":            {"localhost4", defaultName, "the name of every machine itself"},
		"localhost6 below":      {"localhost6.lan", defaultName, "the name of every machine itself"},
		"ip6-localhost":         {"ip6-localhost", defaultName, "the name of every machine itself"},
		"ip6-loopback below":    {"ip6-loopback.corp.example.net", defaultName, "the name of every machine itself"},
		"ip6-allnodes":          {"ip6-allnodes", defaultName, "the name of every machine itself"},
		"loopback":              {"loopback", defaultName, "the name of every machine itself"},
		"broadcasthost":         {"broadcasthost", defaultName, "the name of every machine itself"},
		"not quite localhost":   {"localhosts", "localhosts", ""},
		"EC2's public name":     {"ec2-203-0-113-25", defaultName, "the name EC2 gives an address"},
		"id with a tail":        {"i-0123456789abcdef0-x", defaultName, "begins like the id"},
		"id, one digit longer":  {"i-0123456789abcdef01", defaultName, "begins like the id"},
		"id, one digit shorter": {"i-0123456789abcdef", defaultName, "begins like the id"},
		"own id with a tail":    {ownID + "-x", ownID + "-x", ""},
		"a word after i":        {"i-beef", "i-beef", ""},
		"cluster":               {"teleport", defaultName, "the cluster's name"},
		"cluster below":         {"teleport.lan", defaultName, "the cluster's name"},
		"proxy":                 {"proxy", defaultName, "the proxy's name"},
		"other instance":        {otherID, defaultName, "another instance"},
		"other's default name":  {"web-" + otherID, defaultName, "another instance"},
		"other's name below":    {"web-" + otherID + ".lan", defaultName, "another instance"},
		"instance of old":       {"web-i-12345678", defaultName, "another instance"},
		"terminal's characters": {"\x1b[2J", defaultName, "not one lower-case DNS label"},
	}
	p := mustParse(t, tagPolicy)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := facts()
			f.Tags[hostnameTag] = tt.value
			d, err := p.Decide(f, cluster(), clock())
			if err != nil || d.Hostname != tt.want {
				t.Fatalf("host name %q, error %v; want %q", d.Hostname, err, tt.want)
			}
			notes := strings.Join(d.Notes, "\n")
			if (notes == "") != (tt.note == "") || !strings.Contains(notes, tt.note) {
				t.Errorf("notes %q, want %q", notes, tt.note)
			}
			if len(notes) > 400 || strings.ContainsFunc(notes, unicode.IsControl) {
				t.Errorf("notes are not fit for a log: %q", notes)
			}
		})
	}
}

func TestTeleportHostnameIsOffByDefault(t *testing.T) {
	f := facts()
	f.Tags[hostnameTag] = "bastion"
	d, err := mustParse(t, "version: 1\nrules: [{name: a, match: {ANY}}]").Decide(f, cluster(), clock())
	if err != nil || d.Hostname != defaultName || d.Fallback != "" {
		t.Errorf("host name %q, fallback %q, error %v", d.Hostname, d.Fallback, err)
	}
}

func TestTeleportHostnamePatternIsAnchored(t *testing.T) {
	for pattern, values := range map[string][]string{
		"db[0-9]+":     {"db1x", "xdb1", "bastion", "db", "db1\n", "x\ndb1"},
		"a|db1":        {"db1x", "ab", "xdb1"},
		"(?m)^db1$":    {"db1\nx", "x\ndb1"},
		"(?i)db1":      {"DB1"}, // matches, but the checks refuse it
		"db1(?#x":      nil,
		"(?s)db1.*.$)": nil,
	} {
		p, err := Parse(anyImage("version: 1\nrules: [{name: a, match: {ANY}, teleport_hostname: {pattern: '"+pattern+"'}}]"), limits())
		if (err != nil) != (values == nil) {
			t.Errorf("pattern %q: error %v", pattern, err)
		}
		if err != nil {
			continue
		}
		for _, value := range append(values, "db1") {
			f := facts()
			f.Tags[hostnameTag] = value
			d, err := p.Decide(f, cluster(), clock())
			if err != nil || (d.Hostname == value) != (value == "db1") {
				t.Errorf("pattern %q, value %q: host name %q, error %v", pattern, value, d.Hostname, err)
			}
		}
	}
}

// "<host name>.<cluster>" is among the principals of every certificate.
func TestTeleportHostnameIsNeverBelowClusterOrProxy(t *testing.T) {
	p := mustParse(t, "version: 1\nrules: [{name: a, match: {ANY}, teleport_hostname: {pattern: '.*', suffixes: [.main.example, .example]}}]")
	f := facts()
	for _, c := range []node.Cluster{{Name: "main.example"}, {Proxy: "Main.Example."}} {
		for value, allowed := range map[string]bool{"web.main.example": false, "main.example": false, "domain.example": true} {
			f.Tags[hostnameTag] = value
			d, err := p.Decide(f, c, clock())
			if err != nil || (d.Hostname == value) != allowed {
				t.Errorf("cluster %+v: host name %q, error %v", c, d.Hostname, err)
			}
		}
	}
}

func TestFallback(t *testing.T) {
	long := strings.Repeat("a", 63)
	for value, want := range map[string]string{
		"bastion":              "bastion-" + ownID,
		"db1.corp.example.net": "db1-" + ownID + ".corp.example.net",
		long:                   long[:43] + "-" + ownID,
		long + ".lan":          long[:43] + "-" + ownID + ".lan",
		long[:42] + "-b":       long[:42] + "-" + ownID,
		account + "-i":         ownID, // <account>-i-i-… would be one of Teleport's own names
		"x-" + ownID:           "",
		ownID:                  "",
		"x-" + ownID + ".lan":  "",
		"10.0.0.1":             "", // the template's name, which contains the id
	} {
		f := facts()
		f.Tags[hostnameTag] = value
		d, err := mustParse(t, tagPolicy).Decide(f, cluster(), clock())
		if err != nil || d.Fallback != want {
			t.Errorf("%q: host name %q, fallback %q, error %v; want %q", value, d.Hostname, d.Fallback, err, want)
		}
	}
}

func TestLongestSuffixFits(t *testing.T) {
	label := strings.Repeat("d", 62)
	domain := "." + label + "." + label + ".d" + label
	if len(domain) != len(".")+node.MaxDomainBytes || checkSuffix(domain+"d") == nil {
		t.Fatalf("%d bytes of suffix are not the longest", len(domain))
	}
	if err := checkSuffix(domain); err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("a", node.MaxDNSLabelBytes) + domain
	if len(name) > 253 {
		t.Errorf("%d bytes of host name, more than DNS has", len(name))
	}
	if got := node.Fallback(name, facts(), cluster()); !strings.HasSuffix(got, "-"+ownID+domain) || len(got) > 253 {
		t.Errorf("fallback %q", got)
	}
}

// checkGranted checks a granted name against rule 5 of the security rules, by other means than
// the code.
func checkGranted(t *testing.T, name string, c node.Cluster) {
	t.Helper()
	if len(name) == 0 || len(name) > 253 || name != strings.ToLower(name) {
		t.Errorf("%q: bad length or case", name)
	}
	for _, r := range name {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-.", r) {
			t.Errorf("%q holds %q", name, r)
		}
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			t.Errorf("%q: bad label %q", name, label)
		}
	}
	if _, err := netip.ParseAddr(name); err == nil {
		t.Errorf("%q is an address", name)
	}
	if strings.Trim(labels[len(labels)-1], "0123456789") == "" {
		t.Errorf("%q ends in a number", name)
	}
	if slices.Contains([]string{"localhost", c.Name, c.Proxy}, name) || strings.HasSuffix(name, "."+c.Name) || strings.HasSuffix(name, "."+c.Proxy) {
		t.Errorf("%q is somebody else's", name)
	}
	if strings.HasSuffix(labels[0], otherID) {
		t.Errorf("%q is another instance's", name)
	}
}

// Whatever the tag contains, the checks hold, and the machine gets a name.
func FuzzTeleportHostname(f *testing.F) {
	for _, seed := range []string{
		"bastion", "db1.corp.example.net", "10.0.0.1", "0x7f000001", "a,b", "*", "xn--a", "localhost.lan", "a\nb", "A",
		"6ba7b810-9dad-11d1-80b4-00c04fd430c8", account + "-" + ownID, otherID, "teleport", "proxy.example.com", "ip-10-0-0-1.lan",
	} {
		f.Add(seed, "Web")
	}
	p, err := Parse(anyImage(tagPolicy), limits())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, tag, name string) {
		instance, c := facts(), cluster()
		instance.Tags[hostnameTag], instance.Tags["Name"] = tag, name
		d, err := p.Decide(instance, c, clock())
		if err != nil {
			t.Fatalf("a tag keeps the machine out: %v", err)
		}
		checkGranted(t, d.Hostname, c)
		if d.Hostname != tag && !strings.HasSuffix(d.Hostname, ownID) {
			t.Errorf("host name %q is neither the tag's nor ends in the id", d.Hostname)
		}
		if label, _, _ := strings.Cut(d.Hostname, "."); strings.HasSuffix(label, ownID) != (d.Fallback == "") {
			t.Errorf("host name %q, fallback %q", d.Hostname, d.Fallback)
		}
		if d.Fallback != "" {
			checkGranted(t, d.Fallback, c)
			if label, _, _ := strings.Cut(d.Fallback, "."); !strings.HasSuffix(label, ownID) {
				t.Errorf("fallback %q can be another's", d.Fallback)
			}
		}
	})
}
