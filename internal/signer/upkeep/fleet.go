// Package upkeep keeps Teleport in step with EC2 after machines have enrolled: it
// off-boards instances that are gone, updates labels from tags, and repairs what events
// missed.
//
// Events are hints. Anyone who may write to an event bus can forge one, and events arrive
// late, twice and out of order. So an event only names an instance; EC2 says what
// happened to it. An event never creates a node. Hallmark renders nodes from the ledger
// and EC2, never from a node read back, and only for enrolled instances.
package upkeep

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/organization"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
)

// Inventory asks EC2 about instances. *inventory.EC2 implements it.
type Inventory interface {
	// Instances returns the given instances that EC2 knows, by id. It fails rather than
	// leave out instances it could not ask about.
	Instances(ctx context.Context, at ec2ref.Place, ids []ec2ref.InstanceID) (map[ec2ref.InstanceID]*inventory.Instance, error)
	// All returns all instances of an account in a region, by id.
	All(ctx context.Context, at ec2ref.Place) (map[ec2ref.InstanceID]*inventory.Instance, error)
	// CheckAccount fails unless the EC2 client uses credentials of this account.
	CheckAccount(ctx context.Context, account ec2ref.Account) error
}

// Ledger records which instance holds which keys and names. *ledger.DynamoDB implements
// it.
type Ledger interface {
	Lookup(ctx context.Context, i ec2ref.Instance) (ledger.Record, error)
	// Retire records that an instance is gone for good, even an unknown one.
	Retire(ctx context.Context, i ec2ref.Instance) error
	LookupAll(ctx context.Context, instances []ec2ref.Instance) (map[ec2ref.Instance]ledger.Record, error)
	// Announce notes that an instance's tags may have changed, or that a write of its
	// node is coming, and returns the record after the note.
	Announce(ctx context.Context, i ec2ref.Instance) (ledger.Record, error)
}

// Cluster is the Teleport cluster. *teleport.Client implements it.
type Cluster interface {
	ClusterName() string
	ProxyName() string
	// Node fails with teleport.ErrNotFound.
	Node(ctx context.Context, id string) (*node.Node, error)
	// NodesWith returns the nodes that have all the labels.
	NodesWith(ctx context.Context, labels map[string]string) ([]node.Node, error)
	UpsertNode(ctx context.Context, n node.Node) error
	// DeleteNode fails with teleport.ErrNotFound.
	DeleteNode(ctx context.Context, id string) error
}

// Organization returns the accounts of an AWS organization that may enroll instances.
// *organization.Members implements it.
type Organization interface {
	Current(ctx context.Context) (organization.View, error)
}

// Fleet acts on events and sweeps. All fields are required unless they say otherwise. It is
// safe for concurrent use.
type Fleet struct {
	// Audience is the signer's own name. Nodes of other signers stay untouched.
	Audience string
	// Accounts and Regions are the deployment's lists. Everything outside them stays
	// untouched.
	Accounts []ec2ref.Account
	Regions  []ec2ref.Region
	// Organization lists more accounts. It is optional.
	Organization Organization

	Inventory Inventory
	Ledger    Ledger
	// Missing stores which instances EC2 does not show.
	Missing Notes
	// Records and Walk are for RetireExpired: the ledger, and the stored state of the
	// walk.
	Records Records
	Walk    Notes
	Policy  func(ctx context.Context) (*policy.Policy, error)
	// Connect returns the cluster with a valid login.
	Connect func(ctx context.Context) (Cluster, error)
	// Probe connects to a node's address, host:port, and fails if sshd does not answer. It
	// is optional: the function may have no route to the machines. It needs Health.
	Probe  func(ctx context.Context, address string) error
	Health HealthLedger

	Log *slog.Logger
	Now func() time.Time
}

// scope is the accounts and regions that a fleet acts on.
type scope struct {
	*Fleet
	members organization.View
}

