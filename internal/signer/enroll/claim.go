package enroll

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// maxClaims bounds how often the signer repeats a claim without names that others hold:
// once normally, once more if another instance takes a name meanwhile, and once if the
// instance has had too many names.
const maxClaims = 4

// ask is the instance to enroll, and the policy's decision.
type ask struct {
	caller   caller
	facts    node.Facts
	decision policy.Decision
	// record is the ledger's record when the request first read it.
	record ledger.Record
}

// grant is what the ledger holds for the instance, which the certificates may contain.
type grant struct {
	claim      ledger.Claim
	held       ledger.Grant
	node       node.Node
	cluster    string
	keys       []ssh.PublicKey
	names      []string // principals other than the host name and the node's id
	principals []string
	start      time.Time
	lifetime   time.Duration
}

func newGrant(k ask, cluster Cluster, now time.Time) grant {
	instance, d := k.caller.document.Instance, k.decision
	end := now.Add(d.Lifetime)
	g := grant{
		claim: ledger.Claim{
			Instance:     instance,
			Fingerprints: sshkey.Fingerprints(k.caller.keys),
			Hostname:     d.Hostname,
			Names:        d.Names,
			Image:        k.facts.Image,
			ImageOwner:   k.facts.ImageOwner,
			ImageTags:    k.facts.ImageTags,
			// Teleport's clock sets the certificates' expiry, and hostcert.Check allows
			// this much skew. The claim must not expire before the certificates.
			ValidUntil: end.Add(hostcert.MaxClockSkew),
			IssuedAt:   k.caller.issuedAt,
			Lease:      end,
			Signer:     d.Labels[node.SignerLabel],
			Rule:       d.Rule,
			Program:    k.caller.program,
		},
		node: node.Node{
			ID:       instance.NodeID(),
			Hostname: d.Hostname,
			Address:  d.Address,
			Labels:   d.Labels,
			// If every event is lost, this lease still removes the node when the
			// certificates expire.
			Expires: end,
		},
		cluster:  cluster.ClusterName(),
		keys:     k.caller.keys,
		names:    d.Names,
		start:    now,
		lifetime: d.Lifetime,
	}
	renewed := k.record
	renewed.Renewed = now // as the confirmation of this claim notes
	g.node = g.node.WithHealth(renewed, now)
	g.principals = node.Principals(g.node.Hostname, g.node.ID, g.cluster, g.names)
	return g
}

// claim makes the ledger record keys and names for the instance. It drops names that
// others hold, in Teleport or in the ledger: another instance's name must not keep a
// machine out. It asks Teleport first, so that it never claims a name that a foreign node
// has.
func (s *Signer) claim(ctx context.Context, cluster Cluster, k ask, a *audit) (grant, error) {
	checked := make(map[string]bool)
	for attempt := 1; ; attempt++ {
		d, err := s.checkTeleport(ctx, cluster, k, checked, a)
		if err != nil {
			return grant{}, err
		}
		k.decision = d
		g, err := s.claimOnce(ctx, cluster, k, a)
		if err == nil {
			a.grant = &g
			return g, nil
		}
		released := attempt == 1 && s.releaseGone(ctx, err, a)
		next, ok := giveWay(k, err)
		if attempt == maxClaims || !ok && !released {
			return grant{}, refuseLedger(err)
		}
		if !released {
			k.decision = next
		}
	}
}

func (s *Signer) claimOnce(ctx context.Context, cluster Cluster, k ask, a *audit) (grant, error) {
	g := newGrant(k, cluster, s.now())
	err := a.step(ctx, "claim", ledgerTimeout, func(ctx context.Context) (err error) {
		g.held, err = s.Ledger.Claim(ctx, g.claim, s.now())
		return err
	})
	a.noteHolders(err)
	return g, err
}

