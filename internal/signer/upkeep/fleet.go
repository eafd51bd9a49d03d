// Package upkeep keeps Teleport true to EC2 after machines have enrolled: it
// off-boards those that are gone, lets labels follow tags, and sweeps up what
// events missed.
//
// Events are hints. Whoever may put an event on a bus could write one, and they
// come late, twice and out of order. So an event names an instance and nothing
// more; what became of it is EC2's to say. And an event never makes a node: what is
// written is rendered from the ledger and EC2, never from a node read back, and only
// for an instance whose enrollment went through.
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
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

// Inventory tells what EC2 knows of instances. *inventory.EC2 is one.
type Inventory interface {
	// Instances returns those of the instances that EC2 knows, by id. It fails
	// rather than leave out what it could not ask about.
	Instances(ctx context.Context, at ec2ref.Place, ids []ec2ref.InstanceID) (map[ec2ref.InstanceID]*inventory.Instance, error)
	// All returns all instances of an account in a region, by id.
	All(ctx context.Context, at ec2ref.Place) (map[ec2ref.InstanceID]*inventory.Instance, error)
	// CheckAccount fails unless EC2 is asked about the account with its own credentials.
	CheckAccount(ctx context.Context, account ec2ref.Account) error
}

// Ledger remembers who holds what. *ledger.DynamoDB is one.
type Ledger interface {
	Lookup(ctx context.Context, i ec2ref.Instance) (ledger.Record, error)
	// End records that an instance is gone for good, whether or not it is known.
	Retire(ctx context.Context, i ec2ref.Instance) error
	LookupAll(ctx context.Context, instances []ec2ref.Instance) (map[ec2ref.Instance]ledger.Record, error)
	// Announce notes that an instance's tags may have changed, or that its node is about
	// to be written, and returns the record after the note.
	Announce(ctx context.Context, i ec2ref.Instance) (ledger.Record, error)
}

// Cluster is the Teleport cluster. *teleport.Client is one.
type Cluster interface {
	ClusterName() string
	ProxyName() string
	// Node fails with teleport.ErrNotFound.
	Node(ctx context.Context, id string) (*teleport.Node, error)
	// NodesWith returns the nodes that bear all the labels.
	NodesWith(ctx context.Context, labels map[string]string) ([]teleport.Node, error)
	UpsertNode(ctx context.Context, node teleport.Node) error
	// DeleteNode fails with teleport.ErrNotFound.
	DeleteNode(ctx context.Context, id string) error
}

// Fleet acts on events and sweeps. All fields are required. It may be used by
// several goroutines at once.
type Fleet struct {
	// Audience is the signer's own name: nodes with another are not touched.
	Audience string
	// Accounts and Regions are the deployment's lists. Nothing outside is touched.
	Accounts []ec2ref.Account
	Regions  []ec2ref.Region

	Inventory Inventory
	Ledger    Ledger
	// Missing remembers which instances EC2 does not show.
	Missing Notes
	// Records and Walk are what RetireExpired needs: the ledger, and what is remembered of the
	// walk through it.
	Records Records
	Walk    Notes
	Policy  func(ctx context.Context) (*policy.Policy, error)
	// Connect returns the cluster, logged in.
	Connect func(ctx context.Context) (Cluster, error)

	Log *slog.Logger
	Now func() time.Time
}

// serves stops an event of a stranger's account, which any account that may put
// events on the bus can write, before anything is called for it. To ask again would
// not help.
func (f *Fleet) serves(ctx context.Context, i ec2ref.Instance) bool {
	if slices.Contains(f.Accounts, i.Account) && slices.Contains(f.Regions, i.Region) {
		return true
	}
	f.Log.WarnContext(ctx, "an event of an account or region that is not listed",
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

// ask asks EC2 about the instances of a group, all of one account and region.
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

// isStopped reports whether an instance is stopped, and may be started again.
func isStopped(i *inventory.Instance) bool { return i != nil && i.State == inventory.StateStopped }

// pass is what some nodes are held against: one policy for all of them, and one
// cluster.
type pass struct {
	*Fleet
	rules   *policy.Policy
	cluster Cluster
}

func (f *Fleet) newPass(ctx context.Context) (pass, error) {
	cluster, err := f.Connect(ctx)
	if err != nil {
		return pass{}, err
	}
	rules, err := f.Policy(ctx)
	if err != nil {
		return pass{}, fmt.Errorf("read the policy: %w", err)
	}
	return pass{f, rules, cluster}, nil
}

// render makes the node of an enrolled instance as it should be now. Its error is
// policy.ErrRefused or policy.ErrIncomplete.
func (p pass) render(i *inventory.Instance, r ledger.Record) (node.Node, error) {
	names := node.Cluster{Name: p.cluster.ClusterName(), Proxy: p.cluster.ProxyName(), Signer: p.Audience}
	decision, err := p.rules.Decide(factsOf(i, r), names, p.Now())
	if err != nil {
		return node.Node{}, err
	}
	of := ec2ref.Instance{Account: i.OwnerID, Region: i.Region, ID: i.ID}
	return node.Confirmed(of, r, decision.Address, decision.Labels), nil
}

// factsOf takes the instance for enrolled: a node of it is there, or was.
func factsOf(i *inventory.Instance, r ledger.Record) node.Facts {
	facts := node.FactsOf(i, r)
	facts.Enrolled = true
	return facts
}
