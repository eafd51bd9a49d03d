package signer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/ledger"
	"github.com/hallmark-ssh/hallmark/internal/policy"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/teleport"
)

// signerLabel marks a node as this signer's.
const signerLabel = "hallmark/signer"

// maxClaims bounds how often an instance gives way to others: once where all is
// quiet, and once more if a name is taken just then.
const maxClaims = 3

// ask is who is to be enrolled, and as what.
type ask struct {
	caller   caller
	facts    policy.Facts
	decision policy.Decision
}

// grant is what the ledger holds for the instance, and what will be issued on it.
type grant struct {
	claim      ledger.Claim
	held       ledger.Grant
	node       teleport.Node
	cluster    string
	keys       []ssh.PublicKey
	names      []string // principals beside the host name and the node's id
	principals []string
	start      time.Time
	lifetime   time.Duration
}

func newGrant(k ask, cluster Cluster, now time.Time) grant {
	instance, d := instanceOf(k.caller.document), k.decision
	end := now.Add(d.Lifetime)
	g := grant{
		claim: ledger.Claim{
			Instance:     instance,
			Fingerprints: fingerprints(k.caller.keys),
			Hostname:     d.Hostname,
			Names:        d.Names,
			Image:        k.facts.Image,
			ImageOwner:   k.facts.ImageOwner,
			ImageTags:    k.facts.ImageTags,
			// Teleport's clock sets the certificates' end; hostcert.Check lets it be off
			// by this much. The claim must not end before they do.
			End: end.Add(hostcert.MaxClockSkew),
		},
		node: teleport.Node{
			ID:       protocol.NodeID(instance.Account, instance.Region, instance.ID),
			Hostname: d.Hostname,
			Address:  d.Address,
			Labels:   d.Labels,
			// The lease: if every event is lost, the node still goes when its
			// certificates do.
			Expires: end,
		},
		cluster:  cluster.ClusterName(),
		keys:     k.caller.keys,
		start:    now,
		lifetime: d.Lifetime,
	}
	return g.bearing(d.Names)
}

// bearing returns the grant with these names beside its host name and node id.
func (g grant) bearing(names []string) grant {
	g.names = names
	g.principals = principals(g.node.Hostname, g.node.ID, g.cluster, names)
	return g
}

// principals are the names that people and the proxy may type. An address is
// among them only if the policy names it: private ones repeat across VPCs.
func principals(hostname, id, cluster string, names []string) []string {
	return append([]string{hostname, id, hostname + "." + cluster, id + "." + cluster}, names...)
}

// claim has the ledger hold keys and names for the instance, and looks whether
// they are free in Teleport.
func (s *Signer) claim(ctx context.Context, cluster Cluster, k ask, a *audit) (grant, error) {
	g, err := s.claimFree(ctx, cluster, k, a)
	if err != nil {
		return grant{}, err
	}
	a.grant = &g
	var taken map[string]string
	err = a.step(ctx, "lookup", teleportTimeout, func(ctx context.Context) (err error) {
		taken, err = s.checkTeleport(ctx, cluster, g)
		return err
	})
	if err != nil {
		return grant{}, err
	}
	maps.Copy(a.heldBy, taken)
	g = g.bearing(without(g.names, slices.Collect(maps.Keys(taken))))
	a.grant = &g
	return g, nil
}

// claimFree claims what the policy decided, and gives way where other instances
// hold a name: a machine must not be kept out because of what another is called.
func (s *Signer) claimFree(ctx context.Context, cluster Cluster, k ask, a *audit) (grant, error) {
	for attempt := 1; ; attempt++ {
		g := newGrant(k, cluster, s.now())
		err := a.step(ctx, "claim", ledgerTimeout, func(ctx context.Context) (err error) {
			g.held, err = s.Ledger.Claim(ctx, g.claim, s.now())
			return err
		})
		if err == nil {
			return g, nil
		}
		a.noteHolders(err)
		next, ok := giveWay(k.decision, err)
		if !ok || attempt == maxClaims {
			return grant{}, refuseLedger(err)
		}
		k.decision = next
	}
}

