package enroll

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/organization"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
)

// texts is the ledger's table, as far as the organization's list is in it.
type texts struct {
	items map[string][]byte
	loads int
	err   error
}

type text struct {
	*texts
	name string
}

func (x text) Load(context.Context) ([]byte, error) {
	x.loads++
	return x.items[x.name], x.err
}

func (x text) SaveUntil(_ context.Context, content []byte, _ time.Time) error {
	x.items[x.name] = slices.Clone(content)
	return nil
}

func (x text) Update(_ context.Context, change func([]byte) ([]byte, error)) error {
	content, err := change(x.items[x.name])
	if err == nil {
		x.items[x.name] = content
	}
	return err
}

// listed is what AWS Organizations answers.
type listed organization.List

func (l listed) Read(context.Context) (organization.List, error) { return organization.List(l), nil }

// The units of the tests' organization. inner is within outer.
const outer, inner = "ou-ab12-outer000", "ou-ab12-inner000"

// units and who is in them, by the unit's index.
func organizationOf(members map[ec2ref.Account]int) listed {
	l := listed{ID: "o-a1b2c3d4e5", Units: []organization.Unit{
		{ID: "r-ab12", Name: "Root"}, {ID: outer, Name: "Workloads"}, {ID: inner, Name: "Production", Parent: 1},
	}}
	for _, id := range slices.Sorted(maps.Keys(members)) {
		l.Accounts = append(l.Accounts, organization.Account{ID: id, Name: "web team", Unit: members[id]})
	}
	return l
}

// joinOrganization takes the test's account off the deployment's list, and lets it be in the
// organization instead.
func (w *world) joinOrganization(scope organization.Scope, readings ...listed) *texts {
	w.t.Helper()
	w.signer.Accounts = slices.DeleteFunc(slices.Clone(w.signer.Accounts), func(a ec2ref.Account) bool { return a == testAccount })
	table := &texts{items: make(map[string][]byte)}
	store := organization.Store{Name: "organization/test", Text: func(name string) organization.Text { return text{table, name} }}
	now := func() time.Time { return w.now }
	for _, reading := range readings {
		r := organization.Refresher{Organization: reading, Store: store, Scope: scope, Log: slog.New(slog.DiscardHandler), Now: now}
		if _, err := r.Refresh(w.t.Context()); err != nil {
			w.t.Fatal(err)
		}
	}
	w.signer.Organization = &organization.Members{Store: store, Scope: scope, Log: slog.New(slog.DiscardHandler), Now: now}
	table.loads = 0
	return table
}

// joinWithStaleList is like joinOrganization, with a list that admits no first enrollment.
func (w *world) joinWithStaleList(reading listed) {
	w.t.Helper()
	now := w.now
	w.now = now.Add(-organization.MaxAge - time.Minute)
	w.joinOrganization(organization.Scope{}, reading)
	w.now = now
}

// setOrganizationPolicy sets a policy of a deployment with an organization and no accounts.
func (w *world) setOrganizationPolicy(rule string) {
	w.t.Helper()
	limits := policy.Limits{Organization: true, Regions: w.signer.Regions, MaxLifetime: policy.LongestLifetime}
	rules, err := policy.Parse([]byte("version: 1\nrules:\n- "+rule), limits)
	if err != nil {
		w.t.Fatal(err)
	}
	w.signer.Policy = fixed(rules)
}

