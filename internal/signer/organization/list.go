// Package organization says which accounts of an AWS organization may enroll instances.
//
// The function fleet reads the organization on a schedule and stores the list in the
// ledger's table. An enrollment only reads the stored list. A reading that fails, is empty
// or lacks many accounts never replaces the last good list: an operator decides.
package organization

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

const (
	// maxAccounts bounds a list.
	maxAccounts = 50_000
	// maxUnits bounds the organizational units that are read.
	maxUnits = 5_000
	// maxDepth bounds how deep units nest. AWS allows five levels below the root.
	maxDepth = 10
)

// List is the active accounts of an organization, with the units above them.
type List struct {
	// ID is the organization's id, such as o-a1b2c3d4e5.
	ID string `json:"id"`
	// Units begin with the root. Each follows its parent.
	Units []Unit `json:"units"`
	// Accounts are sorted by number.
	Accounts []Account `json:"accounts"`
}

// Unit is the root or an organizational unit.
type Unit struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	// Parent is the parent's index. The root is its own parent.
	Parent int `json:"parent"`
}

// Account is an active account.
type Account struct {
	ID   ec2ref.Account `json:"id"`
	Name string         `json:"name"`
	// Unit is the index of the unit that contains the account.
	Unit int `json:"unit"`
}

// Scope says which units' accounts may enroll instances. A unit includes the units below
// it.
type Scope struct {
	// Allow lists the units to allow, by id. If it is empty, the whole organization is allowed.
	Allow []string
	// Deny lists units to deny, by id. It takes precedence over Allow.
	Deny []string
}

// Member is an account that may enroll instances.
type Member struct {
	// Name is the account's name, or empty if it is not plain text.
	Name string
	// Path is the names of the units above the account: "/" for an account in the root,
	// otherwise a path such as /Workloads/Production.
	Path string
}

// standing says what a scope means for a unit.
type standing struct {
	allowed, denied bool
	path            string
}

// below returns the standing of a unit whose parent has the standing s.
func (s standing) below(u Unit, scope Scope) standing {
	return standing{
		allowed: s.allowed || slices.Contains(scope.Allow, u.ID),
		denied:  s.denied || slices.Contains(scope.Deny, u.ID),
		path:    strings.TrimSuffix(s.path, "/") + "/" + pathName(u),
	}
}

// regexpUnitID matches the ids of units (AWS Organizations API Reference, OrganizationalUnit).
var regexpUnitID = regexp.MustCompile(`^ou-[0-9a-z]{4,32}-[a-z0-9]{8,32}$`)

// ofRoot returns the standing of the root.
func ofRoot(scope Scope) standing { return standing{allowed: len(scope.Allow) == 0, path: "/"} }

// pathName returns the unit's name, or its id if the name could be mistaken for another
// path: anyone who may name a unit below Sandbox must not be able to imitate another one, not
// even one that has its id in the path.
func pathName(u Unit) string {
	if strings.Contains(u.Name, "/") || regexpUnitID.MatchString(u.Name) || !isPlain(u.Name) {
		return u.ID
	}
	return u.Name
}

func isPlain(name string) bool {
	return name != "" && node.IsLabelValue(name) && strings.TrimSpace(name) == name
}

// Members returns the list's accounts that may enroll instances.
func (l List) Members(scope Scope) map[ec2ref.Account]Member {
	standings := make([]standing, len(l.Units))
	for i, u := range l.Units {
		if i == 0 {
			standings[i] = ofRoot(scope)
			continue
		}
		standings[i] = standings[u.Parent].below(u, scope)
	}
	members := make(map[ec2ref.Account]Member)
	for _, a := range l.Accounts {
		s := standings[a.Unit]
		if !s.allowed || s.denied {
			continue
		}
		m := Member{Path: s.path}
		if isPlain(a.Name) {
			m.Name = a.Name
		}
		members[a.ID] = m
	}
	return members
}

// check refuses a list that is not in the form that its fields describe.
func (l List) check() error {
	if len(l.Units) == 0 || len(l.Units) > maxUnits || len(l.Accounts) > maxAccounts {
		return fmt.Errorf("%d units and %d accounts; want at most %d and %d, and a root", len(l.Units), len(l.Accounts), maxUnits, maxAccounts)
	}
	for i, u := range l.Units {
		if u.Parent < 0 || u.Parent >= i && i > 0 {
			return fmt.Errorf("unit %.64q does not follow its parent", u.ID)
		}
	}
	for i, a := range l.Accounts {
		if _, err := ec2ref.ParseAccount(string(a.ID)); err != nil {
			return err
		}
		if a.Unit < 0 || a.Unit >= len(l.Units) {
			return fmt.Errorf("account %s is in no unit", a.ID)
		}
		if i > 0 && a.ID <= l.Accounts[i-1].ID {
			return fmt.Errorf("account %s is out of order", a.ID)
		}
	}
	return nil
}

// encode returns the list as text, and the text's digest.
func (l List) encode() (text []byte, digest string, err error) {
	if err := l.check(); err != nil {
		return nil, "", fmt.Errorf("list of the organization's accounts: %w", err)
	}
	text, err = json.Marshal(l)
	return text, digestOf(text), err
}

func decode(text []byte) (List, error) {
	var l List
	if err := json.Unmarshal(text, &l); err != nil {
		return List{}, err
	}
	return l, l.check()
}

func digestOf(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
