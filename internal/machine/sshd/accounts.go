package sshd

import (
	"cmp"
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
	Shell      string
	Groups     []string
	GIDs       []int // of the primary group, then of the others
	// LogsIn is false for service accounts, and for accounts whose shell lets nobody in. It is
	// true for root, whatever its shell.
	LogsIn bool
}

// Accounts returns the local accounts. It does not ask for those of a directory service, which
// may be slow, or have a million.
func (s *Server) Accounts() ([]Account, error) {
	passwd, err := os.ReadFile(filepath.Join("/", s.Root, "etc/passwd"))
	if errors.Is(err, fs.ErrNotExist) {
		return []Account{rootAccount()}, nil
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

// rootAccount is root without a line in passwd(5).
func rootAccount() Account {
	return Account{Name: rootHere().User, Home: "/root", Shell: defaultShell, GIDs: []int{0}, LogsIn: true}
}

// defaultShell is the shell of an account whose line names none.
const defaultShell = "/bin/sh"

// parseAccounts reads passwd(5) and group(5). root comes first, even without a line.
func parseAccounts(passwd, group string) []Account {
	accounts := []Account{rootAccount()}
	seen := map[string]bool{}
	for line := range strings.Lines(passwd) {
		a, ok := parseAccount(line)
		switch {
		case !ok || seen[a.Name]:
			continue
		case a.Name == accounts[0].Name:
			a.LogsIn = true
			accounts[0] = a
		default:
			accounts = append(accounts, a)
		}
		seen[a.Name] = true
	}
	addGroups(accounts, group)
	return accounts
}

// addGroups adds the groups of group(5). There may be a hundred thousand accounts and groups.
func addGroups(accounts []Account, group string) {
	named, primary := map[string]int{}, map[int][]int{} // to indexes of accounts
	for n, a := range accounts {
		named[a.Name] = n
		primary[a.GIDs[0]] = append(primary[a.GIDs[0]], n)
	}
	for line := range strings.Lines(group) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) != 4 {
			continue
		}
		gid, err := strconv.Atoi(fields[2])
		if err != nil {
			continue
		}
		in := slices.Clone(primary[gid])
		for member := range strings.SplitSeq(fields[3], ",") {
			if n, ok := named[member]; ok {
				in = append(in, n)
			}
		}
		slices.Sort(in)
		for _, n := range slices.Compact(in) {
			accounts[n].Groups = append(accounts[n].Groups, fields[0])
			accounts[n].GIDs = append(accounts[n].GIDs, gid)
		}
	}
}

func parseAccount(line string) (a Account, ok bool) {
	const firstPerson = 1000 // UID_MIN of login.defs(5)
	fields := strings.Split(strings.TrimSpace(line), ":")
	if len(fields) != 7 || fields[0] == "" || strings.ContainsAny(fields[0], ", =") {
		return a, false
	}
	uid, err := strconv.Atoi(fields[2])
	gid, err2 := strconv.Atoi(fields[3])
	if err != nil || err2 != nil {
		return a, false
	}
	a = Account{Name: fields[0], Home: fields[5], UID: uid, GIDs: []int{gid}, Shell: cmp.Or(fields[6], defaultShell)}
	shell := filepath.Base(a.Shell)
	a.LogsIn = uid >= firstPerson && shell != "nologin" && shell != "false"
	return a, true
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
