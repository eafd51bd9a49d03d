package policy

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// principalKind names a fact that a certificate may contain in addition to the host name.
// EC2 confirms that each belongs to the instance, and no tag can set it.
type principalKind string

const (
	principalPrivateIP  principalKind = "private_ip"
	principalPublicIP   principalKind = "public_ip"
	principalIPv6       principalKind = "ipv6"
	principalPrivateDNS principalKind = "private_dns"
)

func principalKinds() []principalKind {
	return []principalKind{principalPrivateIP, principalPublicIP, principalIPv6, principalPrivateDNS}
}

// names returns the instance's facts of these kinds, and notes on those that a
// certificate must not contain. The ledger claims them like host names, because addresses
// repeat across VPCs and pass from one machine to the next.
func names(kinds []principalKind, f node.Facts, c node.Cluster) (list, notes []string) {
	for _, kind := range kinds {
		name, err := kind.of(f, c)
		switch {
		case err != nil:
			notes = append(notes, fmt.Sprintf("principal %s: %s", kind, err))
		case name != "" && !slices.Contains(list, name):
			list = append(list, name)
		}
	}
	return list, notes
}

// of returns the fact in the form in which people type it, or "" if the instance has
// none.
func (k principalKind) of(f node.Facts, c node.Cluster) (string, error) {
	var text string
	switch k {
	case principalPrivateDNS:
		if f.PrivateDNS == "" {
			return "", nil
		}
		return f.PrivateDNS, node.CheckDNSName(f.PrivateDNS, f, c)
	case principalPrivateIP:
		text = f.PrivateIP
	case principalPublicIP:
		text = f.PublicIP
	case principalIPv6:
		text = f.IPv6
	}
	if text == "" {
		return "", nil
	}
	address, err := netip.ParseAddr(text)
	// A loopback or link-local address is every machine's own.
	if err != nil || !address.IsGlobalUnicast() || address.Zone() != "" || address.Is4In6() || address.Is4() == (k == principalIPv6) {
		return "", fmt.Errorf("%s is no such address", quote(text))
	}
	return address.String(), nil
}