// scope reads which accounts the organization has.
func (f *Fleet) scope(ctx context.Context) (scope, error) {
	if f.Organization == nil {
		return scope{Fleet: f}, nil
	}
	members, err := f.Organization.Current(ctx)
	if err != nil {
		return scope{}, fmt.Errorf("read which accounts the organization has: %w", err)
	}
	return scope{f, members}, nil
}

// has reports whether the account and region are listed, or the account is a member.
func (s scope) has(at ec2ref.Place) bool {
	return slices.Contains(s.Regions, at.Region) && (slices.Contains(s.Accounts, at.Account) || s.members.Has(at.Account))
}

// serves rejects events from accounts or regions that are not listed, before any call.
// Any account that may put events on the bus can write them, and a retry would not help.
func (s scope) serves(ctx context.Context, i ec2ref.Instance) bool {
	if s.has(i.Place()) {
		return true
	}
	s.Log.WarnContext(ctx, "event from an account or region that is not listed",
		slog.Any("", i))
	return false
}

// instance asks EC2 for one instance; nil means that EC2 does not know it.
func (f *Fleet) instance(ctx context.Context, i ec2ref.Instance) (*inventory.Instance, error) {
	found, err := f.Inventory.Instances(ctx, i.Place(), []ec2ref.InstanceID{i.ID})
	if err != nil {
		return nil, fmt.Errorf("ask EC2 about %s: %w", i.ID, err)
	}
	return found[i.ID], nil
}

// ask asks EC2 about a group of instances in one account and region.
func (f *Fleet) ask(ctx context.Context, at ec2ref.Place, instances []ec2ref.Instance, group []int) (map[ec2ref.InstanceID]*inventory.Instance, error) {
	ids := make([]ec2ref.InstanceID, len(group))
	for k, n := range group {
		ids[k] = instances[n].ID
	}
	found, err := f.Inventory.Instances(ctx, at, ids)
	if err != nil {
		return nil, fmt.Errorf("ask EC2: %w", err)
	}
	return found, nil
}

// isStopped reports whether an instance is stopped and could start again.
func isStopped(i *inventory.Instance) bool { return i != nil && i.State == inventory.StateStopped }

// pass is the policy and the cluster that several nodes are checked against.
type pass struct {
	scope
	rules   *policy.Policy
	cluster Cluster
}

func (f *Fleet) newPass(ctx context.Context) (pass, error) {
	within, err := f.scope(ctx)
	if err != nil {
		return pass{}, err
	}
	cluster, err := f.Connect(ctx)
	if err != nil {
		return pass{}, err
	}
	rules, err := f.Policy(ctx)
	if err != nil {
		return pass{}, fmt.Errorf("read the policy: %w", err)
	}
	return pass{within, rules, cluster}, nil
}

// nodes lists the nodes with this signer's label.
func (p pass) nodes(ctx context.Context) ([]node.Node, error) {
	nodes, err := p.cluster.NodesWith(ctx, map[string]string{node.SignerLabel: p.Audience})
	if err != nil {
		return nil, fmt.Errorf("list the nodes of this signer: %w", err)
	}
	return nodes, nil
}

// render returns the node that an enrolled instance should have now. Its error is
// policy.ErrRefused or policy.ErrIncomplete.
func (p pass) render(i *inventory.Instance, r ledger.Record) (node.Node, error) {
	names := node.Cluster{Name: p.cluster.ClusterName(), Proxy: p.cluster.ProxyName(), Signer: p.Audience}
	decision, err := p.rules.Decide(p.factsOf(i, r), names, p.Now())
	if err != nil {
		return node.Node{}, err
	}
	of := ec2ref.Instance{Account: i.OwnerID, Region: i.Region, ID: i.ID}
	return node.Confirmed(of, r, decision.Address, decision.Labels).WithHealth(r, p.Now()), nil
}

// factsOf treats the instance as enrolled: it has, or had, a node.
func (s scope) factsOf(i *inventory.Instance, r ledger.Record) node.Facts {
	facts := node.FactsOf(i, r)
	s.members.Describe(&facts)
	facts.Enrolled = true
	return facts
}
