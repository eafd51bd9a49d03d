// Package enroll decides on enrollment requests. It believes nothing before it is
// proved, asks the policy and the ledger, and then registers the node and has its
// host keys signed.
//
// The order of the steps is a security property (see Enroll): a caller who has
// proved nothing costs no call to anything, and one who holds a stolen document
// costs one call to STS.
package enroll

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

// DocumentVerifier verifies signed identity documents. *identity.Keyring is one.
type DocumentVerifier interface {
	Verify(message []byte) (*identity.Document, error)
}

// CallerVerifier asks STS who signed a proof. *identity.CallerVerifier is one;
// its errors are identity.ErrCallerProof and identity.ErrSTSUnavailable.
type CallerVerifier interface {
	Verify(ctx context.Context, proof protocol.CallerProof, b protocol.Binding, i ec2ref.Instance) error
}

// Inventory tells what EC2 knows of an instance. *inventory.EC2 is one; it fails
// with inventory.ErrNotFound for an instance that EC2 does not know.
type Inventory interface {
	Instance(ctx context.Context, i ec2ref.Instance) (*inventory.Instance, error)
}

// LaunchImages tells which image an instance was launched from, also one that EC2 shows no
// more. *inventory.EC2 is one; it fails with inventory.ErrNotFound and
// inventory.ErrNotPermitted.
type LaunchImages interface {
	LaunchImage(ctx context.Context, i ec2ref.Instance) (inventory.LaunchImage, error)
}

// Ledger remembers who holds which key and name. Package ledger has one, and
// ledgertest says what each must do.
type Ledger interface {
	Lookup(ctx context.Context, i ec2ref.Instance) (ledger.Record, error)
	Claim(ctx context.Context, c ledger.Claim, now time.Time) (ledger.Grant, error)
	Complete(ctx context.Context, c ledger.Claim, g ledger.Grant, now time.Time) (ledger.Record, error)
	Announce(ctx context.Context, i ec2ref.Instance) (ledger.Record, error)
	Release(ctx context.Context, name, by string, now time.Time) (ec2ref.Instance, error)
}

// Cluster is the Teleport cluster. *teleport.Client is one.
type Cluster interface {
	ClusterName() string
	// ProxyName is the public host name of the proxy.
	ProxyName() string
	// Node fails with teleport.ErrNotFound.
	Node(ctx context.Context, id string) (*teleport.Node, error)
	// NodesNamed returns the nodes that have any of the host names.
	NodesNamed(ctx context.Context, hostnames ...string) ([]teleport.Node, error)
	UpsertNode(ctx context.Context, node teleport.Node) error
	DeleteNode(ctx context.Context, id string) error
	SignHostKey(ctx context.Context, key ssh.PublicKey, principals []string, ttl time.Duration) (*ssh.Certificate, error)
	CAs(ctx context.Context) (teleport.CAs, error)
}

// Signer answers enrollment requests. All fields are required, unless they say
// otherwise. It may be used by several goroutines at once.
type Signer struct {
	// Audience is the signer's own name, which requests must be addressed to.
	Audience string
	// Accounts and Regions are the deployment's lists of who may call.
	Accounts []ec2ref.Account
	Regions  []ec2ref.Region
	// Sources are the networks that requests may come from; without any, all may.
	Sources []netip.Prefix
	// Endpoints are the ids of the VPC endpoints that requests may come through; without
	// any, all may.
	Endpoints []string
	// RequireIAM refuses requests that carry no IAM caller.
	RequireIAM bool

	Documents DocumentVerifier
	Callers   CallerVerifier
	Inventory Inventory
	// LaunchImages is asked where EC2 does not show an image and the ledger does not
	// remember it. Without it, such an image's owner is not known.
	LaunchImages LaunchImages
	// Policy returns the policy in force. It is asked once for each request that is
	// proved.
	Policy func(ctx context.Context) (*policy.Policy, error)
	Ledger Ledger
	// Connect returns the cluster, logged in. It is called once a caller is proved,
	// so that a Teleport that is down costs an answer and not the process.
	Connect func(ctx context.Context) (Cluster, error)

	// Log gets the audit lines (docs/audit.md). For CloudWatch to find the metrics in
	// them, it writes JSON, outside any group.
	Log *slog.Logger
	Now func() time.Time

	attempts    limiter // by instance and source
	proved      limiter // by instance
	recorded    recordedKeys
	unpermitted sync.Map // accounts whose role may not tell launch images: each is logged once
	cas         caCache
}

