// Package report says how each instance of a fleet is doing, according to the ledger, Teleport
// and EC2. Read asks them, Join decides, and Filter and the writers do the rest. It changes
// nothing, and nothing may depend on it: it reads the sources one after the other.
package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// State is how an instance is doing, in one word.
type State string

// The states.
const (
	// Enrolled has valid certificates and a node.
	Enrolled State = "enrolled"
	// Unhealthy has a node or a record with something wrong. The reason says what.
	Unhealthy State = "unhealthy"
	// NoNode runs, but has no node in Teleport.
	NoNode State = "no_node"
	// Refused asked after its last renewal, if it had one, and the signer refused it.
	Refused State = "refused"
	// Stopped is stopped in EC2 and can renew when it starts.
	Stopped State = "stopped"
	// Left asked to have no node, and may enroll again.
	Left State = "left"
	// Ended was off-boarded and can never enroll again.
	Ended State = "ended"
	// Unknown depends on a source that could not be read.
	Unknown State = "unknown"
)

// States returns all states, in the order of summaries.
func States() []State {
	return []State{Enrolled, Unhealthy, NoNode, Refused, Stopped, Left, Ended, Unknown}
}

// Row is one instance. Times are in UTC. Unknown values are left out.
type Row struct {
	Instance ec2ref.InstanceID `json:"instance"`
	Account  ec2ref.Account    `json:"account"`
	Region   ec2ref.Region     `json:"region"`
	// Hostname is the name in the certificates, from the ledger.
	Hostname string `json:"host_name,omitempty"`
	// Rule is the policy rule that last admitted it.
	Rule string `json:"rule,omitempty"`
	// Version is the version of hallmark that the machine reported at its last renewal. Older
	// machines do not report it.
	Version string `json:"version,omitempty"`
	// Renewed is when it got its certificates. Old records do not have it.
	Renewed time.Time `json:"renewed,omitzero"`
	// CertificateEnd is when its certificates and its node's lease expire.
	CertificateEnd time.Time `json:"certificate_end,omitzero"`
	State          State     `json:"state"`
	// Reason says why it is in that state, if that is not enrolled.
	Reason string `json:"reason,omitempty"`
	// EC2State is what EC2 says, such as running.
	EC2State string `json:"ec2_state,omitempty"`
	// NodeID is the name of its node in Teleport, whether or not there is one.
	NodeID string `json:"node_id"`
}

func (r Row) ref() ec2ref.Instance {
	return ec2ref.Instance{Account: r.Account, Region: r.Region, ID: r.Instance}
}

// Gap is a source that could not be read.
type Gap struct {
	// Source is teleport, ec2 or organization.
	Source string `json:"source"`
	// Account and Region say where, for EC2.
	Account ec2ref.Account `json:"account,omitempty"`
	Region  ec2ref.Region  `json:"region,omitempty"`
	Error   string         `json:"error"`
}

func (g Gap) String() string {
	if g.Source == sourceEC2 {
		return fmt.Sprintf("EC2 in account %s, %s: %s", g.Account, g.Region, g.Error)
	}
	if g.Source == sourceOrganization {
		return "the organization's accounts: " + g.Error
	}
	return "Teleport: " + g.Error
}

const (
	sourceTeleport     = "teleport"
	sourceEC2          = "ec2"
	sourceOrganization = "organization"
)

// Fleet is what the sources returned.
type Fleet struct {
	// Records and Refusals come from the ledger.
	Records  map[ec2ref.Instance]ledger.Record
	Refusals map[ec2ref.Instance]ledger.Refusal
	// Nodes are this signer's nodes in Teleport, or nil if Teleport could not be read.
	Nodes map[ec2ref.Instance]node.Node
	// EC2 has the states of instances. It leaves out places that could not be read.
	EC2 map[ec2ref.Place]map[ec2ref.InstanceID]string
	// Gaps says what could not be read.
	Gaps []Gap
}

