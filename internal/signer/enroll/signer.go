// Package enroll decides on requests to enroll and to leave. It verifies the evidence, asks
// the policy and the ledger, registers the node and has its host keys signed, or deletes it.
//
// The order of the steps is a security property (see Enroll): a caller that has proved
// nothing causes no call to any service, and a caller with a stolen document causes one
// call to STS.
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
	"github.com/hallmark-ssh/hallmark/internal/signer/cached"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/organization"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

// DocumentVerifier verifies signed identity documents. *identity.Keyring implements it.
type DocumentVerifier interface {
	Verify(message []byte) (*identity.Document, error)
}

// CallerVerifier asks STS who signed a proof. *identity.CallerVerifier implements it; its
// errors are identity.ErrCallerProof and identity.ErrSTSUnavailable.
type CallerVerifier interface {
	Verify(ctx context.Context, proof protocol.CallerProof, b protocol.Binding, i ec2ref.Instance) error
}

// Inventory asks EC2 about an instance. *inventory.EC2 implements it; it fails with
// inventory.ErrNotFound for an instance that EC2 does not know.
type Inventory interface {
	Instance(ctx context.Context, i ec2ref.Instance) (*inventory.Instance, error)
}

// Organization returns the accounts of an AWS organization that may call. It calls no
// service but the ledger's table, and rarely: strangers cause calls of Current.
// *organization.Members implements it.
type Organization interface {
	Current(ctx context.Context) (organization.View, error)
}

// LaunchImages returns the image that an instance was launched from, even if EC2 no
// longer shows the image. *inventory.EC2 implements it; it fails with
// inventory.ErrNotFound and inventory.ErrNotPermitted.
type LaunchImages interface {
	LaunchImage(ctx context.Context, i ec2ref.Instance) (inventory.LaunchImage, error)
}

// Ledger records which instance holds which keys and names. Package ledger implements it,
// and ledgertest checks its rules.
type Ledger interface {
	Lookup(ctx context.Context, i ec2ref.Instance) (ledger.Record, error)
	Claim(ctx context.Context, c ledger.Claim, now time.Time) (ledger.Grant, error)
	Complete(ctx context.Context, c ledger.Claim, g ledger.Grant, now time.Time) (ledger.Record, error)
	Announce(ctx context.Context, i ec2ref.Instance) (ledger.Record, error)
	Leave(ctx context.Context, l ledger.Leave, now time.Time) (ledger.Record, error)
	Release(ctx context.Context, name, by string, now time.Time) (ec2ref.Instance, error)
}

// HealthLedger records what machines say about themselves. Package ledger implements it.
type HealthLedger interface {
	ReportHealth(ctx context.Context, i ec2ref.Instance, report ledger.HealthReport) (bool, error)
}

// Cluster is the Teleport cluster. *teleport.Client implements it.
type Cluster interface {
	ClusterName() string
	// ProxyName is the public host name of the proxy.
	ProxyName() string
	// Node fails with teleport.ErrNotFound.
	Node(ctx context.Context, id string) (*node.Node, error)
	// NodesNamed returns the nodes with any of the host names.
	NodesNamed(ctx context.Context, hostnames ...string) ([]node.Node, error)
	UpsertNode(ctx context.Context, n node.Node) error
	DeleteNode(ctx context.Context, id string) error
	SignHostKey(ctx context.Context, key ssh.PublicKey, principals []string, ttl time.Duration) (*ssh.Certificate, error)
	CAs(ctx context.Context) (teleport.CAs, error)
}

