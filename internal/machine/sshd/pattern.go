package sshd

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
)

// probe is a made-up login that matches a Match block.
type probe struct {
	Connection
	host, localAddress, localPort, domain string
}

// probes returns one login for each Match block that none of the logins matches: a user, an
// address or a port that only the block names.
func probes(lines []Line, accounts []Account) (all []probe) {
	var done [][]string
	for _, line := range lines {
		if line.Keyword != "match" || slices.ContainsFunc(done, func(m []string) bool { return slices.Equal(m, line.Arguments) }) {
			continue
		}
		done = append(done, line.Arguments)
		for _, criteria := range line.Readings() {
			if p, ok := probeFor(criteria, accounts); ok && !slices.Contains(all, p) {
				all = append(all, p)
			}
		}
	}
	return all[:min(len(all), maxProbes)]
}

// maxProbes bounds how often Hallmark runs sshd for Match blocks.
const maxProbes = 16

// probeFor returns a login that meets the criteria of a Match line (sshd_config(5)). It
// returns false if the usual logins meet them too, or if it cannot make up a login.
func probeFor(criteria []string, accounts []Account) (p probe, ok bool) {
	p = probe{Connection: Connection{User: lastLogin(accounts), Address: elsewhere}, host: elsewhere, localAddress: here, localPort: "22"}
	usual := p
	for len(criteria) > 0 {
		name, list, rest := nextCriterion(criteria)
		criteria = rest
		patterns := strings.Split(list, ",")
		switch name {
		case "user":
			if !sshdconf.MatchAny(patterns, p.User) {
				p.User = example(patterns)
			}
		case "group":
			p.User = memberOf(patterns, accounts)
		case "address":
			if !matchAddress(patterns, p.Address) {
				p.Address = exampleAddress(patterns)
				p.host = p.Address
			}
		case "host":
			p.host = example(patterns)
		case "localaddress":
			p.localAddress = exampleAddress(patterns)
		case "localport":
			p.localPort = example(patterns)
		case "rdomain":
			p.domain = example(patterns)
		}
	}
	complete := p.User != "" && p.Address != "" && p.host != "" && p.localAddress != "" && p.localPort != ""
	return p, complete && p != usual && !slices.Contains(connections(accounts), p)
}

// nextCriterion splits "User a,b Address c". A "=" may separate name and list.
func nextCriterion(criteria []string) (name, list string, rest []string) {
	name, list, found := strings.Cut(criteria[0], "=")
	rest = criteria[1:]
	if !found && len(rest) > 0 && !strings.EqualFold(name, "all") && !strings.EqualFold(name, "invalid-user") {
		list, rest = rest[0], rest[1:]
	}
	return strings.ToLower(name), list, rest
}

// lastLogin returns a person's account if there is one, otherwise root.
func lastLogin(accounts []Account) string {
	for _, a := range slices.Backward(accounts) {
		if a.LogsIn {
			return a.Name
		}
	}
	return rootHere().User
}

func memberOf(patterns []string, accounts []Account) string {
	for _, a := range accounts {
		if a.LogsIn && slices.ContainsFunc(a.Groups, func(g string) bool { return sshdconf.MatchAny(patterns, g) }) {
			return a.Name
		}
	}
	return ""
}

// example returns a word that the patterns match, or "". A comma or blank would end the word
// in the question to sshd.
func example(patterns []string) string {
	for _, pattern := range patterns {
		word := strings.ReplaceAll(strings.ReplaceAll(pattern, "*", "x"), "?", "x")
		if sshdconf.MatchAny(patterns, word) && !strings.ContainsAny(word, ", =") {
			return word
		}
	}
	return ""
}

// matchAddress reports whether a list of addresses, networks and patterns contains an address.
func matchAddress(patterns []string, address string) bool {
	found := false
	for _, pattern := range patterns {
		pattern, negated := strings.CutPrefix(pattern, "!")
		matches := sshdconf.MatchPattern(pattern, address)
		network, err := netip.ParsePrefix(pattern)
		if a, err2 := netip.ParseAddr(address); err == nil && err2 == nil {
			matches = network.Contains(a)
		}
		if matches && negated {
			return false
		}
		found = found || matches
	}
	return found
}

// exampleAddress is like example, for addresses, which may also be networks.
func exampleAddress(patterns []string) string {
	for _, pattern := range patterns {
		if network, err := netip.ParsePrefix(pattern); err == nil {
			first := network.Masked().Addr()
			if next := first.Next(); network.Contains(next) {
				return next.String()
			}
			return first.String()
		}
		word := strings.ReplaceAll(strings.ReplaceAll(pattern, "*", "1"), "?", "1")
		for strings.Count(word, ".") < 3 && !strings.Contains(word, ":") {
			word += ".1" // "10.*"
		}
		if address, err := netip.ParseAddr(word); err == nil && !strings.HasPrefix(pattern, "!") {
			return address.String()
		}
	}
	return ""
}
