package policy

import (
	"errors"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// A policy of a deployment with an organization: which accounts may enroll, and whose images
// count as listed, changes without a new policy.
func TestPolicyOfAnOrganization(t *testing.T) {
	stranger := func(f *node.Facts) { f.AccountName, f.AccountPath = "", "" }
	for name, tt := range map[string]struct {
		accounts []ec2ref.Account
		rule     string
		change   func(*node.Facts)
		want     error
	}{
		"a member":                       {nil, "{name: a, match: {ANY}}", nil, nil},
		"an account that is no member":   {nil, "{name: a, match: {ANY}}", stranger, ErrRefused},
		"a listed account, no member":    {[]ec2ref.Account{account}, "{name: a, match: {ANY}}", stranger, nil},
		"a member that the rule names":   {nil, `{name: a, match: {ANY, accounts: ["` + account + `"]}}`, nil, nil},
		"the rule names another account": {nil, `{name: a, match: {ANY, accounts: ["` + otherAccount + `"]}}`, nil, ErrRefused},
		"a member's image": {nil, "{name: a, match: {image_owners: [listed], max_age: any}}",
			func(f *node.Facts) { f.ImageOwnerMember = true }, nil},
		"a stranger's image": {nil, "{name: a, match: {image_owners: [listed], max_age: any}}", nil, ErrRefused},
		"a listed account's image": {[]ec2ref.Account{"444455556666"}, "{name: a, match: {image_owners: [listed], max_age: any}}",
			nil, nil},
		"the path":     {nil, `{name: a, match: {ANY}, when: 'account_path.startsWith("/Workloads/")'}`, nil, nil},
		"another path": {nil, `{name: a, match: {ANY}, when: 'account_path == "/Sandbox"'}`, nil, ErrRefused},
		"the name":     {nil, `{name: a, match: {ANY}, when: 'account_name == "web team"'}`, nil, nil},
		"a name that is unknown": {nil, `{name: a, match: {ANY}, when: 'account_name != "sandbox"'}`,
			func(f *node.Facts) { f.AccountName = "" }, ErrIncomplete},
		"a path that is unknown": {[]ec2ref.Account{account}, `{name: a, match: {ANY}, when: 'account_path != "/Sandbox"'}`, stranger, ErrIncomplete},
		"the image's owner":      {nil, `{name: a, match: {ANY}, when: 'image_owner_member'}`, nil, ErrRefused},
	} {
		t.Run(name, func(t *testing.T) {
			l := limits()
			l.Accounts, l.Organization = tt.accounts, true
			p, err := Parse(anyImage("{version: 1, rules: ["+tt.rule+"]}"), l)
			if err != nil {
				t.Fatal(err)
			}
			f := facts()
			if tt.change != nil {
				tt.change(&f)
			}
			if d, err := p.Decide(f, cluster(), clock()); !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Errorf("rule %q, error %v; want %v", d.Rule, err, tt.want)
			}
		})
	}
	// Without an organization nothing of this counts.
	l := limits()
	l.Accounts = []ec2ref.Account{otherAccount}
	p, err := Parse(anyImage("{version: 1, rules: [{name: a, match: {image_owners: [listed], max_age: any}}]}"), l)
	if err != nil {
		t.Fatal(err)
	}
	f := facts()
	f.ImageOwnerMember = true
	if _, err := p.Decide(f, cluster(), clock()); !errors.Is(err, ErrRefused) {
		t.Errorf("error %v", err)
	}
}

// The labels about the account are there if the rule asks for them, and are known.
func TestLabelsOfTheAccount(t *testing.T) {
	const name, path = "hallmark/account-name", "hallmark/account-path"
	for rule, want := range map[string]map[string]string{
		"{name: a, match: {ANY}}":                                              {},
		"{name: a, match: {ANY}, labels: {add: [account-path]}}":               {path: "/Workloads/Production"},
		"{name: a, match: {ANY}, labels: {add: [account-name, account-path]}}": {name: "web team", path: "/Workloads/Production"},
	} {
		p := mustParse(t, "{version: 1, rules: ["+rule+"]}")
		d, err := p.Decide(facts(), cluster(), clock())
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{name, path} {
			if d.Labels[key] != want[key] {
				t.Errorf("%s: label %s is %q, want %q", rule, key, d.Labels[key], want[key])
			}
		}
		unknown := facts()
		unknown.AccountName, unknown.AccountPath = "", ""
		d, err = p.Decide(unknown, cluster(), clock())
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{name, path} {
			if value, ok := d.Labels[key]; ok {
				t.Errorf("%s: label %s is %q of an unknown account", rule, key, value)
			}
		}
	}
}