// giveWay returns a smaller claim after a refusal, if there is one.
func giveWay(k ask, err error) (policy.Decision, bool) {
	d := k.decision
	if inUse, ok := errors.AsType[*ledger.NameInUseError](err); ok {
		return leave(d, inUse.Names())
	}
	switch {
	case errors.Is(err, ledger.ErrTooManyNames) && len(d.Names) > 0:
		// An address that changes at every start must not keep a machine out.
		return leave(d, d.Names)
	case errors.Is(err, ledger.ErrTooManyNames) && d.Hostname != string(k.caller.document.Instance.ID):
		// Nor must a tag that changes every hour. The ledger always has room for the
		// default name.
		d.Hostname, d.Fallback = string(k.caller.document.Instance.ID), ""
		return d, true
	}
	return d, false
}

// longExpired is how long ago the last certificate with a name must have expired before
// the signer asks EC2 about the holder. Sweeps normally act much earlier.
const longExpired = 14 * 24 * time.Hour

// maxAsked bounds the calls to EC2 about holders in one request.
const maxAsked = 2

// releaseGone releases names that blocked a claim if their holders are gone. Otherwise an
// instance whose event was lost and whose node's lease ended would hold its names
// forever. It reports whether it released any name. EC2 forgets an instance within an
// hour, so an unknown holder counts as gone; if it comes back, it is still enrolled and
// gets another name.
func (s *Signer) releaseGone(ctx context.Context, refusal error, a *audit) bool {
	inUse, ok := errors.AsType[*ledger.NameInUseError](refusal)
	if !ok {
		return false
	}
	released, asked := false, 0
	for _, held := range inUse.Held {
		if s.now().Sub(held.ValidUntil) < longExpired || asked == maxAsked {
			continue
		}
		asked++
		if !s.isGone(ctx, held.Holder, a) {
			continue
		}
		err := a.step(ctx, "claim", ledgerTimeout, func(ctx context.Context) error {
			_, err := s.Ledger.Release(ctx, held.Name, releasedBySigner, s.now())
			return err
		})
		if err == nil {
			released = true
			a.noteReleased(held)
		}
	}
	return released
}

// releasedBySigner is what the ledger stores in place of an operator's name.
const releasedBySigner = "the signer: EC2 does not have the holder"

// isGone reports whether EC2 says that an instance is gone. An error does not say so.
func (s *Signer) isGone(ctx context.Context, i ec2ref.Instance, a *audit) bool {
	if !slices.Contains(s.Regions, i.Region) {
		return false
	}
	if members, err := s.members(ctx, a); !slices.Contains(s.Accounts, i.Account) && (err != nil || !members.Has(i.Account)) {
		return false
	}
	var found *inventory.Instance
	err := a.step(ctx, "ec2", ec2Timeout, func(ctx context.Context) (err error) {
		found, err = s.Inventory.Instance(ctx, i)
		return err
	})
	if err != nil {
		return errors.Is(err, inventory.ErrNotFound)
	}
	return found.State == inventory.StateTerminated
}

// leave returns the decision without the taken names, if another host name is left, and
// whether that changes anything.
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
		return refuse(protocol.CodeNameInUse, err).withMessage("the instance has had too many names; ask the signer's operator")
	case errors.Is(err, ledger.ErrOtherSigner):
		return refuse(protocol.CodeNameInUse, err).withMessage("another signer enrolled the instance; enroll with that signer, or wait until its certificates expire")
	case errors.Is(err, ledger.ErrRetired):
		return refuse(protocol.CodeInstanceEnded, err)
	case errors.Is(err, ledger.ErrLeft):
		return refuse(protocol.CodeNotEnrolled, err).withMessage("the instance left while it enrolled")
	}
	return unanswered(serviceLedger, err)
}

// checkTeleport checks the node's id and the decision's names concurrently, and returns
// the decision without the names of other nodes.
func (s *Signer) checkTeleport(ctx context.Context, cluster Cluster, k ask, checked map[string]bool, a *audit) (policy.Decision, error) {
	group, ctx := errgroup.WithContext(ctx)
	if len(checked) == 0 {
		group.Go(func() error { return s.checkNode(ctx, cluster, k, a) })
	}
	d, err := s.leaveForeign(ctx, cluster, k, checked, a)
	if refusal := group.Wait(); refusal != nil {
		return d, refusal
	}
	return d, err
}