// giveWay returns what to claim instead after a refusal, if there is anything.
func giveWay(d policy.Decision, err error) (policy.Decision, bool) {
	var inUse *ledger.NameInUseError
	switch {
	case errors.As(err, &inUse):
		return leave(d, inUse.Names())
	case errors.Is(err, ledger.ErrTooManyNames):
		// An address that changes with every start must not keep a machine out.
		return leave(d, d.Names)
	}
	return d, false
}

// leave returns the decision without the names that are taken, if there is another
// host name to take, and whether that changes anything.
func leave(d policy.Decision, taken []string) (policy.Decision, bool) {
	names := without(d.Names, taken)
	changed := len(names) < len(d.Names)
	d.Names = names
	if slices.Contains(taken, d.Hostname) {
		if d.Fallback == "" {
			return d, false
		}
		d.Hostname, d.Fallback = d.Fallback, ""
		changed = true
	}
	return d, changed
}

func without(names, taken []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(taken, name) })
}

func refuseLedger(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ledger.ErrKeyConflict):
		return refuse(protocol.CodeKeyConflict, err)
	case errors.Is(err, ledger.ErrKeyInUse):
		return refuse(protocol.CodeKeyInUse, err)
	case errors.Is(err, ledger.ErrNameInUse):
		return refuse(protocol.CodeNameInUse, err)
	case errors.Is(err, ledger.ErrTooManyNames):
		return refuse(protocol.CodeNameInUse, err).saying("the instance has had too many names; ask the signer's operator")
	case errors.Is(err, ledger.ErrEnded):
		return refuse(protocol.CodeInstanceEnded, err)
	}
	return unanswered(serviceLedger, err)
}

// checkTeleport compares the names with the nodes that Teleport knows, which may be
// older than the ledger or not of Hallmark's making. It returns those of the further
// names that another node bears, and who.
//
// It refuses a node id that another program writes, and a host name that another
// node bears: under Teleport's routing the node with the latest expiry wins, so the
// name would be taken away. These two are asked until a claim of the host name has
// been confirmed, and not only at the first claim: an attempt that failed halfway
// has shown nothing. Of the further names nothing records that they once were free.
func (s *Signer) checkTeleport(ctx context.Context, cluster Cluster, g grant) (map[string]string, error) {
	group, ctx := errgroup.WithContext(ctx)
	if g.held.ConfirmedHostname != g.claim.Hostname {
		group.Go(func() error { return s.checkNode(ctx, cluster, g) })
		group.Go(func() error { return checkHostname(ctx, cluster, g) })
	}
	var mu sync.Mutex
	taken := make(map[string]string)
	for _, name := range g.names {
		group.Go(func() error {
			other, err := otherNode(ctx, cluster, name, g.node.ID)
			if other != "" {
				mu.Lock()
				defer mu.Unlock()
				taken[name] = "node " + other
			}
			return err
		})
	}
	return taken, group.Wait()
}

func (s *Signer) checkNode(ctx context.Context, cluster Cluster, g grant) error {
	node, err := cluster.Node(ctx, g.node.ID)
	switch {
	case errors.Is(err, teleport.ErrNotFound):
		return nil
	case err != nil:
		return unanswered(serviceTeleport, fmt.Errorf("look up node %s: %w", g.node.ID, err))
	case node.Labels[signerLabel] != s.Audience:
		return refuse(protocol.CodeNameInUse, fmt.Errorf("node %s exists and is of signer %q", g.node.ID, node.Labels[signerLabel]))
	}
	return nil
}

func checkHostname(ctx context.Context, cluster Cluster, g grant) error {
	other, err := otherNode(ctx, cluster, g.node.Hostname, g.node.ID)
	if err != nil {
		return err
	}
	if other != "" {
		return refuse(protocol.CodeNameInUse, fmt.Errorf("node %s is named %s", other, g.node.Hostname))
	}
	return nil
}

// otherNode returns the id of a node of that name that is not ours, or "".
func otherNode(ctx context.Context, cluster Cluster, name, id string) (string, error) {
	nodes, err := cluster.NodesNamed(ctx, name)
	if err != nil {
		return "", unanswered(serviceTeleport, fmt.Errorf("look up nodes named %s: %w", name, err))
	}
	for _, node := range nodes {
		if node.ID != id {
			return node.ID, nil
		}
	}
	return "", nil
}