// now is the time without its monotonic reading. Lambda freezes the process between
// requests and the monotonic clock stands still meanwhile, so that a time stored by one
// request would seem too young to a later one.
func (s *Signer) now() time.Time { return s.Now().Round(0) }

// How long each step may take, so that no one upstream uses up the whole request.
// The request's own deadline bounds them together.
const (
	stsTimeout      = 5 * time.Second
	ec2Timeout      = 8 * time.Second
	ledgerTimeout   = 3 * time.Second
	policyTimeout   = 3 * time.Second
	teleportTimeout = 8 * time.Second
	undoTimeout     = 2 * time.Second

	// requestTimeout bounds a request that comes without a deadline.
	requestTimeout = 25 * time.Second
	// reserve is kept of a deadline for undoing and answering: a Lambda that runs
	// into its timeout answers nothing and loses the audit line.
	reserve = undoTimeout + time.Second
)

// Enroll answers one request and writes one audit line. The steps stand in the
// order of the security rules, each only after the one before:
//
//  1. where the request comes from
//  2. shape and size, version, audience, number and size of host keys
//  3. the identity document's signature
//  4. account and region in the deployment's lists; who signed the HTTP request
//  5. the time, and each host key's signature of the binding
//  6. how often that instance was asked for from there; if too often, whether a
//     host key is recorded, which the ledger is asked once a minute and instance
//  7. STS: is it that instance that calls, and how often it did
//  8. EC2, and what the ledger knows; policy; claim; Teleport; confirm
func (s *Signer) Enroll(ctx context.Context, r entry.Request) entry.Answer {
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	a := newAudit(s.Audience, r, s.now)
	response, err := s.enroll(ctx, r, a)
	answer := newAnswer(response, err, r.ID, s.now())
	a.log(ctx, s.Log, answer.Status, err)
	return answer
}

func withDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if deadline, ok := ctx.Deadline(); ok {
		return context.WithDeadline(ctx, deadline.Add(-reserve))
	}
	return context.WithTimeout(ctx, requestTimeout)
}

func (s *Signer) enroll(ctx context.Context, r entry.Request, a *audit) (*protocol.Response, error) {
	c, err := s.authenticate(ctx, r, a)
	if err != nil {
		return nil, err
	}
	facts, err := s.inspect(ctx, c.document, a)
	if err != nil {
		return nil, err
	}
	cluster, err := s.connect(ctx, a)
	if err != nil {
		return nil, err
	}
	decision, err := s.decide(ctx, facts, cluster, a)
	if err != nil {
		return nil, err
	}
	grant, err := s.claim(ctx, cluster, ask{c, facts, decision, a.record}, a)
	if err != nil {
		return nil, err
	}
	response, err := s.issue(ctx, cluster, grant, a)
	if err != nil {
		return nil, err
	}
	response.Version = c.version
	return response, nil
}

func (s *Signer) connect(ctx context.Context, a *audit) (Cluster, error) {
	var cluster Cluster
	err := a.step(ctx, "connect", teleportTimeout, func(ctx context.Context) (err error) {
		cluster, err = s.Connect(ctx)
		return err
	})
	if err != nil {
		return nil, unanswered(serviceTeleport, err)
	}
	return cluster, nil
}

// decide asks the policy. What it says to a refused instance is for the log alone:
// what would be admitted instead is the operator's business.
func (s *Signer) decide(ctx context.Context, facts node.Facts, cluster Cluster, a *audit) (policy.Decision, error) {
	var rules *policy.Policy
	err := a.step(ctx, "policy", policyTimeout, func(ctx context.Context) (err error) {
		rules, err = s.Policy(ctx)
		return err
	})
	if err != nil {
		return policy.Decision{}, refuse(protocol.CodeUpstream, err)
	}
	a.policy = rules.SHA256
	decision, err := rules.Decide(facts, node.Cluster{
		Name:   cluster.ClusterName(),
		Proxy:  cluster.ProxyName(),
		Signer: s.Audience,
	}, s.now())
	if err != nil {
		return policy.Decision{}, refuse(protocol.CodePolicyRefused, err)
	}
	a.decision = decision
	return decision, nil
}