// checkNode refuses a node id that another program uses. It checks until a claim is
// confirmed, and again when the instance is renamed or had no node. An old record without a signer does
// not prove who wrote the node either.
func (s *Signer) checkNode(ctx context.Context, cluster Cluster, k ask, a *audit) error {
	if k.keepsHostname(s.now()) && k.record.Signer != "" {
		return nil
	}
	i := k.caller.document
	id := i.Instance.NodeID()
	var n *node.Node
	err := a.step(ctx, "lookup", teleportTimeout, func(ctx context.Context) (err error) {
		n, err = cluster.Node(ctx, id)
		return err
	})
	switch {
	case errors.Is(err, teleport.ErrNotFound):
		return nil
	case err != nil:
		return unanswered(serviceTeleport, fmt.Errorf("look up node %s: %w", id, err))
	case n.Signer() != s.Audience:
		return refuse(protocol.CodeNameInUse, fmt.Errorf("node %s exists and belongs to signer %q", id, n.Signer()))
	}
	return nil
}

func (k ask) deciding(d policy.Decision) ask {
	k.decision = d
	return k
}

// keepsHostname reports whether the instance keeps the host name of its last confirmed
// claim, which it still holds. A failed attempt proves nothing. While the instance had no
// node, because it left or the node's lease expired, another program's node may have got the
// name.
func (k ask) keepsHostname(now time.Time) bool {
	r := k.record
	return r.ConfirmedHostname == k.decision.Hostname && !r.ValidUntil.IsZero() && node.Lease(r).After(now) && !r.Left
}

// leaveForeign returns the decision without the names of other nodes in Teleport, which
// may be older than the ledger or written by other programs. Teleport routes to the node
// with the latest expiry, so sharing a host name would take it away from the other node.
// It asks once about each name, but not about the current host name. The ledger does not
// record that the other names were once free.
func (s *Signer) leaveForeign(ctx context.Context, cluster Cluster, k ask, checked map[string]bool, a *audit) (policy.Decision, error) {
	d := k.decision
	for {
		taken, err := s.foreign(ctx, cluster, k.deciding(d), checked, a)
		if err != nil || len(taken) == 0 {
			return d, err
		}
		maps.Copy(a.heldBy, taken)
		next, ok := leave(d, slices.Collect(maps.Keys(taken)))
		if !ok {
			return d, refuse(protocol.CodeNameInUse, fmt.Errorf("%s is named %s", taken[d.Hostname], d.Hostname))
		}
		d = next
	}
}

// foreign returns the decision's names that another node has, with those nodes. It
// compares host names with and without the cluster's name after them, because the
// certificate has both.
func (s *Signer) foreign(ctx context.Context, cluster Cluster, k ask, checked map[string]bool, a *audit) (map[string]string, error) {
	d, i := k.decision, k.caller.document
	wanted := make(map[string]string) // a node's possible name in lower case, to the instance's own name
	var spelled []string
	want := func(name, own string) {
		if !checked[own] {
			wanted[strings.ToLower(name)] = own
			spelled = append(spelled, name) // a cluster's name may have capital letters
		}
	}
	for _, name := range d.Names {
		want(name, name)
	}
	if !k.keepsHostname(s.now()) {
		want(d.Hostname, d.Hostname)
		want(d.Hostname+"."+cluster.ClusterName(), d.Hostname)
	}
	if len(wanted) == 0 {
		return nil, nil
	}
	var nodes []node.Node
	err := a.step(ctx, "lookup", teleportTimeout, func(ctx context.Context) (err error) {
		nodes, err = cluster.NodesNamed(ctx, slices.Compact(slices.Sorted(slices.Values(spelled)))...)
		return err
	})
	if err != nil {
		return nil, unanswered(serviceTeleport, fmt.Errorf("look up nodes by name: %w", err))
	}
	for _, name := range wanted {
		checked[name] = true
	}
	taken := make(map[string]string)
	for _, n := range nodes {
		name, own := wanted[strings.ToLower(n.Hostname)]
		if own && n.ID != i.Instance.NodeID() {
			taken[name] = "node " + n.ID
		}
	}
	return taken, nil
}
