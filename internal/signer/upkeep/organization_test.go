package upkeep

import (
	"context"
	"errors"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/organization"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
)

// fakeOrganization is the stored list.
type fakeOrganization struct {
	members map[ec2ref.Account]organization.Member
	err     error
}

func (f *fakeOrganization) Current(context.Context) (organization.View, error) {
	return organization.NewView(f.members, testTime()), f.err
}

// inOrganization lets the test's account be a member instead of listed.
func inOrganization(t *testing.T) (*world, *fakeOrganization) {
	w := newWorld(t)
	o := &fakeOrganization{members: map[ec2ref.Account]organization.Member{
		testAccount: {Name: "web team", Path: "/Workloads"}, "999999999999": {Name: "other", Path: "/"},
	}}
	w.fleet.Accounts, w.fleet.Organization = nil, o
	rules, err := policy.Parse([]byte("version: 1\nrules: [{name: a, match: {image_owners: [listed], max_age: 24h}, labels: {add: [account-name, account-path]}}]"),
		policy.Limits{Organization: true, Regions: w.fleet.Regions, MaxLifetime: policy.LongestLifetime})
	if err != nil {
		t.Fatal(err)
	}
	w.fleet.Policy = func(context.Context) (*policy.Policy, error) { return rules, nil }
	return w, o
}

// Nodes of members are swept like those of listed accounts, with their labels. A member
// without nodes is not asked about: there may be thousands.
func TestSweepOfAnOrganization(t *testing.T) {
	w, o := inOrganization(t)
	w.enroll(1)
	w.enroll(2).State = inventory.StateTerminated
	w.run(3)
	w.calls = nil
	if got, want := w.sweep(0), (Report{Nodes: 2, Deleted: 1, Unenrolled: 1}); got != want {
		t.Errorf("got %+v, want %+v; log: %s", got, want, w.log.String())
	}
	all := 0
	for _, call := range w.calls {
		if call == "all" {
			all++
		}
	}
	if all != 1 {
		t.Errorf("%d accounts were listed, want the one with nodes", all)
	}
	o.members[testAccount] = organization.Member{Name: "web team", Path: "/Moved"}
	if got, want := w.sweep(0), (Report{Nodes: 1, Repaired: 1, Unenrolled: 1}); got != want {
		t.Errorf("after a move: got %+v, want %+v", got, want)
	}
	if node, _ := w.node(1); node.Labels["hallmark/account-path"] != "/Moved" || node.Labels["hallmark/account-name"] != "web team" {
		t.Errorf("labels %v", node.Labels)
	}
}

// An account that left is like one that is not listed: reported, and never deleted.
func TestAnAccountThatLeft(t *testing.T) {
	w, o := inOrganization(t)
	w.enroll(1)
	w.enroll(2).State = inventory.StateTerminated
	delete(o.members, testAccount)
	w.calls = nil
	for range 3 {
		if got, want := w.sweep(1000), (Report{Foreign: 2}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		w.now = w.now.Add(absenceTime)
	}
	for _, err := range append(w.fleet.StatesChanged(t.Context(), []ec2ref.Instance{ref(2)}), w.fleet.TagsChanged(t.Context(), []TagChange{{Instance: ref(1)}})...) {
		if err != nil {
			t.Error(err)
		}
	}
	for n := range 2 {
		if _, there := w.node(n + 1); !there || w.retired(n+1) {
			t.Errorf("instance %d: node is there %v, retired %v", n+1, there, w.retired(n+1))
		}
	}
	for _, call := range w.calls {
		if call != "nodes" {
			t.Errorf("call %q about an account that left", call)
		}
	}
}

// While the list cannot be read nothing is decided: events come again, and the sweep fails.
func TestTheListCannotBeRead(t *testing.T) {
	w, o := inOrganization(t)
	w.enroll(1).State = inventory.StateTerminated
	o.err = errors.New("throttled")
	w.calls = nil
	errs := append(w.fleet.StatesChanged(t.Context(), []ec2ref.Instance{ref(1)}), w.fleet.TagsChanged(t.Context(), []TagChange{{Instance: ref(1)}})...)
	_, sweep := w.fleet.Sweep(t.Context(), "", 0)
	_, walk := w.fleet.RetireExpired(t.Context())
	for _, err := range append(errs, sweep, walk) {
		if !errors.Is(err, o.err) {
			t.Errorf("error %v", err)
		}
	}
	if len(w.calls) != 0 || w.retired(1) {
		t.Errorf("calls %v, retired %v", w.calls, w.retired(1))
	}
	o.err = nil
	if errs := w.fleet.StatesChanged(t.Context(), []ec2ref.Instance{ref(1)}); errs[0] != nil || !w.retired(1) {
		t.Errorf("error %v, retired %v", errs[0], w.retired(1))
	}
}
