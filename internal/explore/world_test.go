package explore

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/fleet"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/inventory"
	"github.com/hallmark-ssh/hallmark/internal/ledger"
	"github.com/hallmark-ssh/hallmark/internal/memo"
	"github.com/hallmark-ssh/hallmark/internal/policy"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer"
	"github.com/hallmark-ssh/hallmark/internal/teleport"
)

const (
	audience = "hallmark.example.com"
	second   = "second.example.com"
	account  = "111122223333"
	region   = "us-west-2"
	image    = "ami-0a1b2c3d4e5f60718"
)

func ref(n int) ledger.Instance {
	return ledger.Instance{Account: account, Region: region, ID: fmt.Sprintf("i-%017x", n)}
}

func nodeOf(n int) string { i := ref(n); return protocol.NodeID(i.Account, i.Region, i.ID) }

// fixed is what all worlds share: nothing of it changes.
type fixed struct {
	now   time.Time
	rules *policy.Policy
	ca    ssh.Signer
	keys  map[string]ssh.Signer // by who comes with it

	making       sync.Mutex
	certificates map[string]*ssh.Certificate
	requests     map[string]signer.Request
}

func newFixed() (*fixed, error) {
	f := &fixed{
		now: time.Now().Truncate(time.Second).UTC(), keys: make(map[string]ssh.Signer),
		certificates: make(map[string]*ssh.Certificate), requests: make(map[string]signer.Request),
	}
	var err error
	const text = `version: 1
rules: [{name: default, match: {image_owners: [listed], max_age: 24h}, teleport_hostname: {pattern: "[a-z]+"}}]`
	f.rules, err = policy.Parse([]byte(text), policy.Limits{Accounts: []string{account}, Regions: []string{region}, MaxLifetime: policy.LongestLifetime})
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"ca", "1", "1 again", "2"} {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		if f.keys[name], err = ssh.NewSignerFromSigner(private); err != nil {
			return nil, err
		}
	}
	f.ca = f.keys["ca"]
	return f, nil
}

// request returns what an instance sends with a key, to a signer.
func (f *fixed) request(n int, key, to string) (signer.Request, error) {
	f.making.Lock()
	defer f.making.Unlock()
	name := fmt.Sprint(n, key, to)
	if r, made := f.requests[name]; made {
		return r, nil
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(f.keys[key].PublicKey())))
	payload, err := json.Marshal(protocol.Payload{
		Version: protocol.Version, Audience: to, IssuedAt: f.now, HostKeys: []string{line},
		IdentityDocument: base64.StdEncoding.EncodeToString([]byte(ref(n).ID)),
	})
	if err != nil {
		return signer.Request{}, err
	}
	signature, err := identity.SignBinding(f.keys[key], protocol.Bind(payload))
	if err != nil {
		return signer.Request{}, err
	}
	body, err := json.Marshal(protocol.Request{
		Payload: payload, Signatures: []string{signature},
		Caller: protocol.CallerProof{Authorization: "believed", Date: f.now.Format("20060102T150405Z"), SecurityToken: "token"},
	})
	f.requests[name] = signer.Request{ID: "1", Method: http.MethodPost, ContentType: "application/json", Body: body, Source: "192.0.2.1"}
	return f.requests[name], err
}

// believing takes documents and callers for what they say: the proofs are not what is
// explored.
type believing struct{}

func (believing) Verify(message []byte) (*identity.Document, error) {
	return &identity.Document{
		AccountID: account, Region: region, InstanceID: string(message), ImageID: image,
		AvailabilityZone: region + "a", PrivateIP: "10.0.0.7",
	}, nil
}

type callers struct{}

func (callers) Verify(context.Context, protocol.CallerProof, protocol.Binding, string, string, string) error {
	return nil
}

// world is EC2, a ledger and a cluster, in memory.
type world struct {
	*fixed
	scheduler
	ec2    map[string]inventory.Instance
	ledger ledger.Memory
	nodes  map[string]teleport.Node
}

const foreign = "a node of nobody"

func newWorld(f *fixed) *world {
	w := &world{fixed: f, ec2: make(map[string]inventory.Instance), nodes: make(map[string]teleport.Node)}
	for n := 1; n <= 2; n++ {
		id := ref(n).ID
		w.ec2[id] = inventory.Instance{
			ID: id, OwnerID: account, Region: region, AvailabilityZone: region + "a", State: inventory.StateRunning,
			VPC: "vpc-1", ImageID: image, ImageOwner: account, LaunchTime: f.now.Add(-time.Minute), PrivateIP: "10.0.0.7",
			Tags: map[string]string{"Name": "web", "env": "prod", "TeleportHostname": "shared"},
		}
	}
	w.nodes[foreign] = teleport.Node{ID: foreign, Hostname: "nobodys", Expires: f.now.Add(time.Hour)}
	return w
}

