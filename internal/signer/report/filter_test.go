package report

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

func someRows() []Row {
	row := func(id ec2ref.InstanceID, in ec2ref.Region, name, rule string, end time.Duration, s State) Row {
		r := Row{Instance: id, Account: account, Region: in, Hostname: name, Rule: rule, State: s, NodeID: "node-of-" + string(id)}
		if end != 0 {
			r.Renewed, r.CertificateEnd = noon().Add(end-7*day1), noon().Add(end)
		}
		return r
	}
	web := row("i-00000000000000001", region, "web-1", "web", 2*day1, Enrolled)
	web.Version = "v1.2.3"
	ended := row("i-00000000000000003", region, "db-1", "db", -day1, Ended)
	ended.Reason = "off-boarded by ann"
	refused := row("i-00000000000000004", "eu-west-1", "", "", 0, Refused)
	refused.Reason, refused.EC2State = "policy_refused: no rule matches: rule \"web\": image_owners: \"999\", tags", "running"
	refused.Account = "444455556666"
	return []Row{
		web,
		row("i-00000000000000002", region, "web-22", "web", -time.Hour, NoNode),
		ended, refused,
	}
}

func TestFilter(t *testing.T) {
	tests := map[string]struct {
		filter Filter
		want   []int
	}{
		"nothing":               {Filter{}, []int{1, 2, 3, 4}},
		"account":               {Filter{Accounts: []ec2ref.Account{"444455556666"}}, []int{4}},
		"two accounts":          {Filter{Accounts: []ec2ref.Account{"444455556666", account}}, []int{1, 2, 3, 4}},
		"region":                {Filter{Regions: []ec2ref.Region{"eu-west-1"}}, []int{4}},
		"rule":                  {Filter{Rules: []string{"db"}}, []int{3}},
		"states":                {Filter{States: []State{Ended, Refused}}, []int{3, 4}},
		"host name":             {Filter{Hostname: "web-1"}, []int{1}},
		"pattern":               {Filter{Hostname: "web-?"}, []int{1}},
		"pattern of all":        {Filter{Hostname: "*"}, []int{1, 2, 3, 4}},
		"within a day":          {Filter{Within: day1}, []int{2}},
		"within exactly that":   {Filter{Within: 2 * day1}, []int{1, 2}},
		"within, not the ended": {Filter{Within: 30 * day1}, []int{1, 2}},
		"several":               {Filter{Regions: []ec2ref.Region{region}, Rules: []string{"web"}, States: []State{NoNode}}, []int{2}},
		"version":               {Filter{Version: "v1.2.*"}, []int{1}},
		"no version":            {Filter{Version: "v0*"}, nil},
		"none":                  {Filter{Regions: []ec2ref.Region{"eu-west-1"}, States: []State{Ended}}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := tt.filter.Check(); err != nil {
				t.Fatal(err)
			}
			var want, got []string
			for _, n := range tt.want {
				want = append(want, fmt.Sprintf("i-%017d", n))
			}
			for _, r := range tt.filter.Apply(someRows(), noon()) {
				got = append(got, string(r.Instance))
			}
			if !slices.Equal(got, want) {
				t.Errorf("rows %q, want %q", got, want)
			}
		})
	}
}

func TestFilterCheck(t *testing.T) {
	for name, f := range map[string]Filter{
		"state": {States: []State{"healthy"}}, "pattern": {Hostname: "web-["}, "version": {Version: "["}, "time": {Within: -time.Second},
	} {
		if f.Check() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
