package sshd

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

// Connection is what sshd needs to know about a login to print its settings. Match blocks
// depend on it.
type Connection struct {
	User string
	// Address is where the login comes from.
	Address string
}

// here and elsewhere are the addresses that matter: this machine itself, and another machine
// (RFC 5737 reserves the address for documentation, so no rule names it).
const (
	here      = "127.0.0.1"
	elsewhere = "192.0.2.1"

	// maxLogins bounds how often Hallmark runs sshd, at some 5 ms each.
	maxLogins = 32
)

// rootHere is the login that Effective asks about.
func rootHere() Connection { return Connection{User: "root", Address: here} }

func (c Connection) spec() string {
	return probe{Connection: c, host: c.Address, localAddress: here, localPort: "22"}.spec()
}

func (p probe) spec() string {
	spec := fmt.Sprintf("user=%s,host=%s,addr=%s,laddr=%s,lport=%s", p.User, p.host, p.Address, p.localAddress, p.localPort)
	if p.domain != "" {
		spec += ",rdomain=" + p.domain
	}
	return spec
}

// IsLocal reports whether the login comes from this machine itself.
func (c Connection) IsLocal() bool { return c.Address == here }

// Login is a connection with the settings that sshd applies to it.
type Login struct {
	Connection
	// Settings is what "sshd -T" prints.
	Settings []byte
}

// Logins asks sshd for its settings for every account that can log in, from this machine and
// from elsewhere, and for one login for each Match block that none of those logins matches. It
// returns the first error: a Match block may contain one that no other login runs into.
// Without a Match block all logins have the same settings, and sshd runs once.
func (s *Server) Logins(ctx context.Context) ([]Login, error) {
	accounts, err := s.Accounts()
	if err != nil {
		return nil, err
	}
	config := s.read()
	asked := append(connections(accounts), probes(config.lines, accounts)...)
	logins := make([]Login, len(asked))
	if !config.mayMatch {
		settings, err := s.settings(ctx, rootHere())
		for n, p := range asked {
			logins[n] = Login{p.Connection, settings}
		}
		return logins, err
	}
	// In parallel: each run of sshd takes some 10 ms and changes nothing. All of them finish,
	// so the first error is always the same.
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	errs := make([]error, len(logins))
	for n, p := range asked {
		group.Go(func() error {
			logins[n].Connection = p.Connection
			logins[n].Settings, errs[n] = s.run(ctx, "-T", "-C", p.spec())
			return nil
		})
	}
	_ = group.Wait() // no function returns an error
	for n, err := range errs {
		if err != nil {
			return nil, fmt.Errorf("login of %s from %s: %w", logins[n].User, logins[n].Address, err)
		}
	}
	return logins, nil
}

// connections returns those of each account that can log in, from here and from elsewhere, up
// to maxLogins.
func connections(accounts []Account) (all []probe) {
	for _, account := range accounts {
		for _, address := range []string{here, elsewhere} {
			if account.LogsIn {
				all = append(all, probe{Connection{account.Name, address}, address, here, "22", ""})
			}
		}
	}
	return all[:min(len(all), maxLogins)]
}

// Drift compares the settings of the same logins before and after a change, and returns the
// first difference in a keyword that the change should not affect, or "".
func Drift(before, after []Login, own ...string) string {
	for n := range min(len(before), len(after)) {
		if difference := drift(before[n].Settings, after[n].Settings, own); difference != "" {
			return fmt.Sprintf("for %s from %s: %s", after[n].User, after[n].Address, difference)
		}
	}
	return ""
}

func drift(before, after []byte, own []string) string {
	was, is := settingsWithout(before, own), settingsWithout(after, own)
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
