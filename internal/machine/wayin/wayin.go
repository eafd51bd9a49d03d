// Package wayin finds how people can log in to a machine without Hallmark: by a key in an
// authorized_keys file, by a password, or by a certificate of another CA.
package wayin

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/findings"
	"github.com/hallmark-ssh/hallmark/internal/machine/rooted"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
)

// Machine is where to look.
type Machine struct {
	Root     string // of the file system
	Accounts []sshd.Account
	// Logins are what sshd says that it would apply.
	Logins []sshd.Login
	Now    time.Time
}

// Find returns one line for each account and way in that certainly works from another
// machine. It leaves out what it cannot check: accounts and keys of a directory service or of
// AuthorizedKeysCommand, and Kerberos.
func Find(m Machine) (ways []string) {
	for _, login := range m.Logins {
		if login.IsLocal() {
			continue
		}
		account := slices.IndexFunc(m.Accounts, func(a sshd.Account) bool { return a.Name == login.User && a.LogsIn })
		if account < 0 || !findings.Admits(login, m.Accounts) {
			continue
		}
		l := &lookup{Machine: m, account: m.Accounts[account], settings: sshd.ParseSettings(login.Settings)}
		if way := l.way(); way != "" && !slices.Contains(ways, way) {
			ways = append(ways, way)
		}
	}
	return ways
}

// lookup is about one login.
type lookup struct {
	Machine
	account  sshd.Account
	settings sshd.Settings
}

// way returns how the login can work, or "".
func (l *lookup) way() string {
	available := map[string]string{}
	for method, find := range map[string]func() string{
		"publickey": l.publicKey, "password": l.password, "keyboard-interactive": l.interactive,
	} {
		if found := find(); found != "" {
			available[method] = found
		}
	}
	lists := strings.Fields(l.settings.Value("authenticationmethods"))
	if len(lists) == 0 || slices.Contains(lists, "any") {
		lists = []string{"publickey", "password", "keyboard-interactive"}
	}
	for _, list := range lists {
		var steps []string
		methods := strings.Split(list, ",")
		for _, method := range methods {
			method, _, _ = strings.Cut(method, ":") // without its submethod
			if available[method] != "" {
				steps = append(steps, available[method])
			}
		}
		if len(steps) == len(methods) {
			return l.account.Name + " by " + strings.Join(steps, " and ")
		}
	}
	return ""
}

// publicKey returns the key or CA that lets the account in.
func (l *lookup) publicKey() string {
	if l.settings.Value("pubkeyauthentication") == "no" || l.isRoot() && !slices.Contains([]string{"yes", "prohibit-password", "without-password"}, l.settings.Value("permitrootlogin")) {
		return ""
	}
	for _, pattern := range strings.Fields(l.settings.Optional("authorizedkeysfile")) {
		if file := l.expand(pattern); l.hasKey(file) {
			return "a key in " + file
		}
	}
	file := l.settings.Optional("trustedusercakeys")
	if file == "" {
		return ""
	}
	data, err := l.read(file)
	if err != nil {
		return ""
	}
	if keys, err := cafile.Parse(data); err != nil || !slices.ContainsFunc(keys, l.usable) {
		return ""
	}
	return "a certificate of a CA in " + file
}

func (l *lookup) password() string {
	if l.settings.Value("passwordauthentication") != "yes" {
		return ""
	}
	return l.secret()
}

func (l *lookup) interactive() string {
	if l.settings.Value("kbdinteractiveauthentication", "challengeresponseauthentication") != "yes" || l.settings.Value("usepam") != "yes" {
		return ""
	}
	return l.secret()
}

// secret says that the account has a password (shadow(5)), with which it may log in.
func (l *lookup) secret() string {
	if l.isRoot() && l.settings.Value("permitrootlogin") != "yes" {
		return ""
	}
	data, err := l.read("/etc/shadow")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) > 1 && fields[0] == l.account.Name && fields[1] != "" && !strings.ContainsAny(fields[1][:1], "!*") {
			return "a password"
		}
	}
	return ""
}

func (l *lookup) isRoot() bool { return l.account.UID == 0 }

// expand replaces the tokens of AuthorizedKeysFile (TOKENS in sshd_config(5)).
func (l *lookup) expand(pattern string) string {
	file := strings.NewReplacer("%%", "%", "%h", l.account.Home, "%u", l.account.Name, "%U", strconv.Itoa(l.account.UID)).Replace(pattern)
	if !path.IsAbs(file) {
		file = path.Join(l.account.Home, file)
	}
	return file
}

// hasKey reports whether an authorized_keys file lets somebody in. With StrictModes, sshd
// ignores a file that others could have written.
func (l *lookup) hasKey(file string) bool {
	if l.settings.Value("strictmodes") != "no" && !l.isSafe(file) {
		return false
	}
	data, err := l.read(file)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, _, options, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err == nil && l.usable(key) && !restricts(options, l.Now) {
			return true
		}
	}
	return false
}

// restricts reports whether options of an authorized key (sshd(8)) let nobody do anything.
// Images have root keys whose forced command only says that another account is the right one.
func restricts(options []string, now time.Time) bool {
	for _, option := range options {
		name, value, _ := strings.Cut(option, "=")
		switch strings.ToLower(name) {
		case "command":
			return true
		case "expiry-time":
			if !now.Before(expiry(strings.Trim(value, `"`))) {
				return true
			}
		}
	}
	return false
}

// expiry reads YYYYMMDD[HHMM[SS]], in local time or with a Z in UTC. It returns the zero time
// for anything else, with which sshd refuses the key too.
func expiry(value string) time.Time {
	zone := time.Local
	if digits, ok := strings.CutSuffix(value, "Z"); ok {
		value, zone = digits, time.UTC
	}
	for _, layout := range []string{"20060102", "200601021504", "20060102150405"} {
		if t, err := time.ParseInLocation(layout, value, zone); err == nil {
			return t
		}
	}
	return time.Time{}
}

// usable reports whether sshd accepts a key: its algorithm is permitted, its size too, and
// RevokedKeys does not list it. A certificate does not count as a key.
func (l *lookup) usable(key ssh.PublicKey) bool {
	if _, isCertificate := key.(*ssh.Certificate); isCertificate {
		return false
	}
	algorithms := []string{key.Type()}
	if key.Type() == ssh.KeyAlgoRSA {
		algorithms = []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSA}
	}
	accepted := l.settings.Value("pubkeyacceptedalgorithms", "pubkeyacceptedkeytypes")
	if accepted != "" && !slices.ContainsFunc(algorithms, func(a string) bool { return slices.Contains(strings.Split(accepted, ","), a) }) {
		return false
	}
	revoked := l.settings.Optional("revokedkeys")
	if revoked == "" {
		return true
	}
	data, err := l.read(revoked)
	if err != nil {
		return false // then sshd refuses all keys
	}
	yes, err := findings.Revokes(data, key)
	return err == nil && !yes
}

// read reads a file of limited size inside the root.
func (l *lookup) read(file string) ([]byte, error) {
	const most = 1 << 20
	path, err := l.resolve(file)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", file, most)
	}
	return os.ReadFile(path)
}

func (l *lookup) resolve(file string) (string, error) {
	resolved, err := rooted.Resolve(l.Root, file)
	return filepath.Join("/", l.Root, resolved), err
}
