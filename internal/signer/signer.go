// Package signer decides on enrollment requests. It believes nothing before it is
// proved, asks the policy and the ledger, and then registers the node and has its
// host keys signed.
//
// The order of the steps is a security property (see Enroll): a caller who has
// proved nothing costs no call to anything, and one who holds a stolen document
// costs one call to STS.
package signer

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/inventory"
	"github.com/hallmark-ssh/hallmark/internal/ledger"
	"github.com/hallmark-ssh/hallmark/internal/policy"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/teleport"
)

// DocumentVerifier verifies signed identity documents. *identity.Keyring is one.
type DocumentVerifier interface {
	Verify(message []byte) (*identity.Document, error)
}

// CallerVerifier asks STS who signed a proof. *identity.CallerVerifier is one;
// its errors are identity.ErrCallerProof and identity.ErrSTSUnavailable.
type CallerVerifier interface {
	Verify(ctx context.Context, proof protocol.CallerProof, b protocol.Binding, region, account, instanceID string) error
}

// Inventory tells what EC2 knows of an instance. *inventory.EC2 is one; it fails
// with inventory.ErrNotFound for an instance that EC2 does not know.
type Inventory interface {
	Instance(ctx context.Context, region, id string) (*inventory.Instance, error)
}

// Ledger remembers who holds which key and name. Package ledger has one, and
// ledgertest says what each must do.
type Ledger interface {
	Claim(ctx context.Context, c ledger.Claim, now time.Time) (ledger.Grant, error)
	Confirm(ctx context.Context, c ledger.Claim, g ledger.Grant) error
}

// Cluster is the Teleport cluster. *teleport.Client is one.
type Cluster interface {
	ClusterName() string
	// ProxyName is the public host name of the proxy.
	ProxyName() string
	// Node fails with teleport.ErrNotFound.
	Node(ctx context.Context, id string) (*teleport.Node, error)
	NodesNamed(ctx context.Context, hostname string) ([]teleport.Node, error)
	UpsertNode(ctx context.Context, node teleport.Node) error
	DeleteNode(ctx context.Context, id string) error
	SignHostKey(ctx context.Context, key ssh.PublicKey, principals []string, ttl time.Duration) (*ssh.Certificate, error)
	CAs(ctx context.Context) (teleport.CAs, error)
}

// Signer answers enrollment requests. All fields are required. It may be used by
// several goroutines at once.
type Signer struct {
	// Audience is the signer's own name, which requests must be addressed to.
	Audience string
	// Accounts and Regions are the deployment's lists of who may call.
	Accounts []string
	Regions  []string

	Documents DocumentVerifier
	Callers   CallerVerifier
	Inventory Inventory
	Policy    *policy.Policy
	Ledger    Ledger
	// Connect returns the cluster, logged in. It is called once a caller is proved,
	// so that a Teleport that is down costs an answer and not the process.
	Connect func(ctx context.Context) (Cluster, error)

	Log *slog.Logger
	Now func() time.Time
}

// How long each step may take, so that no one upstream uses up the whole request.
// The request's own deadline bounds them together.
const (
	stsTimeout      = 5 * time.Second
	ec2Timeout      = 8 * time.Second
	ledgerTimeout   = 3 * time.Second
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
//  1. shape and size, version, audience, number and size of host keys
//  2. the identity document's signature
//  3. account and region in the deployment's lists
//  4. the time, and each host key's signature of the binding
//  5. STS: is it that instance that calls
//  6. EC2, policy, ledger, Teleport
func (s *Signer) Enroll(ctx context.Context, r Request) Answer {
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	a := &audit{now: s.Now, request: r, start: s.Now()}
	response, err := s.enroll(ctx, r, a)
	answer := newAnswer(response, err, r.ID, s.Now())
	a.log(ctx, s.Log, answer.Status, err)
	return answer
}

func withDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if deadline, ok := ctx.Deadline(); ok {
		return context.WithDeadline(ctx, deadline.Add(-reserve))
	}
	return context.WithTimeout(ctx, requestTimeout)
}

func (s *Signer) enroll(ctx context.Context, r Request, a *audit) (*protocol.Response, error) {
	c, err := s.believe(ctx, r, a)
	if err != nil {
		return nil, err
	}
	instance, err := s.inspect(ctx, c.document, a)
	if err != nil {
		return nil, err
	}
	cluster, err := s.connect(ctx, a)
	if err != nil {
		return nil, err
	}
	decision, err := s.decide(instance, c.document, cluster, a)
	if err != nil {
		return nil, err
	}
	return s.issue(ctx, cluster, newGrant(c, decision, cluster, s.Now()), a)
}

// inspect asks EC2 about the instance and compares the answer with the document.
func (s *Signer) inspect(ctx context.Context, d *identity.Document, a *audit) (*inventory.Instance, error) {
	var instance *inventory.Instance
	err := a.step(ctx, "ec2", ec2Timeout, func(ctx context.Context) (err error) {
		instance, err = s.Inventory.Instance(ctx, d.Region, d.InstanceID)
		return err
	})
	if err != nil {
		return nil, refuseInventory(err)
	}
	if err := checkInstance(instance, d); err != nil {
		return nil, err
	}
	return instance, nil
}

func (s *Signer) connect(ctx context.Context, a *audit) (Cluster, error) {
	var cluster Cluster
	err := a.step(ctx, "connect", teleportTimeout, func(ctx context.Context) (err error) {
		cluster, err = s.Connect(ctx)
		return err
	})
	if err != nil {
		return nil, refuse(protocol.CodeUpstream, err)
	}
	return cluster, nil
}

func (s *Signer) decide(i *inventory.Instance, d *identity.Document, cluster Cluster, a *audit) (policy.Decision, error) {
	a.policy = s.Policy.SHA256
	decision, err := s.Policy.Decide(policyFacts(i, d), policy.Cluster{
		Name:   cluster.ClusterName(),
		Proxy:  cluster.ProxyName(),
		Signer: s.Audience,
	})
	if err != nil {
		// Why is for the log alone: what would be admitted instead is the operator's
		// business.
		return decision, refuse(protocol.CodePolicyRefused, err)
	}
	a.decision = decision
	return decision, nil
}