// organizationAttacks come from accounts that are in the organization, were, or never were.
func organizationAttacks() map[string]attack {
	const other = ec2ref.Account("555566667777")
	in := func(unit int) listed { return organizationOf(map[ec2ref.Account]int{testAccount: unit, other: 0}) }
	without := organizationOf(map[ec2ref.Account]int{other: 0})
	member := func(scope organization.Scope, readings ...listed) func(*world, *attempt) {
		return func(w *world, _ *attempt) { w.joinOrganization(scope, readings...) }
	}
	all20 := make(map[ec2ref.Account]int)
	for _, id := range strings.Fields("000000000001 000000000002 000000000003 000000000004 000000000005 000000000006 000000000007 000000000008 000000000009 000000000010 000000000011 000000000012 000000000013 000000000014 000000000015 000000000016 000000000017 000000000018 000000000019") {
		all20[ec2ref.Account(id)] = 0
	}
	all20[testAccount] = 0
	return map[string]attack{
		"organization: a member":                      {member(organization.Scope{}, in(2)), codeGranted, all, checkOwnNames},
		"organization: a member of a unit below":      {member(organization.Scope{Allow: []string{outer}}, in(2)), codeGranted, all, checkOwnNames},
		"organization: account outside the unit":      {member(organization.Scope{Allow: []string{outer}}, in(0)), protocol.CodeNotAllowed, untilNothing, nil},
		"organization: account above the unit":        {member(organization.Scope{Allow: []string{inner}}, in(1)), protocol.CodeNotAllowed, untilNothing, nil},
		"organization: denied unit in an allowed one": {member(organization.Scope{Allow: []string{outer}, Deny: []string{inner}}, in(2)), protocol.CodeNotAllowed, untilNothing, nil},
		"organization: allowed unit in a denied one":  {member(organization.Scope{Allow: []string{inner}, Deny: []string{outer}}, in(2)), protocol.CodeNotAllowed, untilNothing, nil},
		"organization: account that was never in it":  {member(organization.Scope{}, without), protocol.CodeNotAllowed, untilNothing, nil},
		"organization: account that left":             {member(organization.Scope{}, in(2), without), protocol.CodeNotAllowed, untilNothing, nil},
		"organization: account that left with many": {func(w *world, _ *attempt) {
			w.joinOrganization(organization.Scope{}, organizationOf(all20), without) // the last good list stays
		}, codeGranted, all, checkOwnNames},
		"organization: account that left after it enrolled": {func(w *world, a *attempt) {
			w.joinOrganization(organization.Scope{}, in(2))
			w.earlier(a)
			w.joinOrganization(organization.Scope{}, in(2), without)
			w.pass(a, time.Minute)
		}, protocol.CodeNotAllowed, untilNothing, nil},
		"organization: no list yet": {member(organization.Scope{}), protocol.CodeNotAllowed, untilNothing, nil},
		"organization: stale list":  {func(w *world, _ *attempt) { w.joinWithStaleList(in(2)) }, protocol.CodeUpstream, untilSTS, nil},
		"organization: stale list, renewal": {func(w *world, a *attempt) {
			w.joinOrganization(organization.Scope{}, in(2))
			w.earlier(a)
			w.joinWithStaleList(in(2))
		}, codeGranted, "sts ec2 connect claim issue confirm", checkOwnNames},
		"organization: half-written list": {func(w *world, _ *attempt) {
			table := w.joinOrganization(organization.Scope{}, in(2))
			for name := range table.items {
				if strings.HasSuffix(name, "/0") {
					delete(table.items, name)
				}
			}
		}, protocol.CodeUpstream, untilNothing, nil},
		"organization: forged list": {func(w *world, _ *attempt) {
			table := w.joinOrganization(organization.Scope{}, without)
			for name, content := range table.items {
				if strings.HasSuffix(name, "/0") { // with the test's account in place of the other
					table.items[name] = []byte(strings.Replace(string(content), string(other), testAccount, 1))
				}
			}
		}, protocol.CodeUpstream, untilNothing, nil},
		"organization: the table does not answer": {func(w *world, _ *attempt) {
			w.joinOrganization(organization.Scope{}, in(2)).err = errors.New("throttled")
		}, protocol.CodeUpstream, untilNothing, nil},
		"organization: the table does not answer, of a listed account": {func(w *world, _ *attempt) {
			accounts := w.signer.Accounts
			w.joinOrganization(organization.Scope{}, in(2)).err = errors.New("throttled")
			w.signer.Accounts = accounts
		}, codeGranted, all, checkOwnNames},
		"organization: stale list, of a listed account": {func(w *world, _ *attempt) {
			accounts := w.signer.Accounts
			w.joinWithStaleList(in(2))
			w.signer.Accounts = accounts
		}, codeGranted, all, checkOwnNames},
		"organization: image of an account outside it": {func(w *world, _ *attempt) {
			w.joinOrganization(organization.Scope{}, in(2))
			w.setOrganizationPolicy("{name: a, match: {image_owners: [listed], max_age: any}}")
			w.instance.ImageOwner = "999999999999"
		}, protocol.CodePolicyRefused, untilConnect, nil},
		"organization: image of another member": {func(w *world, _ *attempt) {
			w.joinOrganization(organization.Scope{}, in(2))
			w.setOrganizationPolicy("{name: a, match: {image_owners: [listed], max_age: any}}")
			w.instance.ImageOwner = other
		}, codeGranted, all, checkOwnNames},
		"organization: another path than the rule's": {func(w *world, _ *attempt) {
			w.joinOrganization(organization.Scope{}, in(1))
			w.setOrganizationPolicy(`{name: a, match: {` + open + `}, when: 'account_path == "/Workloads/Production"'}`)
		}, protocol.CodePolicyRefused, untilConnect, nil},
		"organization: the rule's path, and labels": {func(w *world, _ *attempt) {
			w.joinOrganization(organization.Scope{}, in(2))
			w.setOrganizationPolicy(`{name: a, match: {` + open + `}, when: 'account_path == "/Workloads/Production" && account_name == "web team"', labels: {add: [account-name, account-path]}}`)
		}, codeGranted, all, func(t *testing.T, w *world, a *attempt, got protocol.Response) {
			checkOwnNames(t, w, a, got)
			labels := w.nodes[got.Node.ID].Labels
			if labels["hallmark/account-name"] != "web team" || labels["hallmark/account-path"] != "/Workloads/Production" {
				t.Errorf("labels %v", labels)
			}
		}},
	}
}

