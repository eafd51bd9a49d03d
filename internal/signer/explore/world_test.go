package explore

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
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
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

const (
	audience = "hallmark.example.com"
	second   = "second.example.com"
	account  = "111122223333"
	region   = "us-west-2"
	image    = "ami-0a1b2c3d4e5f60718"
)

func ref(n int) ec2ref.Instance {
	return ec2ref.Instance{Account: account, Region: region, ID: ec2ref.InstanceID(fmt.Sprintf("i-%017x", n))}
}

func nodeOf(n int) string { i := ref(n); return i.NodeID() }

// fixed is what all worlds share. It never changes.
type fixed struct {
	epoch time.Time
	rules *policy.Policy
	ca    ssh.Signer
	keys  map[string]ssh.Signer // by who comes with it

	making       sync.Mutex
	certificates map[string]*ssh.Certificate
	requests     map[string]entry.Request
}

func newFixed(t *testing.T) *fixed {
	t.Helper()
	f, err := makeFixed()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func makeFixed() (*fixed, error) {
	f := &fixed{
		epoch: time.Date(2026, time.January, 2, 3, 4, 5, 0, time.UTC), keys: make(map[string]ssh.Signer),
		certificates: make(map[string]*ssh.Certificate), requests: make(map[string]entry.Request),
	}
	var err error
	const text = `version: 1
rules: [{name: default, match: {image_owners: [listed], max_age: any}, teleport_hostname: {pattern: "[a-z]+"}, when_stopped: remove}]`
	f.rules, err = policy.Parse([]byte(text), policy.Limits{Accounts: []ec2ref.Account{account}, Regions: []ec2ref.Region{region}, MaxLifetime: policy.LongestLifetime})
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"ca", "1", "1 again", "2", "2 again"} {
		seed := sha256.Sum256([]byte(name))
		if f.keys[name], err = ssh.NewSignerFromSigner(ed25519.NewKeyFromSeed(seed[:])); err != nil {
			return nil, err
		}
	}
	f.ca = f.keys["ca"]
	return f, nil
}

// request returns the request of an instance with a key, for a signer.
func (f *fixed) request(n int, key, to string, purpose protocol.Purpose, now time.Time) (entry.Request, error) {
	f.making.Lock()
	defer f.making.Unlock()
	name := fmt.Sprint(n, key, to, purpose, now)
	if r, made := f.requests[name]; made {
		return r, nil
	}
	line := sshkey.Line(f.keys[key].PublicKey())
	payload, err := json.Marshal(protocol.Payload{
		Version: protocol.Version, Audience: to, IssuedAt: now, HostKeys: []string{line}, Purpose: purpose,
		IdentityDocument: base64.StdEncoding.EncodeToString([]byte(ref(n).ID)),
	})
	if err != nil {
		return entry.Request{}, err
	}
	signature, err := identity.SignBinding(f.keys[key], protocol.Bind(payload))
	if err != nil {
		return entry.Request{}, err
	}
	body, err := json.Marshal(protocol.Request{
		Payload: payload, Signatures: []string{signature},
		Caller: protocol.CallerProof{Authorization: "believed", Date: now.Format("20060102T150405Z"), SecurityToken: "token"},
	})
	f.requests[name] = entry.Request{ID: "1", Method: http.MethodPost, ContentType: "application/json", Body: body, Source: "192.0.2.1"}
	return f.requests[name], err
}

// trusting accepts documents and callers as they are. Proofs are not explored here.
type trusting struct{}

func (trusting) Verify(message []byte) (*identity.Document, error) {
	return &identity.Document{
		Instance: ec2ref.Instance{Account: account, Region: region, ID: ec2ref.InstanceID(message)}, ImageID: image,
		AvailabilityZone: region + "a", PrivateIP: "10.0.0.7",
	}, nil
}

type callers struct{}

func (callers) Verify(context.Context, protocol.CallerProof, protocol.Binding, ec2ref.Instance) error {
	return nil
}

// world is EC2, a ledger and a cluster in memory. A world with a number never changes.
type world struct {
	*fixed
	now    time.Time
	ec2    map[string]inventory.Instance
	ledger store
	nodes  map[string]node.Node
	before map[string]*node.Node // as they were before they were last written
	// certified is when the certificates that Teleport signed end.
	certified map[certificate]time.Time

	inLedger string // the ledger's text, if it is known
	inPlace  bool   // the world itself changes: its ledger cannot be copied
}

// store is a ledger.
type store interface {
	Lookup(ctx context.Context, i ec2ref.Instance) (ledger.Record, error)
	LookupAll(ctx context.Context, all []ec2ref.Instance) (map[ec2ref.Instance]ledger.Record, error)
	Claim(ctx context.Context, c ledger.Claim, now time.Time) (ledger.Grant, error)
	Complete(ctx context.Context, c ledger.Claim, g ledger.Grant, now time.Time) (ledger.Record, error)
	Announce(ctx context.Context, i ec2ref.Instance) (ledger.Record, error)
	Leave(ctx context.Context, l ledger.Leave, now time.Time) (ledger.Record, error)
	Retire(ctx context.Context, i ec2ref.Instance) error
	Permit(ctx context.Context, i ec2ref.Instance, p ledger.Permit) error
	Release(ctx context.Context, name, by string, now time.Time) (ec2ref.Instance, error)
	Expired(ctx context.Context, from string, now time.Time) (ledger.Expired, error)
	RetireExpired(ctx context.Context, i ec2ref.Instance, now time.Time) (bool, error)
}

