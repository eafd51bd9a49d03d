// Package findings checks sshd's settings: it finds what keeps certificates from working, and
// what makes logins through Teleport's proxy unreliable.
package findings

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
)

// Finding is one setting of sshd that keeps certificates from working, or that makes
// logins through Teleport's proxy unreliable.
type Finding struct {
	Keyword string // as sshd_config(5) spells it
	Value   string
	// Places are where it is set. They are empty if no file sets it: then it is OpenSSH's
	// default, or comes from a crypto policy or sshd's command line.
	Places []sshd.Line
	// Logins are the logins that the setting affects, or nil for all.
	Logins []sshd.Connection
	// Consequence says what does not work; Remedy says what to write instead.
	Consequence, Remedy string
	// Blocks says that no certificate can work because of this finding, alone or together with
	// others.
	Blocks bool
}

// String returns the finding on one line: what, where, which logins, and what to do.
func (f Finding) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", f.Keyword, abbreviate(f.Value))
	if len(f.Places) > 0 {
		var places []string
		for _, l := range f.Places[:min(len(f.Places), 3)] {
			places = append(places, l.String())
		}
		fmt.Fprintf(&b, " (%s)", strings.Join(places, ", "))
	} else {
		b.WriteString(" (not set in sshd's configuration files)")
	}
	if users := f.users(); len(users) > 0 {
		fmt.Fprintf(&b, ", for %s", strings.Join(users, ", "))
	}
	fmt.Fprintf(&b, ": %s; %s", f.Consequence, f.Remedy)
	return b.String()
}

// users names the logins' users, each once.
func (f Finding) users() (users []string) {
	const most = 5
	from := map[string][]string{}
	var order []string
	for _, c := range f.Logins {
		if from[c.User] == nil {
			order = append(order, c.User)
		}
		from[c.User] = append(from[c.User], c.Address)
	}
	for _, user := range order[:min(len(order), most)] {
		if len(from[user]) == 1 {
			user += " from " + from[user][0]
		}
		users = append(users, user)
	}
	if len(order) > most {
		users = append(users, fmt.Sprintf("%d more", len(order)-most))
	}
	return users
}

func abbreviate(value string) string {
	const most = 100
	if len(value) > most {
		return value[:most] + "…"
	}
	return value
}

// Blocking returns the findings because of which no certificate can work.
func Blocking(findings []Finding) (blocking []Finding) {
	for _, f := range findings {
		if f.Blocks {
			blocking = append(blocking, f)
		}
	}
	return blocking
}

// Admits reports whether AllowUsers and similar keywords let a login's account in.
func Admits(login sshd.Login, accounts []sshd.Account) bool {
	return len(evidence{Accounts: accounts}.admission(login, sshd.ParseSettings(login.Settings))) == 0
}

// Join joins findings into one error.
func Join(findings []Finding) error {
	var texts []string
	for _, f := range findings {
		texts = append(texts, f.String())
	}
	return errors.New(strings.Join(texts, "; also "))
}

// Want is what assess compares sshd's settings with.
type Want struct {
	// CAFile is the TrustedUserCAKeys that hallmark sets.
	CAFile string
	// CAs are the CAs of people's certificates, or none if they are not known yet.
	CAs []ssh.PublicKey
	// MaxStartups is the value that hallmark sets, or empty.
	MaxStartups string
	// ProxySources are the addresses and networks that Teleport's proxies connect from, or
	// none if the configuration lists none.
	ProxySources []string
	// Node is the address, host:port, at which Teleport's proxy connects to this machine, or empty
	// if the machine has not enrolled.
	Node string
	// Extra are the caller's own findings, about host keys.
	Extra []Finding
}

// evidence is everything that assess looks at.
type evidence struct {
	Want
	Logins   []sshd.Login
	Lines    []sshd.Line // of the configuration
	Accounts []sshd.Account
	// Absent are users and groups that AllowUsers and AllowGroups name and that this machine
	// does not have. Other names may get an account at boot.
	Absent []string
	// Files has the content of the files that the settings name, or nil if this process cannot
	// see it. Missing files are left out.
	Files map[string][]byte
	// Listen are the addresses at which the server listens, or none if they are not known.
	Listen []netip.AddrPort
	// BySystemd says that systemd listens for sshd.
	BySystemd bool
}

// problem is what one login runs into: a finding without places and logins.
type problem struct {
	Finding
	// open says that an account that does not exist yet would not run into it.
	open bool
	// severe says that the login cannot work. Otherwise the problem is a limit or a risk.
	severe bool
	// usual says that the setting is fine for some accounts, such as PermitRootLogin no. It is
	// worth a finding only if no login from elsewhere is left.
	usual bool
}

// assess compares sshd's settings with what logins with certificates need. It returns what
// keeps such logins from working, and first what blocks all of them. It looks only at the
// facts.
func assess(f evidence) []Finding {
	collected := &collection{facts: f}
	reachable := false // some login from elsewhere can work
	free := false      // some account that exists has one
	all := make([][]problem, len(f.Logins))
	for n, login := range f.Logins {
		all[n] = f.problems(login)
		works, severe := true, false
		for _, p := range all[n] {
			works = works && (!p.severe || p.open)
			severe = severe || p.severe
		}
		// Teleport's proxy is on another machine.
		reachable = reachable || works && !login.IsLocal()
		free = free || !severe && !login.IsLocal()
	}
	for n, login := range f.Logins {
		for _, p := range all[n] {
			if !p.usual || !free {
				collected.add(login.Connection, p)
			}
		}
	}
	findings := collected.findings(!reachable && len(f.Logins) > 0)
	findings = append(findings, f.reach()...)
	findings = append(findings, f.Extra...)
	slices.SortStableFunc(findings, func(a, b Finding) int { return order(b) - order(a) })
	return findings
}

func order(f Finding) int {
	if f.Blocks {
		return 1
	}
	return 0
}

// collection groups the problems of all logins by setting.
type collection struct {
	facts evidence
	all   []*collected
}

type collected struct {
	problem
	logins []sshd.Connection
}

func (c *collection) add(login sshd.Connection, p problem) {
	for _, known := range c.all {
		if known.Keyword == p.Keyword && known.Value == p.Value && known.Consequence == p.Consequence {
			known.logins = append(known.logins, login)
			return
		}
	}
	c.all = append(c.all, &collected{p, []sshd.Connection{login}})
}

func (c *collection) findings(nobody bool) (findings []Finding) {
	for _, known := range c.all {
		f := known.Finding
		f.Blocks = nobody && known.severe && !known.open
		if len(known.logins) < len(c.facts.Logins) {
			f.Logins = known.logins
		}
		f.Places = places(c.facts.Lines, f)
		findings = append(findings, f)
	}
	return findings
}

// aliases are other names for a keyword, besides the one that sshd prints.
func aliases(keyword string) []string {
	return map[string][]string{
		"pubkeyacceptedalgorithms": {"pubkeyacceptedkeytypes"},
		"pubkeyacceptedkeytypes":   {"pubkeyacceptedalgorithms"},
		"pubkeyauthentication":     {"dsaauthentication"},
		"listenaddress":            {"port", "addressfamily"},
	}[keyword]
}

// places returns the lines that cause a finding: lines in Match blocks if the finding is about
// some logins, other lines if it is about all.
func places(lines []sshd.Line, f Finding) (found []sshd.Line) {
	keyword := strings.ToLower(f.Keyword)
	var inMatch, global []sshd.Line
	for _, l := range lines {
		switch {
		case l.Keyword != keyword && !slices.Contains(aliases(keyword), l.Keyword):
		case len(l.Match) > 0:
			inMatch = append(inMatch, l)
		default:
			global = append(global, l)
		}
	}
	inMatch = sameValue(inMatch, f.Value)
	global = sameValue(global, f.Value)
	switch {
	case len(f.Logins) > 0 && len(inMatch) > 0, len(global) == 0:
		return inMatch
	case lastWins(keyword):
		return global[len(global)-1:]
	case accumulates(keyword):
		return global
	}
	return global[:1]
}

// sameValue prefers lines with exactly the value that sshd prints. For lists, which sshd
// expands, there is usually none.
func sameValue(lines []sshd.Line, value string) []sshd.Line {
	var same []sshd.Line
	for _, l := range lines {
		if strings.EqualFold(strings.Join(l.Arguments, " "), value) {
			same = append(same, l)
		}
	}
	if len(same) > 0 {
		return same
	}
	return lines
}

// lastWins reports whether sshd uses the last of several lines (seen on 9.2 and 10.0).
func lastWins(keyword string) bool { return keyword == "maxstartups" }

func accumulates(keyword string) bool {
	switch keyword {
	case "allowusers", "denyusers", "allowgroups", "denygroups", "listenaddress":
		return true
	}
	return false
}

// Server is the OpenSSH server to check.
type Server interface {
	// Lines returns the directives of its configuration.
	Lines() []sshd.Line
	Accounts() ([]sshd.Account, error)
	// Absent returns which of the names no account ("passwd") or group ("group") has.
	Absent(ctx context.Context, database string, names []string) []string
	// Files reads the files that match the patterns. The content of a file that only sshd may
	// see is nil.
	Files(patterns []string) map[string][]byte
	// Listens returns where it accepts connections by its settings, and whether systemd listens for
	// it. There are no addresses if nothing is known.
	Listens(ctx context.Context, settings sshd.Settings) (listen []netip.AddrPort, bySystemd bool)
}

// Of gathers the facts about the logins that Logins returned, and passes them to assess. It
// does not run sshd.
func Of(ctx context.Context, server Server, logins []sshd.Login, want Want) ([]Finding, error) {
	accounts, err := server.Accounts()
	if err != nil {
		return nil, err
	}
	f := evidence{Want: want, Logins: logins, Lines: server.Lines(), Accounts: accounts}
	f.Absent = append(server.Absent(ctx, "passwd", f.unknown("allowusers")), server.Absent(ctx, "group", f.unknown("allowgroups"))...)
	f.Files = server.Files(f.filesOf())
	if len(logins) > 0 {
		f.Listen, f.BySystemd = server.Listens(ctx, sshd.ParseSettings(logins[0].Settings))
	}
	return assess(f), nil
}

// unknown returns the names in AllowUsers or AllowGroups that no local account or group has.
func (f evidence) unknown(keyword string) (names []string) {
	for _, login := range f.Logins {
		for _, pattern := range sshd.ParseSettings(login.Settings)[keyword] {
			name, _, _ := strings.Cut(pattern, "@")
			local := slices.ContainsFunc(f.Accounts, func(a sshd.Account) bool {
				return keyword == "allowusers" && a.Name == name || keyword == "allowgroups" && slices.Contains(a.Groups, name)
			})
			if !local && !sshdconf.IsPattern(name) && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}
