package organization

import (
	"maps"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// The tree of the tests: workloads holds production, which holds payments.
const (
	rootID     = "r-ab12"
	workloads  = "ou-ab12-workload"
	production = "ou-ab12-producti"
	payments   = "ou-ab12-payments"
	sandbox    = "ou-ab12-sandbox1"
)

func units() []Unit {
	return []Unit{{rootID, "Root", 0}, {workloads, "Workloads", 0}, {sandbox, "Sandbox", 0}, {production, "Production", 1}, {payments, "Payments", 3}}
}

// tree has one account in each unit, numbered like the units.
func tree() List {
	return List{ID: "o-a1b2c3d4e5", Units: units(), Accounts: []Account{
		{"000000000000", "management", 0}, {"111111111111", "workloads", 1}, {"222222222222", "sandbox", 2},
		{"333333333333", "production", 3}, {"444444444444", "payments", 4},
	}}
}

func TestMembers(t *testing.T) {
	all := map[ec2ref.Account]Member{
		"000000000000": {"management", "/"}, "111111111111": {"workloads", "/Workloads"}, "222222222222": {"sandbox", "/Sandbox"},
		"333333333333": {"production", "/Workloads/Production"}, "444444444444": {"payments", "/Workloads/Production/Payments"},
	}
	for name, tt := range map[string]struct {
		scope Scope
		want  string // the first digits of the accounts
	}{
		"the whole organization":                    {Scope{}, "01234"},
		"a unit and what is below it":               {Scope{Allow: []string{workloads}}, "134"},
		"a unit within":                             {Scope{Allow: []string{production}}, "34"},
		"two units, one within the other":           {Scope{Allow: []string{workloads, payments}}, "134"},
		"a denied unit":                             {Scope{Deny: []string{sandbox}}, "0134"},
		"a denied unit within an allowed one":       {Scope{Allow: []string{workloads}, Deny: []string{production}}, "1"},
		"an allowed unit within a denied one":       {Scope{Allow: []string{payments}, Deny: []string{workloads}}, ""},
		"a unit that is allowed and denied":         {Scope{Allow: []string{sandbox}, Deny: []string{sandbox}}, ""},
		"a unit that is not there":                  {Scope{Allow: []string{"ou-ab12-missing1"}}, ""},
		"a denied unit that is not there":           {Scope{Deny: []string{"ou-ab12-missing1"}}, "01234"},
		"allowed in part, denied below another one": {Scope{Allow: []string{workloads, sandbox}, Deny: []string{payments}}, "123"},
	} {
		t.Run(name, func(t *testing.T) {
			want := maps.Clone(all)
			maps.DeleteFunc(want, func(a ec2ref.Account, _ Member) bool { return !strings.Contains(tt.want, string(a[0])) })
			if got := tree().Members(tt.scope); !maps.Equal(got, want) {
				t.Errorf("members %v, want %v", got, want)
			}
		})
	}
}

// Names come from people who may create units and accounts. None may imitate another path.
func TestNamesInPaths(t *testing.T) {
	for name, tt := range map[string]struct{ unit, account, wantPath, wantName string }{
		"plain":             {"Production", "web", "/Workloads/Production", "web"},
		"another's id":      {payments, "web", "/Workloads/" + production, "web"},
		"a slash":           {"x/Production", "a/b", "/Workloads/" + production, "a/b"},
		"nothing":           {"", "", "/Workloads/" + production, ""},
		"a line break":      {"Prod\n", "we\nb", "/Workloads/" + production, ""},
		"an invisible one":  {"Prod\u200b", "web\u200b", "/Workloads/" + production, ""},
		"a space at an end": {"Prod ", " web", "/Workloads/" + production, ""},
		"another script":    {"Förderung", "Büro", "/Workloads/Förderung", "Büro"},
	} {
		t.Run(name, func(t *testing.T) {
			l := tree()
			l.Units[3].Name, l.Accounts[3].Name = tt.unit, tt.account
			want := Member{tt.wantName, tt.wantPath}
			if got := l.Members(Scope{})["333333333333"]; got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

func TestListsAreChecked(t *testing.T) {
	if _, _, err := tree().encode(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*List){
		"no root":                   func(l *List) { l.Units = nil },
		"a parent that comes after": func(l *List) { l.Units[1].Parent = 3 },
		"its own parent":            func(l *List) { l.Units[1].Parent = 1 },
		"a negative parent":         func(l *List) { l.Units[1].Parent = -1 },
		"no such unit":              func(l *List) { l.Accounts[1].Unit = 5 },
		"a negative unit":           func(l *List) { l.Accounts[1].Unit = -1 },
		"an account twice":          func(l *List) { l.Accounts[1] = l.Accounts[0] },
		"not an account":            func(l *List) { l.Accounts[0].ID = "1" },
	} {
		t.Run(name, func(t *testing.T) {
			l := tree()
			change(&l)
			if _, _, err := l.encode(); err == nil {
				t.Error("the list was accepted")
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	text, _, err := tree().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"units":[{"parent":-1}],"accounts":[{"id":"111111111111","unit":7}]}`))
	f.Fuzz(func(_ *testing.T, data []byte) {
		if l, err := decode(data); err == nil {
			l.Members(Scope{Allow: []string{production}, Deny: []string{payments}}) // must not panic
		}
	})
}