func (w *world) clock() time.Time { return w.now }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// signerFor returns the real signer, whose calls are those of the operation.
func (o *operation) signerFor(name string) *signer.Signer {
	return &signer.Signer{
		Audience: name, Accounts: []string{account}, Regions: []string{region},
		Documents: believing{}, Callers: callers{}, Inventory: ec2{o}, Ledger: records{o},
		Policy:  func(context.Context) (*policy.Policy, error) { return o.world.rules, nil },
		Connect: func(context.Context) (signer.Cluster, error) { return cluster{o}, nil },
		Log:     quiet(), Now: o.world.clock,
	}
}

func (o *operation) fleet() *fleet.Fleet {
	return &fleet.Fleet{
		Audience: audience, Accounts: []string{account}, Regions: []string{region}, Inventory: ec2{o}, Ledger: records{o},
		Missing: new(memo.Memory), // no instance is ever missing here
		Policy:  func(context.Context) (*policy.Policy, error) { return o.world.rules, nil },
		Connect: func(context.Context) (fleet.Cluster, error) { return cluster{o}, nil },
		Log:     quiet(), Now: o.world.clock,
	}
}

func reads(objects ...string) []use  { return uses(false, objects) }
func writes(objects ...string) []use { return uses(true, objects) }

func uses(write bool, objects []string) []use {
	list := make([]use, len(objects))
	for n, object := range objects {
		list[n] = use{object, write}
	}
	return list
}

// change is a change of EC2's own.
func (o *operation) change(n int, what string, change func(*inventory.Instance)) error {
	return o.at("EC2: "+what, writes("ec2/"+ref(n).ID), func() error {
		i := o.world.ec2[ref(n).ID]
		i.Tags = maps.Clone(i.Tags)
		change(&i)
		o.world.ec2[i.ID] = i
		return nil
	})
}

type ec2 struct{ *operation }

func (e ec2) Instance(_ context.Context, _, _, id string) (*inventory.Instance, error) {
	var found inventory.Instance
	err := e.at("DescribeInstances "+id, reads("ec2/"+id), func() error { found = e.world.ec2[id]; return nil })
	return &found, err
}

func (e ec2) Instances(_ context.Context, _, _ string, ids []string) (map[string]*inventory.Instance, error) {
	found := make(map[string]*inventory.Instance)
	var objects []string
	for _, id := range ids {
		objects = append(objects, "ec2/"+id)
	}
	err := e.at(fmt.Sprint("DescribeInstances ", ids), reads(objects...), func() error {
		for _, id := range ids {
			i := e.world.ec2[id]
			found[id] = &i
		}
		return nil
	})
	return found, err
}

func (e ec2) All(context.Context, string, string) (map[string]*inventory.Instance, error) {
	found := make(map[string]*inventory.Instance)
	err := e.at("DescribeInstances", reads("ec2/"+ref(1).ID, "ec2/"+ref(2).ID), func() error {
		for id, i := range e.world.ec2 {
			found[id] = &i
		}
		return nil
	})
	return found, err
}

// CheckAccount passes: whose credentials these are does not change meanwhile.
func (ec2) CheckAccount(context.Context, string) error { return nil }

type records struct{ *operation }

func (r records) Lookup(ctx context.Context, i ledger.Instance) (found ledger.Record, err error) {
	err = r.at("Lookup "+i.ID, reads("record/"+i.ID), func() (err error) { found, err = r.world.ledger.Lookup(ctx, i); return err })
	return found, err
}

func (r records) LookupAll(ctx context.Context, all []ledger.Instance) (found map[ledger.Instance]ledger.Record, err error) {
	err = r.at("LookupAll", reads("record/"+ref(1).ID, "record/"+ref(2).ID), func() (err error) {
		found, err = r.world.ledger.LookupAll(ctx, all)
		return err
	})
	return found, err
}

// Claim decides on the holders' records too.
func (r records) Claim(ctx context.Context, c ledger.Claim, now time.Time) (g ledger.Grant, err error) {
	err = r.at("Claim "+c.Instance.ID, writes("record/"+ref(1).ID, "record/"+ref(2).ID), func() (err error) {
		g, err = r.world.ledger.Claim(ctx, c, now)
		return err
	})
	return g, err
}

func (r records) Complete(ctx context.Context, c ledger.Claim, g ledger.Grant) (done ledger.Record, err error) {
	err = r.at("Complete "+c.Instance.ID, writes("record/"+c.Instance.ID), func() (err error) {
		done, err = r.world.ledger.Complete(ctx, c, g)
		return err
	})
	return done, err
}

