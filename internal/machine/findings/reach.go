package findings

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// reach checks whether Teleport's proxy can connect to where the server listens. It is never more
// than a warning: a tunnel, or a rule of the firewall, may lead there from another address.
func (f evidence) reach() []Finding {
	if len(f.Listen) == 0 {
		return nil
	}
	node, err := netip.ParseAddrPort(f.Node)
	known := err == nil
	has := func(test func(netip.AddrPort) bool) bool { return slices.ContainsFunc(f.Listen, test) }
	elsewhere := has(func(a netip.AddrPort) bool { return !a.Addr().IsLoopback() })
	switch {
	case !elsewhere && (!known || !node.Addr().IsLoopback()):
		return f.unreached("it accepts connections from this machine only, so Teleport's proxy can reach it only through a tunnel",
			"listen on an address that the proxy can reach")
	case !known:
		return nil
	case !has(func(a netip.AddrPort) bool { return a.Port() == node.Port() }):
		return f.unreached(fmt.Sprintf("Teleport's proxy connects to port %d, but sshd does not listen there", node.Port()),
			fmt.Sprintf("listen on port %d, or set port in the policy's rule for this machine", node.Port()))
	case !has(func(a netip.AddrPort) bool { return leads(node, a) }):
		return f.unreached("Teleport's proxy connects to "+f.Node+", but sshd does not listen there",
			"listen on "+node.Addr().String()+", or set address in the policy's rule for this machine")
	}
	return nil
}

// unreached is the finding about where the server listens.
func (f evidence) unreached(consequence, remedy string) []Finding {
	found := Finding{Keyword: "ListenAddress", Consequence: consequence, Remedy: remedy}
	if f.BySystemd {
		found.Keyword, found.Remedy = "ListenStream", remedy+" (systemctl edit ssh.socket)"
	} else {
		found.Places = places(f.Lines, found)
	}
	var values []string
	for _, address := range f.Listen {
		values = append(values, address.String())
	}
	found.Value = strings.Join(values, " ")
	return []Finding{found}
}

// leads reports whether a connection to the node's address may arrive at a listener. EC2 translates
// public IPv4 addresses, so those may arrive at any other one.
func leads(node, listener netip.AddrPort) bool {
	to, at := node.Addr().Unmap(), listener.Addr().Unmap()
	switch {
	case node.Port() != listener.Port() || to.Is4() != at.Is4():
		return false
	case at == to || at.IsUnspecified():
		return true
	}
	return to.Is4() && !to.IsPrivate() && !at.IsLoopback()
}
