package upkeep

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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

// Nodes of members are swept like those of listed accounts, with their labels.
func TestSweepOfAnOrganization(t *testing.T) {
	w, o := inOrganization(t)
	delete(o.members, "999999999999")
	w.enroll(1)
	w.enroll(2).State = inventory.StateTerminated
	w.run(3)
	if got, want := w.sweep(0), (Report{Nodes: 2, Deleted: 1, Unenrolled: 1}); got != want {
		t.Errorf("got %+v, want %+v; log: %s", got, want, w.log.String())
	}
	o.members[testAccount] = organization.Member{Name: "web team", Path: "/Moved"}
	if got, want := w.sweep(0), (Report{Nodes: 1, Repaired: 1, Unenrolled: 1}); got != want {
		t.Errorf("after a move: got %+v, want %+v", got, want)
	}
	if node, _ := w.node(1); node.Labels["hallmark/account-path"] != "/Moved" || node.Labels["hallmark/account-name"] != "web team" {
		t.Errorf("labels %v", node.Labels)
	}
}

// A sweep also counts the running instances of members that have no nodes. That is only for
// information: a failure changes nothing else, and the number of calls is limited.
func TestSweepCountsInstancesOfMembersWithoutNodes(t *testing.T) {
	const quiet = "999999999999"
	many := func(n int) map[ec2ref.Account]organization.Member {
		members := map[ec2ref.Account]organization.Member{testAccount: {Path: "/"}}
		for k := range n {
			members[ec2ref.Account(fmt.Sprintf("%012d", k))] = organization.Member{Path: "/"}
		}
		return members
	}
	for name, test := range map[string]struct {
		members map[ec2ref.Account]organization.Member
		regions []ec2ref.Region
		refused bool // EC2 refuses to answer for members without nodes
		want    Report
		asked   int // accounts and regions without nodes
	}{
		"no member without nodes": {many(0), nil, false, Report{Nodes: 1}, 0},
		"one":                     {map[ec2ref.Account]organization.Member{testAccount: {Path: "/"}, quiet: {Path: "/"}}, nil, false, Report{Nodes: 1, Unenrolled: 2}, 1},
		"another region": {
			map[ec2ref.Account]organization.Member{testAccount: {Path: "/"}, quiet: {Path: "/"}}, []ec2ref.Region{testRegion, "us-west-1"}, false,
			Report{Nodes: 1, Unenrolled: 6}, 3,
		},
		"without a role": {map[ec2ref.Account]organization.Member{testAccount: {Path: "/"}, quiet: {Path: "/"}}, nil, true, Report{Nodes: 1}, 1},
		"thousands":      {many(3000), nil, false, Report{Nodes: 1, Unenrolled: 2 * memberPlaces}, memberPlaces},
	} {
		t.Run(name, func(t *testing.T) {
			w, o := inOrganization(t)
			o.members = test.members
			if test.regions != nil {
				w.fleet.Regions = test.regions
			}
			w.enroll(1)
			ec2 := &membersEC2{fakeEC2: fakeEC2{w}, refused: test.refused, asked: make(map[ec2ref.Place]int)}
			w.fleet.Inventory = ec2
			if got := w.sweep(0); got != test.want {
				t.Errorf("got %+v, want %+v; log: %s", got, test.want, w.log.String())
			}
			if len(ec2.asked) != test.asked {
				t.Errorf("asked about %d accounts and regions without nodes, want %d", len(ec2.asked), test.asked)
			}
			for at, n := range ec2.asked {
				if n != 1 {
					t.Errorf("asked %d times about %s", n, at)
				}
			}
			log := w.log.String()
			if strings.Contains(log, "cannot list the running instances") != test.refused || strings.Contains(log, "level=ERROR") || !strings.Contains(log, "ec2_errors=0") {
				t.Errorf("log: %s", log)
			}
		})
	}
}

// membersEC2 has two running instances, and one that is stopped, in each account and region
// except where the test's account has its node.
type membersEC2 struct {
	fakeEC2
	refused bool
	asked   map[ec2ref.Place]int
}

func (m *membersEC2) All(ctx context.Context, at ec2ref.Place) (map[ec2ref.InstanceID]*inventory.Instance, error) {
	if at == ref(1).Place() {
		return m.fakeEC2.All(ctx, at)
	}
	m.asked[at]++
	if m.refused {
		return nil, errors.New("AccessDenied")
	}
	return map[ec2ref.InstanceID]*inventory.Instance{
		"i-0a": {State: inventory.StateRunning}, "i-0b": {State: inventory.StateRunning}, "i-0c": {State: inventory.StateStopped},
	}, nil
}

// An EC2 that does not answer about members ends the count, not the sweep.
func TestSweepStopsCountingMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := inOrganization(t)
		w.enroll(1)
		w.fleet.Inventory = hangingEC2{fakeEC2{w}}
		start := time.Now()
		if got, want := w.sweep(0), (Report{Nodes: 1}); got != want {
			t.Errorf("got %+v, want %+v; log: %s", got, want, w.log.String())
		}
		if took := time.Since(start); took != memberTime {
			t.Errorf("took %s, want %s", took, memberTime)
		}
	})
}

// hangingEC2 answers only about the test's account.
type hangingEC2 struct{ fakeEC2 }

func (h hangingEC2) All(ctx context.Context, at ec2ref.Place) (map[ec2ref.InstanceID]*inventory.Instance, error) {
	if at.Account == testAccount {
		return h.fakeEC2.All(ctx, at)
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

// An account that left is like one that is not listed: reported, and never deleted.
func TestAnAccountThatLeft(t *testing.T) {
	w, o := inOrganization(t)
	w.enroll(1)
	w.enroll(2).State = inventory.StateTerminated
	clear(o.members)
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