func (r records) Announce(ctx context.Context, i ledger.Instance) (found ledger.Record, err error) {
	err = r.at("Announce "+i.ID, writes("record/"+i.ID), func() (err error) {
		found, err = r.world.ledger.Announce(ctx, i)
		return err
	})
	return found, err
}

func (r records) End(ctx context.Context, i ledger.Instance) error {
	return r.at("End "+i.ID, writes("record/"+i.ID), func() error { return r.world.ledger.End(ctx, i) })
}

func (r records) Permit(ctx context.Context, i ledger.Instance, p ledger.Permit) error {
	return r.at("Permit "+i.ID, writes("record/"+i.ID), func() error { return r.world.ledger.Permit(ctx, i, p) })
}

func (r records) Release(ctx context.Context, name, by string, now time.Time) (holder ledger.Instance, err error) {
	err = r.at("Release "+name, writes("record/"+ref(1).ID, "record/"+ref(2).ID), func() (err error) {
		holder, err = r.world.ledger.Release(ctx, name, by, now)
		return err
	})
	return holder, err
}

type cluster struct{ *operation }

func (cluster) ClusterName() string { return "teleport.example.com" }
func (cluster) ProxyName() string   { return "proxy.example.com" }

func (c cluster) Node(_ context.Context, id string) (*teleport.Node, error) {
	var found teleport.Node
	err := c.at("Node "+id, reads("node/"+id), func() error {
		var ok bool
		if found, ok = c.world.nodes[id]; !ok {
			return teleport.ErrNotFound
		}
		return nil
	})
	return &found, err
}

func (c cluster) list(name string, want func(teleport.Node) bool) ([]teleport.Node, error) {
	var found []teleport.Node
	err := c.at(name, reads("node/"+nodeOf(1), "node/"+nodeOf(2), "node/"+foreign), func() error {
		for _, id := range []string{nodeOf(1), nodeOf(2), foreign} {
			if node, ok := c.world.nodes[id]; ok && want(node) {
				found = append(found, node)
			}
		}
		return nil
	})
	return found, err
}

func (c cluster) NodesNamed(_ context.Context, hostnames ...string) ([]teleport.Node, error) {
	return c.list(fmt.Sprint("NodesNamed ", hostnames), func(n teleport.Node) bool {
		for _, name := range hostnames {
			if n.Hostname == name {
				return true
			}
		}
		return false
	})
}

func (c cluster) NodesWith(_ context.Context, labels map[string]string) ([]teleport.Node, error) {
	return c.list("NodesWith", func(n teleport.Node) bool { return n.Labels["hallmark/signer"] == labels["hallmark/signer"] })
}

func (c cluster) UpsertNode(_ context.Context, node teleport.Node) error {
	return c.at("UpsertNode "+node.ID, writes("node/"+node.ID), func() error { c.world.nodes[node.ID] = node; return nil })
}

func (c cluster) DeleteNode(_ context.Context, id string) error {
	return c.at("DeleteNode "+id, writes("node/"+id), func() error {
		if _, ok := c.world.nodes[id]; !ok {
			return teleport.ErrNotFound
		}
		delete(c.world.nodes, id)
		return nil
	})
}

func (c cluster) SignHostKey(_ context.Context, key ssh.PublicKey, principals []string, ttl time.Duration) (cert *ssh.Certificate, err error) {
	err = c.at("SignHostKey", nil, func() error {
		cert, err = c.world.certify(key, principals, ttl)
		return err
	})
	return cert, err
}

func (c cluster) CAs(context.Context) (teleport.CAs, error) {
	ca := []ssh.PublicKey{c.world.ca.PublicKey()}
	return teleport.CAs{OpenSSH: ca, Host: ca}, c.at("CAs", nil, func() error { return nil })
}

func (f *fixed) certify(key ssh.PublicKey, principals []string, ttl time.Duration) (*ssh.Certificate, error) {
	f.making.Lock()
	defer f.making.Unlock()
	name := ssh.FingerprintSHA256(key) + strings.Join(principals, " ")
	if c, made := f.certificates[name]; made {
		return c, nil
	}
	c := &ssh.Certificate{
		Key: key, CertType: ssh.HostCert, ValidPrincipals: principals,
		ValidAfter:  uint64(f.now.Add(-time.Minute).Unix()), //nolint:gosec // after 1970
		ValidBefore: uint64(f.now.Add(ttl).Unix()),          //nolint:gosec // after 1970
		Permissions: ssh.Permissions{Extensions: map[string]string{"x-teleport-role": "ProvisionToken"}},
	}
	if err := c.SignCert(rand.Reader, f.ca); err != nil {
		return nil, err
	}
	f.certificates[name] = c
	return c, nil
}
