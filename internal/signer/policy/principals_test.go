package policy

import (
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

func TestPrincipals(t *testing.T) {
	const all = "private_ip, public_ip, ipv6, private_dns"
	tests := map[string]struct {
		kinds  string
		mutate func(*node.Facts)
		want   []string
		note   string
	}{
		"none":              {"", func(*node.Facts) {}, nil, ""},
		"all":               {all, func(*node.Facts) {}, []string{"10.0.0.7", "192.0.2.7", "2001:db8::7", "ip-10-0-0-7.us-west-2.compute.internal"}, ""},
		"some that it has":  {"public_ip, private_dns", func(f *node.Facts) { f.PublicIP = "" }, []string{"ip-10-0-0-7.us-west-2.compute.internal"}, ""},
		"as people type it": {"ipv6", func(f *node.Facts) { f.IPv6 = "2001:DB8:0:0::7" }, []string{"2001:db8::7"}, ""},
		"twice the same":    {"private_ip, public_ip", func(f *node.Facts) { f.PublicIP = f.PrivateIP }, []string{"10.0.0.7"}, ""},
		"instance's name":   {"private_dns", func(f *node.Facts) { f.PrivateDNS = ownID + ".us-west-2.compute.internal" }, []string{ownID + ".us-west-2.compute.internal"}, ""},

		"other's name":         {"private_dns", func(f *node.Facts) { f.PrivateDNS = otherID + ".us-west-2.compute.internal" }, nil, "another instance"},
		"cluster's name":       {"private_dns", func(f *node.Facts) { f.PrivateDNS = "web.teleport.example.com" }, nil, "or below it"},
		"name is an address":   {"private_dns", func(f *node.Facts) { f.PrivateDNS = "10.0.0.8" }, nil, "IP address"},
		"name with a wildcard": {"private_dns", func(f *node.Facts) { f.PrivateDNS = "*.ec2.internal" }, nil, "not one lower-case"},
		"not an address":       {"private_ip", func(f *node.Facts) { f.PrivateIP = "bastion" }, nil, "no such address"},
		"loopback":             {"private_ip", func(f *node.Facts) { f.PrivateIP = "127.0.0.1" }, nil, "no such address"},
		"unspecified":          {"ipv6", func(f *node.Facts) { f.IPv6 = "::" }, nil, "no such address"},
		"link-local":           {"ipv6", func(f *node.Facts) { f.IPv6 = "fe80::1" }, nil, "no such address"},
		"zone":                 {"ipv6", func(f *node.Facts) { f.IPv6 = "2001:db8::7%eth0" }, nil, "no such address"},
		"IPv6 as IPv4":         {"private_ip", func(f *node.Facts) { f.PrivateIP = "2001:db8::7" }, nil, "no such address"},
		"IPv4 as IPv6":         {"ipv6", func(f *node.Facts) { f.IPv6 = "10.0.0.7" }, nil, "no such address"},
		"IPv4 in IPv6":         {"ipv6", func(f *node.Facts) { f.IPv6 = "::ffff:10.0.0.7" }, nil, "no such address"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := facts()
			tt.mutate(&f)
			d, err := mustParse(t, "version: 1\nrules: [{name: a, match: {ANY}, principals: ["+tt.kinds+"]}]").Decide(f, cluster(), clock())
			if err != nil || !slices.Equal(d.Names, tt.want) {
				t.Errorf("names %q, error %v; want %q", d.Names, err, tt.want)
			}
			notes := strings.Join(d.Notes, "\n")
			if (notes == "") != (tt.note == "") || !strings.Contains(notes, tt.note) {
				t.Errorf("notes %q, want %q", notes, tt.note)
			}
		})
	}
}