// Join returns a row for each instance, by account, region, host name and id. An instance that
// EC2 has and that does not run has no row unless the ledger or Teleport knows it.
func Join(f Fleet, now time.Time) []Row {
	var rows []Row
	for i := range f.instances() {
		if row, ok := f.row(i, now); ok {
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(a, b Row) int {
		return cmp.Or(cmp.Compare(a.Account, b.Account), cmp.Compare(a.Region, b.Region),
			cmp.Compare(a.Hostname, b.Hostname), cmp.Compare(a.Instance, b.Instance))
	})
	return rows
}

// instances returns every instance that any source knows.
func (f Fleet) instances() map[ec2ref.Instance]struct{} {
	all := make(map[ec2ref.Instance]struct{}, len(f.Records))
	for i := range f.Records {
		all[i] = struct{}{}
	}
	for i := range f.Refusals {
		all[i] = struct{}{}
	}
	for i := range f.Nodes {
		all[i] = struct{}{}
	}
	for at, states := range f.EC2 {
		for id := range states {
			all[ec2ref.Instance{Account: at.Account, Region: at.Region, ID: id}] = struct{}{}
		}
	}
	return all
}

func (f Fleet) row(i ec2ref.Instance, now time.Time) (Row, bool) {
	e := f.evidence(i)
	row := Row{
		Instance: i.ID, Account: i.Account, Region: i.Region, NodeID: i.NodeID(),
		Hostname: e.record.ConfirmedHostname, Rule: cmp.Or(e.record.Rule, e.node.Labels[node.RuleLabel]), Version: e.record.Program,
		Renewed: e.record.Renewed, EC2State: e.state,
	}
	if e.confirmed() {
		row.CertificateEnd = node.Lease(e.record)
	}
	if row.Hostname == "" {
		row.Hostname = e.node.Hostname
	}
	row.State, row.Reason = e.judge(now)
	return row, row.State != ""
}

// evidence is what the sources say about one instance.
type evidence struct {
	record   ledger.Record
	refusal  ledger.Refusal
	node     node.Node
	state    string // in EC2; empty if EC2 does not show it
	hasNode  bool
	readEC2  bool
	readNode bool // Teleport was read
}

func (f Fleet) evidence(i ec2ref.Instance) evidence {
	e := evidence{record: f.Records[i], refusal: f.Refusals[i], readNode: f.Nodes != nil}
	e.node, e.hasNode = f.Nodes[i]
	var states map[ec2ref.InstanceID]string
	states, e.readEC2 = f.EC2[i.Place()]
	e.state = states[i.ID]
	return e
}

func (e evidence) known() bool     { return e.record.Generation > 0 }
func (e evidence) confirmed() bool { return e.record.ConfirmedHostname != "" }
func (e evidence) runs() bool {
	return e.state == inventory.StateRunning || e.state == inventory.StatePending
}

// gone reports whether EC2 says that the instance will not come back, or does not show it.
func (e evidence) gone() bool {
	return e.readEC2 && (e.state == "" || e.state == inventory.StateShuttingDown || e.state == inventory.StateTerminated)
}

// judge decides the state. It is empty for an instance that has nothing to do with Hallmark.
func (e evidence) judge(now time.Time) (State, string) {
	switch {
	case e.record.Retired:
		return Ended, e.whyEnded()
	case e.gone():
		return e.judgeGone()
	case e.record.Left && !e.isRefusedSince(e.record.LeftAt.Add(protocol.MaxClockSkew)): // the machine's clock
		return Left, e.whyLeft()
	case e.isRefusedSince(e.record.Renewed):
		return Refused, strings.TrimSuffix(e.refusal.Code+": "+strings.TrimPrefix(e.refusal.Reason, e.refusal.Code+": "), ": ")
	case !e.readNode:
		return e.judgeWithoutTeleport()
	case !e.hasNode:
		return e.judgeWithoutNode(now)
	case !e.known():
		return Unhealthy, e.whyUnknown()
	case e.readEC2 && !e.runs():
		return Stopped, ""
	}
	if why := e.unhealthy(now); why != "" {
		return Unhealthy, why
	}
	return Enrolled, ""
}

func (e evidence) isRefusedSince(t time.Time) bool {
	return !e.refusal.At.IsZero() && !e.refusal.At.Before(t)
}

func (e evidence) whyEnded() string {
	why := "off-boarded"
	if e.record.RetiredBy != "" {
		why += " by " + e.record.RetiredBy
	}
	if e.hasNode {
		why += "; its node is still there until the next sweep"
	}
	return why
}

// whyUnknown is for a node of a running instance without a record, which the sweep leaves alone:
// an enrollment may be in progress.
func (e evidence) whyUnknown() string {
	const why = "its node has no record in the ledger"
	if e.node.Expires.IsZero() {
		return why + ", and never expires"
	}
	return why + "; its lease expires on " + day(e.node.Expires)
}

func (e evidence) whyLeft() string {
	if e.hasNode {
		return "its node is still there until the next sweep"
	}
	return ""
}

// judgeGone is for instances that EC2 no longer has.
func (e evidence) judgeGone() (State, string) {
	if !e.known() && !e.hasNode {
		return "", ""
	}
	if e.state == "" {
		return Unhealthy, "EC2 does not show the instance"
	}
	return Unhealthy, "EC2 says it is " + e.state + "; the next sweep retires its record"
}

func (e evidence) judgeWithoutTeleport() (State, string) {
	switch {
	case e.readEC2 && !e.runs():
		if !e.known() {
			return "", ""
		}
		return Stopped, ""
	case !e.known() && !e.readEC2:
		return "", ""
	}
	return Unknown, "Teleport was not read"
}

func (e evidence) judgeWithoutNode(now time.Time) (State, string) {
	switch {
	case !e.readEC2:
		return Unknown, "it has no node, and EC2 was not read"
	case !e.runs() && !e.known():
		return "", ""
	case !e.runs():
		return Stopped, ""
	case !e.known():
		return NoNode, "it never enrolled"
	case !e.confirmed():
		return NoNode, "an enrollment started and did not finish"
	}
	if end := node.Lease(e.record); now.After(end) {
		return NoNode, "its certificates expired on " + day(end)
	}
	return NoNode, "its certificates are valid, but Teleport has no node"
}

// unhealthy says what is wrong with an instance that has a record and a node, or "".
func (e evidence) unhealthy(now time.Time) string {
	end := node.Lease(e.record)
	health := node.Health(e.record, now)
	switch {
	case !e.confirmed():
		return "an enrollment started and did not finish"
	case now.After(end):
		return "its certificates expired on " + day(end)
	case e.node.Hostname != e.record.ConfirmedHostname:
		return fmt.Sprintf("its node is named %s, but its certificates name %s", e.node.Hostname, e.record.ConfirmedHostname)
	case health != "" && health != string(protocol.HealthOK):
		return "health: " + health
	case isOverdue(e.record, now):
		return "its renewal is overdue; the last one was on " + day(e.record.Renewed)
	}
	return ""
}

// isOverdue reports whether two thirds of a certificate's lifetime are over. Machines renew
// after one third.
func isOverdue(r ledger.Record, now time.Time) bool {
	if r.Renewed.IsZero() {
		return false
	}
	return now.After(r.Renewed.Add(node.Lease(r).Sub(r.Renewed) * 2 / 3))
}

// day writes a time for people.
func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }
