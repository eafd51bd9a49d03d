package wayin

import (
	"net/netip"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
)

// hasShell reports whether a login gets a shell. Accounts for file transfer and for git only
// help nobody who has to repair a machine, and sshd refuses an account whose shell is missing.
func (l *lookup) hasShell() bool {
	if l.settings.Optional("forcecommand") != "" || l.settings.Optional("chrootdirectory") != "" || l.settings.Value("maxsessions") == "0" {
		return false
	}
	shells := []string{"sh", "ash", "bash", "csh", "dash", "fish", "ksh", "ksh93", "mksh", "rbash", "tcsh", "zsh"}
	if !slices.Contains(shells, path.Base(l.account.Shell)) {
		return false
	}
	const executable = 0o111
	file, err := l.resolve(l.account.Shell)
	if err != nil {
		return false
	}
	info, err := os.Stat(file)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&executable != 0
}

// comesFromElsewhere reports whether AllowUsers, if there is one, lets the account in from
// another machine.
func (l *lookup) comesFromElsewhere() bool {
	allowed := l.settings["allowusers"]
	return len(allowed) == 0 || slices.ContainsFunc(allowed, func(pattern string) bool {
		name, host, found := strings.Cut(pattern, "@")
		return sshdconf.MatchPattern(name, l.account.Name) && (!found || l.isElsewhere(host))
	})
}

// includesElsewhere reports whether a list of hosts, as in from="…" of an authorized key,
// contains another machine.
func (l *lookup) includesElsewhere(hosts string) bool {
	return slices.ContainsFunc(strings.Split(hosts, ","), l.isElsewhere)
}

// isElsewhere reports whether a pattern certainly matches another machine. sshd compares names
// of hosts only if it looks them up.
func (l *lookup) isElsewhere(pattern string) bool {
	if pattern == "" || pattern[0] == '!' {
		return false
	}
	if strings.Trim(pattern, "0123456789abcdefABCDEF.:*?/") != "" {
		return l.settings.Value("usedns") == "yes" && !strings.HasPrefix(pattern, "localhost")
	}
	if network, err := netip.ParsePrefix(pattern); err == nil {
		return !network.Addr().IsLoopback()
	}
	if address, err := netip.ParseAddr(pattern); err == nil {
		return !address.IsLoopback()
	}
	return !strings.HasPrefix(pattern, "127.")
}

// shadow is an account's line in shadow(5).
type shadow struct {
	password string
	// changed is the day of the last change of the password; most is how many days it may be
	// old, and inactive how many more until the account is closed; end is the day from which
	// the account is closed. Days count from 1970. Each is -1 without such a limit.
	changed, most, inactive, end int
}

// shadow returns the account's line. Without one, it has no password and no limits.
func (l *lookup) shadow() shadow {
	s := shadow{changed: -1, most: -1, inactive: -1, end: -1}
	data, err := l.read("/etc/shadow")
	if err != nil {
		return s
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if fields[0] != l.account.Name || len(fields) < 2 {
			continue
		}
		s.password = fields[1]
		for n, day := range map[int]*int{2: &s.changed, 4: &s.most, 6: &s.inactive, 7: &s.end} {
			if n < len(fields) {
				if number, err := strconv.Atoi(fields[n]); err == nil {
					*day = number
				}
			}
		}
		return s
	}
	return s
}

// aged says what is too old: the account, or its password.
type aged struct{ account, password bool }

// aged compares the account's dates with today's. A password that was changed on day 0 has to
// be changed at once.
func (l *lookup) aged() aged {
	const day = 24 * 60 * 60
	today, s := int(l.Now.Unix()/day), l.shadow()
	late := today - s.changed - s.most
	tooOld := s.changed > 0 && s.most >= 0 && late > 0
	return aged{
		account:  s.end >= 0 && today >= s.end || tooOld && s.inactive >= 0 && late > s.inactive,
		password: s.changed == 0 || tooOld,
	}
}

// isLocked reports whether sshd refuses the account because of its locked password, which it
// does only without PAM (LOCKED_PASSWD_PREFIX on Linux).
func (l *lookup) isLocked() bool { return strings.HasPrefix(l.shadow().password, "!") }

// isHash reports whether a password can be right (crypt(5)). Other texts, such as "*", "!",
// "x" or "NP", are no hashes, so nothing matches them.
func isHash(password string) bool {
	const des = 13 // characters of a DES hash
	return strings.HasPrefix(password, "$") || len(password) == des && !strings.ContainsAny(password, "!*")
}
