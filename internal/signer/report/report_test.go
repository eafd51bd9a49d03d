package report

import (
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

const (
	day1    = 24 * time.Hour
	account = ec2ref.Account("111122223333")
	region  = ec2ref.Region("us-west-2")
)

func noon() time.Time { return time.Date(2026, 1, 9, 12, 0, 0, 0, time.UTC) }

func place() ec2ref.Place { return ec2ref.Place{Account: account, Region: region} }

func web() ec2ref.Instance {
	return ec2ref.Instance{Account: account, Region: region, ID: "i-0a1b2c3d4e5f60718"}
}

// healthy is one enrolled instance that renewed a day ago, for seven days.
func healthy() Fleet {
	renewed := noon().Add(-day1)
	return Fleet{
		Records: map[ec2ref.Instance]ledger.Record{web(): {
			Version: 2, Generation: 1, ConfirmedHostname: "web", Rule: "default", Renewed: renewed,
			Lease: renewed.Add(7 * day1), ValidUntil: renewed.Add(7*day1 + time.Minute),
		}},
		Refusals: map[ec2ref.Instance]ledger.Refusal{},
		Nodes: map[ec2ref.Instance]node.Node{web(): {
			ID: web().NodeID(), Hostname: "web", Expires: renewed.Add(7 * day1), Labels: map[string]string{node.RuleLabel: "default"},
		}},
		EC2: map[ec2ref.Place]map[ec2ref.InstanceID]string{place(): {web().ID: inventory.StateRunning}},
	}
}

func (f Fleet) record(change func(*ledger.Record)) {
	r := f.Records[web()]
	change(&r)
	f.Records[web()] = r
}

func (f Fleet) ec2(state string) { f.EC2[place()][web().ID] = state }

// none says that there is no row.
const none State = ""

// TestJoin changes one thing about a healthy instance in each row.
func TestJoin(t *testing.T) {
	forget := func(f *Fleet) { delete(f.Records, web()); delete(f.Nodes, web()) }
	tests := map[string]struct {
		change func(*Fleet)
		state  State
		reason string
	}{
		"healthy": {func(*Fleet) {}, Enrolled, ""},
		"pending": {func(f *Fleet) { f.ec2(inventory.StatePending) }, Enrolled, ""},
		"a record from before renewals were noted": {func(f *Fleet) {
			f.record(func(r *ledger.Record) { r.Renewed, r.Rule = time.Time{}, "" })
		}, Enrolled, ""},
		"a record from before leases were noted": {func(f *Fleet) {
			f.record(func(r *ledger.Record) { r.Renewed, r.Lease = time.Time{}, time.Time{} })
		}, Enrolled, ""},

		"ended by an event": {func(f *Fleet) {
			f.record(func(r *ledger.Record) { r.Retired = true })
			delete(f.Nodes, web())
			f.ec2(inventory.StateTerminated)
		}, Ended, "off-boarded"},
		"ended by an operator, still running": {func(f *Fleet) {
			f.record(func(r *ledger.Record) { r.Retired, r.RetiredBy = true, "ann" })
			delete(f.Nodes, web())
		}, Ended, "off-boarded by ann"},
		"ended, and its node is left": {func(f *Fleet) {
			f.record(func(r *ledger.Record) { r.Retired = true })
		}, Ended, "off-boarded; its node is still there until the next sweep"},
		"ended, and asked again": {func(f *Fleet) {
			f.record(func(r *ledger.Record) { r.Retired = true })
			delete(f.Nodes, web())
			f.Refusals[web()] = ledger.Refusal{At: noon(), Code: "instance_ended"}
		}, Ended, "off-boarded"},
		"ended, and Teleport was not read": {func(f *Fleet) {
			f.record(func(r *ledger.Record) { r.Retired = true })
			f.Nodes = nil
		}, Ended, "off-boarded"},

		"left": {func(f *Fleet) {
			f.record(func(r *ledger.Record) { r.Left = true })
			delete(f.Nodes, web())
		}, Left, ""},
		"left, and its node is not deleted yet": {func(f *Fleet) {
			f.record(func(r *ledger.Record) { r.Left = true })
		}, Left, "its node is still there until the next sweep"},
		"left, and terminated": {func(f *Fleet) {
			f.record(func(r *ledger.Record) { r.Left = true })
			delete(f.Nodes, web())
			f.ec2(inventory.StateTerminated)
		}, Unhealthy, "EC2 says it is terminated; the next sweep retires its record"},

		"left, and refused since": {func(f *Fleet) {
			f.record(func(r *ledger.Record) { r.Left, r.LeftAt = true, noon().Add(-time.Hour) })
			delete(f.Nodes, web())
			f.Refusals[web()] = ledger.Refusal{At: noon(), Code: "policy_refused", Reason: "policy_refused: no rule matches"}
		}, Refused, "policy_refused: no rule matches"},
		"refused, and left since": {func(f *Fleet) {
			f.record(func(r *ledger.Record) { r.Left, r.LeftAt = true, noon() })
			delete(f.Nodes, web())
			f.Refusals[web()] = ledger.Refusal{At: noon().Add(-time.Second), Code: "host_key_conflict"}
		}, Left, ""},

		"refused before it enrolled": {func(f *Fleet) {
			forget(f)
			f.Refusals[web()] = ledger.Refusal{At: noon(), Code: "policy_refused", Reason: "policy_refused: no rule matches"}
		}, Refused, "policy_refused: no rule matches"},
		"refused since its renewal": {func(f *Fleet) {
			f.Refusals[web()] = ledger.Refusal{At: noon(), Code: "host_key_conflict", Reason: "other keys"}
		}, Refused, "host_key_conflict: other keys"},
		"refused in the second of its renewal": {func(f *Fleet) {
			f.Refusals[web()] = ledger.Refusal{At: noon().Add(-day1), Code: "host_key_conflict"}
		}, Refused, "host_key_conflict"},
		"refused before its renewal": {func(f *Fleet) {
			f.Refusals[web()] = ledger.Refusal{At: noon().Add(-2 * day1), Code: "policy_refused"}
		}, Enrolled, ""},
		"refused, and terminated since": {func(f *Fleet) {
			forget(f)
			f.Refusals[web()] = ledger.Refusal{At: noon(), Code: "policy_refused"}
			f.ec2(inventory.StateTerminated)
		}, none, ""},
		"refused, and nobody was read": {func(f *Fleet) {
			forget(f)
			f.Refusals[web()] = ledger.Refusal{At: noon(), Code: "policy_refused"}
			f.Nodes, f.EC2 = nil, nil
		}, Refused, "policy_refused"},

		"it never enrolled":       {forget, NoNode, "it never enrolled"},
		"stopped, and a stranger": {func(f *Fleet) { forget(f); f.ec2(inventory.StateStopped) }, none, ""},
		"its node is gone":        {func(f *Fleet) { delete(f.Nodes, web()) }, NoNode, "its certificates are valid, but Teleport has no node"},
		"its lease is past": {func(f *Fleet) {
			delete(f.Nodes, web())
			f.record(func(r *ledger.Record) { r.Lease = noon().Add(-time.Hour) })
		}, NoNode, "its certificates expired on 2026-01-09 11:00 UTC"},
		"a claim that nobody confirmed": {func(f *Fleet) {
			delete(f.Nodes, web())
			f.record(func(r *ledger.Record) { r.ConfirmedHostname = "" })
		}, NoNode, "an enrollment started and did not finish"},

		"stopped, with a node":    {func(f *Fleet) { f.ec2(inventory.StateStopped) }, Stopped, ""},
		"stopping":                {func(f *Fleet) { f.ec2("stopping") }, Stopped, ""},
		"stopped, without a node": {func(f *Fleet) { f.ec2(inventory.StateStopped); delete(f.Nodes, web()) }, Stopped, ""},

		"terminated, with a record": {func(f *Fleet) { f.ec2(inventory.StateTerminated) }, Unhealthy, "EC2 says it is terminated; the next sweep retires its record"},
		"shutting down":             {func(f *Fleet) { f.ec2(inventory.StateShuttingDown) }, Unhealthy, "EC2 says it is shutting-down; the next sweep retires its record"},
		"EC2 does not show it":      {func(f *Fleet) { delete(f.EC2[place()], web().ID) }, Unhealthy, "EC2 does not show the instance"},
		"a node without a record": {func(f *Fleet) { delete(f.Records, web()) }, Unhealthy,
			"its node has no record in the ledger; its lease expires on 2026-01-15 12:00 UTC"},
		"a node without a record that never expires": {func(f *Fleet) {
			delete(f.Records, web())
			n := f.Nodes[web()]
			n.Expires = time.Time{}
			f.Nodes[web()] = n
		}, Unhealthy, "its node has no record in the ledger, and never expires"},
		"a node with another name": {func(f *Fleet) { f.record(func(r *ledger.Record) { r.ConfirmedHostname = "db" }) }, Unhealthy,
			"its node is named web, but its certificates name db"},
		"a node past its lease": {func(f *Fleet) { f.record(func(r *ledger.Record) { r.Lease = noon().Add(-time.Second) }) }, Unhealthy,
			"its certificates expired on 2026-01-09 11:59 UTC"},
		"a node of an enrollment that did not end": {func(f *Fleet) { f.record(func(r *ledger.Record) { r.ConfirmedHostname = "" }) }, Unhealthy,
			"an enrollment started and did not finish"},
		"its health is good": {func(f *Fleet) {
			f.record(func(r *ledger.Record) { r.Health = ledger.Health{Reported: "ok", ReportedAt: noon()} })
		}, Enrolled, ""},
		"the proxy does not reach it": {func(f *Fleet) {
			f.record(func(r *ledger.Record) {
				r.Health = ledger.Health{Reported: "ok", ReportedAt: noon(), Unreachable: true}
			})
		}, Unhealthy, "health: unreachable"},
		"it reports no longer": {func(f *Fleet) {
			f.record(func(r *ledger.Record) { r.Health = ledger.Health{Reported: "ok", ReportedAt: noon().Add(-2 * day1)} })
		}, Unhealthy, "health: silent"},
		"two thirds of its time": {func(f *Fleet) {
			f.record(func(r *ledger.Record) { r.Renewed, r.Lease = noon().Add(-2*day1), noon().Add(day1) })
		}, Enrolled, ""},
		"more than two thirds": {func(f *Fleet) {
			f.record(func(r *ledger.Record) { r.Renewed, r.Lease = noon().Add(-2*day1-time.Second), noon().Add(day1) })
		}, Unhealthy, "its renewal is overdue; the last one was on 2026-01-07 11:59 UTC"},

		"Teleport was not read":                {func(f *Fleet) { f.Nodes = nil }, Unknown, "Teleport was not read"},
		"neither was EC2":                      {func(f *Fleet) { f.Nodes, f.EC2 = nil, nil }, Unknown, "Teleport was not read"},
		"a stranger, and Teleport not read":    {func(f *Fleet) { forget(f); f.Nodes = nil }, Unknown, "Teleport was not read"},
		"stopped, and Teleport not read":       {func(f *Fleet) { f.ec2(inventory.StateStopped); f.Nodes = nil }, Stopped, ""},
		"EC2 was not read":                     {func(f *Fleet) { f.EC2 = nil }, Enrolled, ""},
		"EC2 was not read, and it has no node": {func(f *Fleet) { f.EC2 = nil; delete(f.Nodes, web()) }, Unknown, "it has no node, and EC2 was not read"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := healthy()
			tt.change(&f)
			rows := Join(f, noon())
			if tt.state == none {
				if len(rows) != 0 {
					t.Errorf("rows %+v, want none", rows)
				}
				return
			}
			if len(rows) != 1 || rows[0].State != tt.state || rows[0].Reason != tt.reason {
				t.Errorf("rows %+v, want %s: %s", rows, tt.state, tt.reason)
			}
		})
	}
}