// certificate is the content of an instance's certificate.
type certificate struct {
	instance int
	name     string
}

const (
	foreign  = "a node of nobody"
	stranger = "a node of another signer"
)

func newWorld(f *fixed) *world {
	w := &world{
		fixed: f, now: f.epoch, ec2: make(map[string]inventory.Instance), nodes: make(map[string]node.Node),
		before: make(map[string]*node.Node), certified: make(map[certificate]time.Time),
	}
	w.ledger = &ledger.Memory{Now: w.clock}
	for n := 1; n <= 2; n++ {
		id := ref(n).ID
		w.ec2[string(id)] = inventory.Instance{
			ID: id, OwnerID: account, Region: region, AvailabilityZone: region + "a", State: inventory.StateRunning,
			VPC: "vpc-1", ImageID: image, ImageOwner: account, LaunchTime: f.epoch.Add(-time.Minute), PrivateIP: "10.0.0.7",
			Tags: map[string]string{"Name": "web", "env": "prod", "TeleportHostname": "shared"},
		}
	}
	maps.Copy(w.nodes, strangers(f.epoch))
	return w
}

// strangers are nodes that no signer may touch.
func strangers(now time.Time) map[string]node.Node {
	far := now.Add(365 * 24 * time.Hour)
	return map[string]node.Node{
		foreign:  {ID: foreign, Hostname: "nobodys", Expires: far},
		stranger: {ID: stranger, Hostname: "strangers", Expires: far, Labels: map[string]string{"hallmark/signer": "stranger.example.com"}},
	}
}

func (w *world) clock() time.Time { return w.now }

// clone returns a copy to change, or the world itself if it changes in place.
func (w *world) clone() *world {
	if w.inPlace {
		w.inLedger = ""
		return w
	}
	next := *w
	next.ec2, next.nodes, next.before, next.certified = maps.Clone(w.ec2), maps.Clone(w.nodes), maps.Clone(w.before), maps.Clone(w.certified)
	copied := w.ledger.(*ledger.Memory).Clone()
	copied.Now = next.clock
	next.ledger, next.inLedger = copied, ""
	return &next
}

// text describes the whole world. Worlds with the same text are the same.
func (w *world) text() string {
	var b strings.Builder
	fmt.Fprintln(&b, w.now.Unix(), w.ledgerText())
	for _, id := range slices.Sorted(maps.Keys(w.ec2)) {
		i := w.ec2[id]
		fmt.Fprintln(&b, id, i.State, i.PrivateIP, i.Tags)
	}
	for _, id := range slices.Sorted(maps.Keys(w.nodes)) {
		fmt.Fprintln(&b, nodeText(w.nodes[id]))
	}
	for _, id := range slices.Sorted(maps.Keys(w.before)) {
		if server := w.before[id]; server != nil {
			fmt.Fprintln(&b, "before", nodeText(*server))
		} else {
			fmt.Fprintln(&b, "before", id)
		}
	}
	for n := 1; n <= 2; n++ {
		for _, name := range w.certifiedNames(n) {
			fmt.Fprintln(&b, n, name, w.certified[certificate{n, name}].Unix())
		}
	}
	return b.String()
}

// ledgerText is the ledger's text.
func (w *world) ledgerText() string {
	if text, ok := w.ledger.(fmt.Stringer); ok && w.inLedger == "" {
		w.inLedger = text.String()
	}
	return w.inLedger
}

func nodeText(n node.Node) string {
	return fmt.Sprint(n.ID, " ", n.Hostname, " ", n.Address, " ", n.Expires.UnixNano(), " ", n.Labels)
}

// certifiedNames returns the names in an instance's valid certificates.
func (w *world) certifiedNames(n int) []string {
	var names []string
	for c, end := range w.certified {
		if c.instance == n && end.After(w.now) {
			names = append(names, c.name)
		}
	}
	slices.Sort(names)
	return names
}

// advance moves the clock. Teleport drops nodes whose leases end, and its cache catches up.
func (w *world) advance(d time.Duration) {
	w.now = w.now.Add(d)
	clear(w.before)
	maps.DeleteFunc(w.nodes, func(_ string, n node.Node) bool { return !n.Expires.After(w.now) })
	maps.DeleteFunc(w.certified, func(_ certificate, end time.Time) bool { return !end.After(w.now) })
}

// hasChanged reports whether a node was written since the cache caught up.
func (w *world) hasChanged(object string) bool {
	_, changed := w.before[strings.TrimPrefix(object, "node/")]
	return changed
}

func (w *world) setTag(n int, key, value string) {
	i := w.ec2[string(ref(n).ID)]
	i.Tags = maps.Clone(i.Tags)
	i.Tags[key] = value
	w.ec2[string(i.ID)] = i
}

func (w *world) terminate(n int) { w.setState(n, inventory.StateTerminated) }

func (w *world) setState(n int, state string) {
	i := w.ec2[string(ref(n).ID)]
	i.State = state
	w.ec2[string(i.ID)] = i
}

func (w *world) isStopped(n int) bool {
	return w.ec2[string(ref(n).ID)].State == inventory.StateStopped
}

func (w *world) put(n node.Node) {
	w.remember(n.ID)
	w.nodes[n.ID] = n
}

func (w *world) remember(id string) {
	if old, there := w.nodes[id]; there {
		w.before[id] = &old
	} else {
		w.before[id] = nil
	}
}

func (w *world) record(n int) ledger.Record {
	found, err := w.ledger.Lookup(context.Background(), ref(n))
	if err != nil {
		panic(err) // it is in memory
	}
	return found
}
