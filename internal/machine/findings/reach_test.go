package findings

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
)

func TestReach(t *testing.T) {
	lines := []sshd.Line{
		{File: "/c", Number: 1, Keyword: "port", Arguments: []string{"22"}},
		{File: "/c", Number: 2, Keyword: "listenaddress", Arguments: []string{"127.0.0.1"}},
		{File: "/c", Number: 3, Keyword: "addressfamily", Arguments: []string{"any"}},
		{File: "/c", Number: 4, Keyword: "usepam", Arguments: []string{"yes"}},
	}
	const onlyHere, port, address = "from this machine only", "connects to port", "connects to "
	for _, test := range []struct{ name, listen, node, want string }{
		{"everywhere", "0.0.0.0:22 [::]:22", "10.0.0.5:22", ""},
		{"everywhere, not enrolled", "0.0.0.0:22 [::]:22", "", ""},
		{"nothing is known", "", "10.0.0.5:22", ""},
		{"loopback", "127.0.0.1:22", "10.0.0.5:22", onlyHere},
		{"loopback, not enrolled", "127.0.0.1:22", "", onlyHere},
		{"both loopbacks", "127.0.0.1:22 [::1]:22", "[2001:db8::5]:22", onlyHere},
		{"another loopback", "127.0.0.53:22", "", onlyHere},
		{"loopback, of a public address", "127.0.0.1:22", "198.51.100.7:22", onlyHere},
		{"loopback and another", "127.0.0.1:22 10.0.0.5:22", "10.0.0.5:22", ""},
		{"a node on loopback", "127.0.0.1:22", "127.0.0.1:22", ""},
		{"another port", "0.0.0.0:2222 [::]:2222", "10.0.0.5:22", port + " 22"},
		{"another port, not enrolled", "0.0.0.0:2222", "", ""},
		{"two ports", "0.0.0.0:22 0.0.0.0:2222", "10.0.0.5:22", ""},
		{"the node's port", "0.0.0.0:2222", "10.0.0.5:2222", ""},
		{"this port on loopback only", "127.0.0.1:22 0.0.0.0:2222", "10.0.0.5:22", address + "10.0.0.5:22"},
		{"inet6 of an IPv4 node", "[::]:22", "10.0.0.5:22", address + "10.0.0.5:22"},
		{"inet6 of an IPv6 node", "[::]:22", "[2001:db8::5]:22", ""},
		{"inet of an IPv6 node", "0.0.0.0:22", "[2001:db8::5]:22", address + "[2001:db8::5]:22"},
		{"inet6 of a public node", "[::]:22", "198.51.100.7:22", address + "198.51.100.7:22"},
		{"another interface", "10.0.1.5:22", "10.0.0.5:22", address + "10.0.0.5:22"},
		{"another IPv6 address", "[2001:db8::6]:22", "[2001:db8::5]:22", address + "[2001:db8::5]:22"},
		{"the address that EC2 translates a public one to", "10.0.0.5:22", "198.51.100.7:22", ""},
		{"a name", "0.0.0.0:22", "web.example.com:22", ""},
	} {
		f := evidence{Want: Want{Node: test.node}, Lines: lines}
		for text := range strings.FieldsSeq(test.listen) {
			f.Listen = append(f.Listen, netip.MustParseAddrPort(text))
		}
		found := assess(f)
		switch {
		case test.want == "" && len(found) == 0:
		case test.want == "" || len(found) != 1 || found[0].Blocks || !strings.Contains(found[0].Consequence, test.want):
			t.Errorf("%s: %v, want %q", test.name, found, test.want)
		case !strings.HasPrefix(found[0].String(), "ListenAddress "+test.listen+" (/c:1, /c:2, /c:3): "):
			t.Errorf("%s: %s", test.name, found[0])
		}
	}
}

// sshd's settings are not the reason if systemd listens.
func TestReachOfSocket(t *testing.T) {
	f := evidence{
		Lines:  []sshd.Line{{File: "/c", Number: 2, Keyword: "listenaddress", Arguments: []string{"127.0.0.1"}}},
		Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:22")}, BySystemd: true,
	}
	if found := f.reach(); len(found) != 1 || found[0].Keyword != "ListenStream" || len(found[0].Places) != 0 || !strings.Contains(found[0].Remedy, "systemctl edit ssh.socket") {
		t.Errorf("%v", found)
	}
}