// Signer answers enrollment requests. All fields are required unless they say otherwise.
// It is safe for concurrent use.
type Signer struct {
	// Audience is the signer's own name. Requests must contain it.
	Audience string
	// Accounts and Regions are the deployment's lists of accounts and regions that may
	// call.
	Accounts []ec2ref.Account
	Regions  []ec2ref.Region
	// Organization lists more accounts that may call. It is optional.
	Organization Organization
	// Sources are the networks that requests may come from; empty allows all.
	Sources []netip.Prefix
	// Endpoints are the ids of the VPC endpoints that requests may come through; empty
	// allows all.
	Endpoints []string
	// RequireIAM refuses requests without an IAM caller.
	RequireIAM bool

	Documents DocumentVerifier
	Callers   CallerVerifier
	Inventory Inventory
	// LaunchImages is optional. The signer uses it if neither EC2 nor the ledger knows an
	// image. Without it, the owner of such an image stays unknown.
	LaunchImages LaunchImages
	// Policy returns the current policy. The signer calls it once per request, after the
	// proof.
	Policy func(ctx context.Context) (*policy.Policy, error)
	Ledger Ledger
	// Refusals is optional. Without it, no refused request is noted.
	Refusals Refusals
	// Connect returns the cluster with a valid login. The signer calls it after the
	// proof, so that an outage of Teleport costs an answer and not the process.
	Connect func(ctx context.Context) (Cluster, error)
	// Health is optional. Without it, the signer ignores health reports.
	Health HealthLedger

	// Log receives the audit lines (docs/audit.md). CloudWatch finds the metrics in them
	// only if the log writes JSON, outside any group.
	Log *slog.Logger
	Now func() time.Time

	healthSeen  limiter // by instance
	attempts    limiter // by instance and source
	proved      limiter // by instance
	recorded    recordedKeys
	unpermitted sync.Map // accounts whose role may not look up launch images; each is logged once
	cas         cached.Value[[]byte]
}

// now is the time without its monotonic reading. Lambda freezes the process between
// requests, and the monotonic clock stops meanwhile: a time stored by one request would
// look too recent to a later one.
func (s *Signer) now() time.Time { return s.Now().Round(0) }

// These timeouts bound each step, so that no single service uses up the whole request.
// The request's own deadline bounds them together.
const (
	stsTimeout      = 5 * time.Second
	ec2Timeout      = 8 * time.Second
	ledgerTimeout   = 3 * time.Second
	policyTimeout   = 3 * time.Second
	teleportTimeout = 8 * time.Second
	undoTimeout     = 2 * time.Second

	// requestTimeout bounds a request that has no deadline.
	requestTimeout = 25 * time.Second
	// reserve is the part of the deadline that is kept for undoing and answering: a
	// Lambda function that times out sends no answer and loses the audit line.
	reserve = undoTimeout + time.Second
)

// Enroll answers one request and writes one audit line. The steps follow the order of
// the security rules; each runs only if the one before succeeded:
//
//  1. the source of the request
//  2. shape and size, version, audience, number and size of host keys
//  3. the identity document's signature
//  4. region and account in the deployment's lists, or the account in the stored list of the
//     organization, which is read at most every few seconds for all callers together; the
//     IAM caller of the HTTP request
//  5. the time, and each host key's signature of the binding
//  6. the rate for this instance and source; if it is exceeded, whether a host key is
//     recorded, which costs one read of the ledger per minute and instance
//  7. STS confirms that the instance is calling; the rate of its proved requests
//  8. EC2 and the ledger; policy; claim; Teleport; confirm
//
// A request to leave takes the same steps up to 7, and then those of leave.
func (s *Signer) Enroll(ctx context.Context, r entry.Request) entry.Answer {
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	a := newAudit(s.Audience, r, s.now)
	response, err := s.answer(ctx, r, a)
	answer := newAnswer(response, err, r.ID, s.now())
	s.noteRefusal(ctx, a, answer.Status, err)
	a.log(ctx, s.Log, answer.Status, err)
	return answer
}

func withDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if deadline, ok := ctx.Deadline(); ok {
		return context.WithDeadline(ctx, deadline.Add(-reserve))
	}
	return context.WithTimeout(ctx, requestTimeout)
}

// answer returns what the request's purpose asks for.
func (s *Signer) answer(ctx context.Context, r entry.Request, a *audit) (any, error) {
	c, err := s.authenticate(ctx, r, a)
	switch {
	case err != nil:
		return nil, err
	case c.purpose == protocol.PurposeLeave:
		return s.leave(ctx, c, a)
	}
	return s.enroll(ctx, c, a)
}

func (s *Signer) enroll(ctx context.Context, c caller, a *audit) (*protocol.Response, error) {
	facts, options, err := s.inspect(ctx, c.document, a)
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
	response.Version, response.MetadataOptions = c.version, options
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

// decide asks the policy. Its reason for a refusal goes only to the log: what it would
// admit instead is the operator's business.
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
