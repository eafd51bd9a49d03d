package sshd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
)

// Connection is what sshd is told of a login when it is asked for its settings.
// Match blocks go by it.
type Connection struct {
	User string
	// Address is where the login comes from.
	Address string
}

// here and elsewhere are the addresses that matter: this machine itself, and some
// other one (RFC 5737 keeps the address for documentation, so no rule names it).
const (
	here      = "127.0.0.1"
	elsewhere = "192.0.2.1"

	// maxLogins bounds how often sshd is asked, at some 5 ms each.
	maxLogins = 32
)

// rootHere is the login for which Effective asks.
func rootHere() Connection { return Connection{User: "root", Address: here} }

func (c Connection) spec() string {
	return fmt.Sprintf("user=%s,host=%s,addr=%s,laddr=127.0.0.1,lport=22", c.User, c.Address, c.Address)
}

// Login is what sshd settles on for one connection.
type Login struct {
	Connection
	// Settings is what "sshd -T" prints.
	Settings []byte
}

// Logins asks sshd for its settings for every account that can log in, from this
// machine and from elsewhere. It returns the first error: a Match block may hold
// one that no other login meets.
func (s *Server) Logins(ctx context.Context) ([]Login, error) {
	users, err := s.users()
	if err != nil {
		return nil, err
	}
	logins := connections(users)
	// Side by side: each run of sshd takes some 10 ms, and none changes anything.
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for n := range logins {
		group.Go(func() (err error) {
			c := logins[n].Connection
			if logins[n].Settings, err = s.settings(ctx, c); err != nil {
				return fmt.Errorf("login of %s from %s: %w", c.User, c.Address, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return logins, nil
}

// connections are those of each user, from here and from elsewhere, up to maxLogins.
func connections(users []string) []Login {
	var logins []Login
	for _, user := range users {
		for _, address := range []string{here, elsewhere} {
			logins = append(logins, Login{Connection: Connection{user, address}})
		}
	}
	return logins[:min(len(logins), maxLogins)]
}

// users returns root and the local accounts of people. Those of a directory service
// are not asked for: it may be slow, or have a million.
func (s *Server) users() ([]string, error) {
	data, err := os.ReadFile(filepath.Join("/", s.Root, "etc/passwd"))
	if errors.Is(err, fs.ErrNotExist) {
		return []string{rootHere().User}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find the accounts that can log in: %w", err)
	}
	return parseUsers(string(data)), nil
}

// parseUsers reads passwd(5). Service accounts, and those with a shell that lets
// nobody in, stay out.
func parseUsers(passwd string) []string {
	const firstPerson = 1000 // UID_MIN of login.defs(5)
	users := []string{rootHere().User}
	for line := range strings.Lines(passwd) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) != 7 || strings.ContainsAny(fields[0], ", =") {
			continue
		}
		uid, err := strconv.Atoi(fields[2])
		shell := filepath.Base(fields[6])
		if err != nil || uid < firstPerson || shell == "nologin" || shell == "false" || slices.Contains(users, fields[0]) {
			continue
		}
		users = append(users, fields[0])
	}
	return users
}

// Drift compares the settings of the same logins before and after a change, and
// returns the first difference in a keyword that the change is not about, or "".
func Drift(before, after []Login, ours ...string) string {
	for n := range min(len(before), len(after)) {
		if difference := drift(before[n].Settings, after[n].Settings, ours); difference != "" {
			return fmt.Sprintf("for %s from %s: %s", after[n].User, after[n].Address, difference)
		}
	}
	return ""
}

func drift(before, after []byte, ours []string) string {
	was, is := settingsWithout(before, ours), settingsWithout(after, ours)
	for n := range max(len(was), len(is)) {
		a, b := lineAt(was, n), lineAt(is, n)
		if a != b {
			return fmt.Sprintf("%q became %q", a, b)
		}
	}
	return ""
}

func settingsWithout(settings []byte, keywords []string) (lines []string) {
	for line := range bytes.Lines(settings) {
		keyword, _, _ := strings.Cut(string(line), " ")
		if !slices.Contains(keywords, strings.TrimSpace(keyword)) {
			lines = append(lines, strings.TrimSpace(string(line)))
		}
	}
	return lines
}

func lineAt(lines []string, n int) string {
	if n < len(lines) {
		return lines[n]
	}
	return ""
}

// OwnAuthorities returns the accounts for which a Match block sets another
// TrustedUserCAKeys than path: certificates of the authorities there do not log in
// to them.
func OwnAuthorities(logins []Login, path string) (users []string) {
	for _, login := range logins {
		for line := range bytes.Lines(login.Settings) {
			keyword, value, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
			if keyword == "trustedusercakeys" && value != path && !slices.Contains(users, login.User) {
				users = append(users, login.User)
			}
		}
	}
	return users
}
