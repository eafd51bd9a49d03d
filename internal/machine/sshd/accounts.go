package sshd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/environ"
)

// Account is a local account, of passwd(5) and group(5).
type Account struct {
	Name, Home string
	UID        int
	Groups     []string
	// LogsIn is false for service accounts, and for accounts whose shell lets nobody in.
	LogsIn bool
}

// Accounts returns the local accounts. It does not ask for those of a directory service, which
// may be slow, or have a million.
func (s *Server) Accounts() ([]Account, error) {
	passwd, err := os.ReadFile(filepath.Join("/", s.Root, "etc/passwd"))
	if errors.Is(err, fs.ErrNotExist) {
		return []Account{{Name: rootHere().User, Home: "/root", LogsIn: true}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find the accounts that can log in: %w", err)
	}
	group, err := os.ReadFile(filepath.Join("/", s.Root, "etc/group"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("find the groups of accounts: %w", err)
	}
	return parseAccounts(string(passwd), string(group)), nil
}

// parseAccounts reads passwd(5) and group(5). root comes first, even without a line.
func parseAccounts(passwd, group string) []Account {
	const firstPerson = 1000 // UID_MIN of login.defs(5)
	accounts := []Account{{Name: rootHere().User, Home: "/root", LogsIn: true}}
	primary := map[string]string{"root": "0"} // account to group id
	for line := range strings.Lines(passwd) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) != 7 || fields[0] == "" || strings.ContainsAny(fields[0], ", =") {
			continue
		}
		uid, err := strconv.Atoi(fields[2])
		if err != nil || slices.ContainsFunc(accounts, func(a Account) bool { return a.Name == fields[0] }) {
			continue
		}
		shell := filepath.Base(fields[6])
		primary[fields[0]] = fields[3]
		accounts = append(accounts, Account{
			Name: fields[0], Home: fields[5], UID: uid,
			LogsIn: uid >= firstPerson && shell != "nologin" && shell != "false",
		})
	}
	for line := range strings.Lines(group) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) != 4 {
			continue
		}
		members := strings.Split(fields[3], ",")
		for n, a := range accounts {
			if primary[a.Name] == fields[2] || slices.Contains(members, a.Name) {
				accounts[n].Groups = append(accounts[n].Groups, fields[0])
			}
		}
	}
	return accounts
}

// Absent returns those of the names that no account, or no group, has: database is "passwd" or
// "group". Only the running machine can tell, because directory services hold some, and only
// if getent(1) answers: an image may get its accounts at boot.
func (s *Server) Absent(ctx context.Context, database string, names []string) (absent []string) {
	if filepath.Join("/", s.Root) != "/" {
		return nil
	}
	const maxNames, notFound = 16, 2 // getent(1)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, name := range names[:min(len(names), maxNames)] {
		cmd := exec.CommandContext(ctx, "getent", database, "--", name)
		cmd.Env = environ.ForPrograms()
		err := cmd.Run()
		if e, ok := errors.AsType[*exec.ExitError](err); ok && e.ExitCode() == notFound {
			absent = append(absent, name)
		}
	}
	return absent
}
