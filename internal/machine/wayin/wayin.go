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
	if !l.hasShell() || !l.comesFromElsewhere() || l.aged().account {
		return ""
	}
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
		if steps := steps(list, available); steps != nil {
			return l.account.Name + " by " + strings.Join(steps, " and ")
		}
	}
	return ""
}

// steps returns what all methods of a list (AuthenticationMethods) need, or nil if something is
// not available. A method that is in the list twice needs two keys, which Find does not count.
func steps(list string, available map[string]string) (steps []string) {
	used := map[string]bool{}
	for method := range strings.SplitSeq(list, ",") {
		method, _, _ = strings.Cut(method, ":") // without its submethod
		if available[method] == "" || used[method] {
			return nil
		}
		used[method] = true
		steps = append(steps, available[method])
	}
	return steps
}

// publicKey returns the key or CA that lets the account in.
func (l *lookup) publicKey() string {
	if l.settings.Value("pubkeyauthentication") == "no" || l.isRoot() && !slices.Contains([]string{"yes", "prohibit-password", "without-password"}, l.settings.Value("permitrootlogin")) {
		return ""
	}
	// sshd asks PAM about the account whatever the method, and PAM asks for a new password if
	// the old one is too old. Nobody who has a key needs to know the old one.
	if l.settings.Value("usepam") == "no" && l.isLocked() || l.settings.Value("usepam") == "yes" && l.aged().password {
		return ""
	}
	for _, pattern := range strings.Fields(l.settings.Optional("authorizedkeysfile")) {
		if file := l.expand(pattern); l.hasKey(file) {
			return "a key in " + file
		}
	}
	if file := l.settings.Optional("trustedusercakeys"); file != "" && l.trusts(file) {
		return "a certificate of a CA in " + file
	}
	return ""
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

// secret says that the account has a password, with which it may log in.
func (l *lookup) secret() string {
	if l.isRoot() && l.settings.Value("permitrootlogin") != "yes" || !isHash(l.shadow().password) {
		return ""
	}
	return "a password"
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