// Strangers with real documents of other accounts cause a read of the table now and then,
// and nothing else.
func TestStrangersRarelyCauseReadsOfTheList(t *testing.T) {
	w := newWorld(t)
	table := w.joinOrganization(organization.Scope{}, organizationOf(map[ec2ref.Account]int{"555566667777": 0}))
	for range 100 {
		if _, _, refused := w.enroll(newAttempt(t, w.now)); refused.Code != protocol.CodeNotAllowed {
			t.Fatalf("refusal %+v", refused)
		}
	}
	if table.loads > 2 || w.upstream() != untilNothing {
		t.Errorf("%d reads, calls %q", table.loads, w.upstream())
	}
	// A document of a region that is not listed causes none.
	w = newWorld(t)
	table = w.joinOrganization(organization.Scope{}, organizationOf(map[ec2ref.Account]int{"555566667777": 0}))
	a := newAttempt(t, w.now)
	a.region = regions()["hm-test-2"]
	a.document["region"], a.document["availabilityZone"] = "hm-test-2", "hm-test-2a"
	if _, _, refused := w.enroll(a); refused.Code != protocol.CodeNotAllowed || table.loads != 0 {
		t.Errorf("refusal %+v, %d reads", refused, table.loads)
	}
}

// A new account can enroll, and one that left cannot, as soon as the list says so.
func TestEnrollmentFollowsTheOrganization(t *testing.T) {
	w := newWorld(t)
	w.joinOrganization(organization.Scope{}, organizationOf(map[ec2ref.Account]int{"555566667777": 0}))
	if status, _, _ := w.enroll(newAttempt(t, w.now)); status != http.StatusForbidden {
		t.Errorf("status %d before it joined", status)
	}
	table := w.signer.Organization.(*organization.Members).Store
	for _, step := range []struct {
		reading listed
		status  int
	}{
		{organizationOf(map[ec2ref.Account]int{testAccount: 0, "555566667777": 0}), http.StatusOK},
		{organizationOf(map[ec2ref.Account]int{"555566667777": 0}), http.StatusForbidden},
	} {
		w.now = w.now.Add(2 * time.Minute)
		r := organization.Refresher{Organization: step.reading, Store: table, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return w.now }}
		if _, err := r.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.now = w.now.Add(time.Minute)
		if status, _, refused := w.enroll(newAttempt(t, w.now)); status != step.status {
			t.Errorf("status %d, want %d: %+v", status, step.status, refused)
		}
	}
}

// Health reports of members count, and those of an account that left do not.
func TestHealthReportsOfMembers(t *testing.T) {
	const other = ec2ref.Account("555566667777")
	for name, tt := range map[string]struct {
		members map[ec2ref.Account]int
		broken  bool
		want    int
	}{
		"a member":                  {map[ec2ref.Account]int{testAccount: 0, other: 0}, false, 1},
		"it left":                   {map[ec2ref.Account]int{other: 0}, false, 0},
		"the table does not answer": {map[ec2ref.Account]int{testAccount: 0}, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w, _ := newAsked(t)
			var recorded recordedHealth
			w.signer.Health = &recorded
			table := w.joinOrganization(organization.Scope{}, organizationOf(tt.members))
			if tt.broken {
				table.err = errors.New("throttled")
			}
			if answer := w.report(w.newHealthAttempt().value(t)); answer.Status != http.StatusOK {
				t.Errorf("status %d", answer.Status)
			}
			if got := len(recorded.reports[inTestAccount(testInstance)]); got != tt.want {
				t.Errorf("%d reports were recorded, want %d; log: %s", got, tt.want, w.log.String())
			}
		})
	}
	// A report that nobody signed causes no read.
	w, _ := newAsked(t)
	w.signer.Health = new(recordedHealth)
	table := w.joinOrganization(organization.Scope{}, organizationOf(map[ec2ref.Account]int{testAccount: 0}))
	a := w.newHealthAttempt()
	a.signature = "junk"
	w.report(a.value(t))
	if table.loads != 0 {
		t.Errorf("%d reads of the table", table.loads)
	}
}

// A member's node is rendered again after a tag event, with the facts about its account.
func TestATagEventDuringAMembersEnrollment(t *testing.T) {
	w := newWorld(t)
	w.joinOrganization(organization.Scope{}, organizationOf(map[ec2ref.Account]int{testAccount: 2}))
	w.setOrganizationPolicy(`{name: a, match: {` + open + `}, when: 'account_path == "/Workloads/Production"', labels: {add: [account-name]}}`)
	w.signer.Inventory = snapshotEC2{fakeEC2{w}}
	w.instance.Tags = map[string]string{"Name": "web", "env": "prod"}
	w.onClaim = func(ledger.Claim) error {
		w.onClaim = nil
		w.retag(map[string]string{"Name": "web"})
		return nil
	}
	status, _, refused := w.enroll(newAttempt(t, w.now))
	if n, _ := w.node(); status != http.StatusOK || n.Labels["aws/env"] != "" || n.Labels["hallmark/account-name"] != "web team" {
		t.Errorf("status %d, code %q, labels %v", status, refused.Code, n.Labels)
	}
}