func TestRow(t *testing.T) {
	renewed := noon().Add(-day1)
	want := Row{
		Instance: web().ID, Account: account, Region: region, Hostname: "web", Rule: "default", Renewed: renewed,
		CertificateEnd: renewed.Add(7 * day1), State: Enrolled, EC2State: "running", NodeID: web().NodeID(),
	}
	if rows := Join(healthy(), noon()); len(rows) != 1 || rows[0] != want {
		t.Errorf("rows %+v, want %+v", rows, want)
	}
	f := healthy() // the ledger of an older signer has no rule; the node's label does
	f.record(func(r *ledger.Record) { r.Rule = "" })
	if rows := Join(f, noon()); rows[0].Rule != "default" {
		t.Errorf("rule %q", rows[0].Rule)
	}
}

// The same id in another region is another instance.
func TestJoinSorts(t *testing.T) {
	f := healthy()
	elsewhere := web()
	elsewhere.Region = "eu-west-1"
	f.EC2[elsewhere.Place()] = map[ec2ref.InstanceID]string{elsewhere.ID: inventory.StateRunning, "i-00000000000000001": inventory.StateRunning}
	rows := Join(f, noon())
	var got []string
	for _, r := range rows {
		got = append(got, r.ref().String()+" "+string(r.State))
	}
	want := []string{
		account.String() + "/eu-west-1/i-00000000000000001 no_node", elsewhere.String() + " no_node", web().String() + " enrolled",
	}
	if len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("rows %q, want %q", got, want)
	}
}
