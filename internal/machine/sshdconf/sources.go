package sshdconf

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

const (
	// maxSources bounds a list of sources. A cluster has a few proxies.
	maxSources = 64

	// A network with a shorter prefix is not a list of proxies. Exempting it would disable
	// sshd's brake on password guessing for whole countries.
	minPrefix4 = 8
	minPrefix6 = 32
)

// CheckSources returns an error unless each of the sources is an IP address or a network in
// CIDR form, as PerSourcePenaltyExemptList accepts them (sshd_config(5)). This check keeps a
// line break, and so another directive, out of the rendered file.
func CheckSources(sources []string) error {
	if len(sources) > maxSources {
		return fmt.Errorf("%d entries, %d at most: list networks", len(sources), maxSources)
	}
	for _, source := range sources {
		if err := checkSource(source); err != nil {
			return err
		}
	}
	return nil
}

func checkSource(source string) error {
	network, err := parseSource(source)
	if err != nil {
		return fmt.Errorf("%.100q is neither an IP address, such as 192.0.2.7, nor a network, such as 192.0.2.0/28", source)
	}
	address := network.Addr()
	least := minPrefix4
	if address.Is6() {
		least = minPrefix6
	}
	switch {
	case address.Is4In6():
		return fmt.Errorf("%q: write the IPv4 address itself, %s", source, address.Unmap())
	case network.Bits() < least:
		return fmt.Errorf("%q is too wide: list the addresses of Teleport's proxies (/%d or longer)", source, least)
	case network != network.Masked():
		return fmt.Errorf("%q has bits beyond its prefix length, which sshd refuses: write %s", source, network.Masked())
	case address.IsUnspecified():
		return fmt.Errorf("%q is not the address of a proxy", source)
	}
	return nil
}

func parseSource(source string) (netip.Prefix, error) {
	if strings.Contains(source, "/") {
		return netip.ParsePrefix(source) // accepts no zone
	}
	address, err := netip.ParseAddr(source)
	if err == nil && address.Zone() != "" {
		err = fmt.Errorf("zone %s", address.Zone())
	}
	if err != nil {
		return netip.Prefix{}, err
	}
	return netip.PrefixFrom(address, address.BitLen()), nil
}

// MayBeFrom reports whether a connection from a source may match the host of USER@HOST in
// AllowUsers or DenyUsers (sshd_config(5)): an address, a network or a pattern. A pattern may match
// the name of an address, which is not known here.
func MayBeFrom(host, source string) bool {
	from, err := parseSource(source)
	if err != nil {
		return true
	}
	if network, err := parseSource(host); err == nil {
		return network.Overlaps(from)
	}
	if strings.Trim(host, "0123456789.*?") == "" && from.IsSingleIP() {
		return MatchPattern(host, from.Addr().String())
	}
	return true
}

// JoinSources returns a value for PerSourcePenaltyExemptList: the entries of the value in
// effect ("" or "none" for none), and those of the further ones that it lacks.
func JoinSources(inEffect string, more []string) string {
	var all []string
	for _, source := range append(strings.Split(inEffect, ","), more...) {
		if source != "" && source != "none" && !slices.Contains(all, source) {
			all = append(all, source)
		}
	}
	return strings.Join(all, ",")
}

// Covers reports whether a PerSourcePenaltyExemptList contains a source, or a network around
// it.
func Covers(list, source string) bool {
	wanted, err := parseSource(source)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(strings.Split(list, ","), func(entry string) bool {
		network, err := parseSource(strings.TrimSpace(entry))
		return err == nil && network.Bits() <= wanted.Bits() && network.Contains(wanted.Addr())
	})
}
