package enroll

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/identity/identitytest"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry/entrytest"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

const (
	testAudience = "hallmark.example.com"
	testEndpoint = "vpce-0a1b2c3d4e5f60718"
	testRegion   = "hm-test-1"
	testAccount  = "111122223333"
	testInstance = "i-0a1b2c3d4e5f60718"
	testImage    = "ami-0a1b2c3d4e5f60718"
	testOwner    = "444455556666" // of the image; listed too
	testCluster  = "teleport.example.com"
	testHostname = "web-" + testInstance
	testSecret   = "FwoGZXIvYXdzE-secret-token"
)

// Generating the regions' keys takes a while, and no test changes them.
var regions = sync.OnceValue(func() map[string]*identitytest.Region {
	made := make(map[string]*identitytest.Region)
	for _, name := range []string{testRegion, "hm-test-2", "hm-test-3"} {
		region, err := identitytest.NewRegion(name)
		if err != nil {
			panic(err)
		}
		made[name] = region
	}
	return made
})

// world is a signer and everything that it calls, as fakes, with a record of each call.
type world struct {
	t      testing.TB
	now    time.Time
	signer *Signer
	log    bytes.Buffer
	// entry is how the attempts arrive; without one, they are not turned into events.
	entry entry.Kind

	mu    sync.Mutex
	calls []string
	// askedSTS counts the calls to STS; no test resets it.
	askedSTS int

	ledger    ledger.Memory
	instance  inventory.Instance
	others    map[string]string // the states of other instances, by id, or ec2Fails
	stsErr    error
	ec2Err    error
	lookupErr error
	lookups   *int // counts the reads of records, if set
	claimErr  error
	claimed   []ledger.Claim             // every claim, including refused ones
	onClaim   func(c ledger.Claim) error // refuses a claim
	beforeOK  func()                     // runs before a claim is confirmed
	dialErr   error
	nodes     map[string]node.Node
	nodeErr   error
	upsertErr error
	deleteErr error
	// beforeDelete runs before a node is deleted.
	beforeDelete func()
	signErr      error
	hostCA       ssh.Signer
	sign         func(*ssh.Certificate) // changes a certificate before it is signed
	casRead      int
	cas          func(n int) teleport.CAs // the answer to the nth reading
}

func newWorld(t testing.TB) *world {
	t.Helper()
	now := time.Now().Truncate(time.Second)
	w := &world{
		t:      t,
		now:    now,
		nodes:  make(map[string]node.Node),
		hostCA: sshkeytest.NewSigner(t),
		instance: inventory.Instance{
			ID: testInstance, OwnerID: testAccount, Region: testRegion, AvailabilityZone: testRegion + "a",
			State: inventory.StateRunning, VPC: "vpc-1", ImageID: testImage, ImageOwner: testOwner,
			LaunchTime: now.Add(-time.Minute), PrivateIP: "10.0.0.7", Tags: map[string]string{"Name": "web"},
		},
	}
	w.cas = func(int) teleport.CAs { return teleport.CAs{Host: []ssh.PublicKey{w.hostCA.PublicKey()}} }
	limits := policy.Limits{Accounts: []ec2ref.Account{testAccount, testOwner}, Regions: []ec2ref.Region{testRegion}, MaxLifetime: policy.LongestLifetime}
	rules, err := policy.Default(limits)
	if err != nil {
		t.Fatal(err)
	}
	w.signer = &Signer{
		Audience: testAudience, Accounts: limits.Accounts, Regions: limits.Regions,
		Documents: testKeyring(t), Callers: fakeSTS{w}, Inventory: fakeEC2{w}, Policy: fixed(rules), Ledger: fakeLedger{w},
		Connect: func(context.Context) (Cluster, error) {
			w.note("connect")
			return fakeCluster{w}, w.dialErr
		},
		Log: slog.New(slog.NewJSONHandler(&w.log, nil)),
		Now: func() time.Time { return w.now },
	}
	return w
}

func fixed(p *policy.Policy) func(context.Context) (*policy.Policy, error) {
	return func(context.Context) (*policy.Policy, error) { return p, nil }
}

// testKeyring has the listed region and one that is not listed.
func testKeyring(t testing.TB) *identity.Keyring {
	t.Helper()
	keyring, err := identity.Regions()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{testRegion, "hm-test-2"} {
		if keyring, err = keyring.With(ec2ref.Region(name), regions()[name].CertificatePEM()); err != nil {
			t.Fatal(err)
		}
	}
	return keyring
}

func (w *world) note(call string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, call)
}

// upstream returns the calls so far, each kind once and in order.
func (w *world) upstream() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var kinds []string
	for _, call := range w.calls {
		if !slices.Contains(kinds, call) {
			kinds = append(kinds, call)
		}
	}
	return strings.Join(kinds, " ")
}

func testPlace() ec2ref.Place { return ec2ref.Place{Account: testAccount, Region: testRegion} }

func theInstance() ec2ref.Instance {
	return ec2ref.Instance{Account: testAccount, Region: testRegion, ID: testInstance}
}

func instanceWith(id ec2ref.InstanceID) ec2ref.Instance {
	return ec2ref.Instance{Account: testAccount, Region: testRegion, ID: id}
}

// fakeSTS accepts proofs that fakeProof made, for exactly what they name.
type fakeSTS struct{ *world }

func fakeProof(b protocol.Binding, i ec2ref.Instance) string {
	return fmt.Sprintf("proof of %s %s", b, i)
}

func (f fakeSTS) Verify(_ context.Context, p protocol.CallerProof, b protocol.Binding, i ec2ref.Instance) error {
	f.note("sts")
	f.mu.Lock()
	f.askedSTS++
	f.mu.Unlock()
	if f.stsErr != nil {
		return f.stsErr
	}
	if p.Authorization != fakeProof(b, i) || p.SecurityToken != testSecret {
		return fmt.Errorf("%w: SignatureDoesNotMatch", identity.ErrCallerProof)
	}
	return nil
}

type fakeEC2 struct{ *world }

// ec2Fails is the state of an instance about which EC2 does not answer.
const ec2Fails = "no answer"

func (f fakeEC2) Instance(_ context.Context, i ec2ref.Instance) (*inventory.Instance, error) {
	f.note("ec2")
	switch state := f.others[string(i.ID)]; {
	case state == ec2Fails:
		return nil, errors.New("RequestLimitExceeded")
	case state != "":
		return &inventory.Instance{ID: i.ID, State: state}, nil
	case i.Region != testRegion || i.ID != testInstance:
		return nil, inventory.ErrNotFound
	}
	instance := f.instance
	return &instance, f.ec2Err
}

type fakeLedger struct{ *world }

// Lookup runs in parallel with EC2, so it has no place in the order of calls.
func (f fakeLedger) Lookup(ctx context.Context, i ec2ref.Instance) (ledger.Record, error) {
	// Before that, it is asked only about an instance with too many requests.
	if !strings.Contains(f.upstream(), "sts") && f.askedSTS < attemptBurst {
		f.t.Error("the ledger is asked before the caller is proved")
	}
	if f.lookups != nil {
		f.mu.Lock()
		*f.lookups++
		f.mu.Unlock()
	}
	if f.lookupErr != nil {
		return ledger.Record{}, f.lookupErr
	}
	return f.ledger.Lookup(ctx, i)
}

func (f fakeLedger) Claim(ctx context.Context, c ledger.Claim, now time.Time) (ledger.Grant, error) {
	f.note("claim")
	if f.claimErr != nil {
		return ledger.Grant{}, f.claimErr
	}
	f.mu.Lock()
	f.claimed = append(f.claimed, c)
	f.mu.Unlock()
	if f.onClaim != nil {
		if err := f.onClaim(c); err != nil {
			return ledger.Grant{}, err
		}
	}
	return f.ledger.Claim(ctx, c, now)
}

func (f fakeLedger) Release(ctx context.Context, name, by string, now time.Time) (ec2ref.Instance, error) {
	f.note("release")
	return f.ledger.Release(ctx, name, by, now)
}

func (f fakeLedger) Announce(ctx context.Context, i ec2ref.Instance) (ledger.Record, error) {
	return f.ledger.Announce(ctx, i)
}

func (f fakeLedger) Leave(ctx context.Context, l ledger.Leave, now time.Time) (ledger.Record, error) {
	f.note("leave")
	if f.claimErr != nil {
		return ledger.Record{}, f.claimErr
	}
	return f.ledger.Leave(ctx, l, now)
}

func (f fakeLedger) Complete(ctx context.Context, c ledger.Claim, g ledger.Grant, now time.Time) (ledger.Record, error) {
	f.note("confirm")
	if f.beforeOK != nil {
		f.beforeOK()
		now = f.now // it may have taken a while
	}
	return f.ledger.Complete(ctx, c, g, now)
}

type fakeCluster struct{ *world }

func (f fakeCluster) ClusterName() string { return testCluster }
func (f fakeCluster) ProxyName() string   { return "proxy.example.com" }

func (f fakeCluster) Node(_ context.Context, id string) (*node.Node, error) {
	f.note("lookup")
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.nodeErr != nil {
		return nil, f.nodeErr
	}
	n, ok := f.nodes[id]
	if !ok {
		return nil, teleport.ErrNotFound
	}
	return &n, nil
}

func (f fakeCluster) NodesNamed(_ context.Context, hostnames ...string) ([]node.Node, error) {
	f.note("lookup")
	f.mu.Lock()
	defer f.mu.Unlock()
	var named []node.Node
	for _, n := range f.nodes {
		if slices.ContainsFunc(hostnames, func(h string) bool { return strings.EqualFold(h, n.Hostname) }) {
			named = append(named, n)
		}
	}
	return named, nil
}

func (f fakeCluster) UpsertNode(_ context.Context, n node.Node) error {
	f.note("issue")
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.upsertErr == nil {
		f.nodes[n.ID] = n
	}
	return f.upsertErr
}

func (f fakeCluster) DeleteNode(ctx context.Context, id string) error {
	f.note("delete")
	if f.beforeDelete != nil {
		f.beforeDelete()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.deleteErr != nil {
		return f.deleteErr
	}
	delete(f.nodes, id)
	return ctx.Err()
}

func (f fakeCluster) SignHostKey(_ context.Context, key ssh.PublicKey, principals []string, ttl time.Duration) (*ssh.Certificate, error) {
	f.note("issue")
	if f.signErr != nil {
		return nil, f.signErr
	}
	certificate := &ssh.Certificate{
		Key: key, CertType: ssh.HostCert, Serial: 1<<63 + 1, ValidPrincipals: principals,
		ValidAfter: uint64(f.now.Add(-time.Minute).Unix()), ValidBefore: uint64(f.now.Add(ttl).Unix()),
		Permissions: ssh.Permissions{Extensions: map[string]string{hostcert.RoleExtension: "ProvisionToken"}},
	}
	if f.sign != nil {
		f.sign(certificate)
	}
	return certificate, certificate.SignCert(rand.Reader, f.hostCA)
}

func (f fakeCluster) CAs(context.Context) (teleport.CAs, error) {
	f.note("issue")
	f.mu.Lock()
	defer f.mu.Unlock()
	f.casRead++
	return f.cas(f.casRead), nil
}

// attempt is a request under construction. Tests change its parts.
type attempt struct {
	document map[string]any
	region   *identitytest.Region // whose key signs the document
	payload  protocol.Payload     // the document and the host keys are filled in from the other fields
	keys     []ssh.Signer
	date     time.Time // of the caller proof

	signed  func(text []byte) []byte // changes the signed document
	encoded func(payload []byte) []byte
	binding func(protocol.Binding) protocol.Binding // what the proofs sign
	request func(*protocol.Request)
	http    func(*entry.Request)
}

func newAttempt(t testing.TB, now time.Time) *attempt {
	t.Helper()
	return &attempt{
		document: map[string]any{
			"accountId": testAccount, "architecture": "arm64", "availabilityZone": testRegion + "a",
			"billingProducts": nil, "devpayProductCodes": nil, "marketplaceProductCodes": nil,
			"imageId": testImage, "instanceId": testInstance, "instanceType": "t4g.small", "kernelId": nil,
			"pendingTime": "2026-01-02T03:04:05Z", "privateIp": "10.0.0.7", "ramdiskId": nil,
			"region": testRegion, "version": "2017-09-30",
		},
		region:  regions()[testRegion],
		payload: protocol.Payload{Version: protocol.Version, Audience: testAudience, IssuedAt: now.UTC()},
		keys:    []ssh.Signer{sshkeytest.NewSigner(t), sshkeytest.NewSigner(t)},
		date:    now,
	}
}

// build signs everything and returns the HTTP request.
func (a *attempt) build(t testing.TB) entry.Request {
	t.Helper()
	text, err := a.region.Sign(must(json.Marshal(a.document)))
	if err != nil {
		t.Fatal(err)
	}
	if a.signed != nil {
		text = a.signed(text)
	}
	a.payload.IdentityDocument = string(text)
	if a.payload.HostKeys == nil {
		for _, key := range a.keys {
			a.payload.HostKeys = append(a.payload.HostKeys, sshkey.Line(key.PublicKey()))
		}
	}
	payload := must(json.Marshal(a.payload))
	if a.encoded != nil {
		payload = a.encoded(payload)
	}
	binding := protocol.Bind(payload)
	if a.binding != nil {
		binding = a.binding(binding)
	}
	request := protocol.Request{
		Payload: payload,
		Caller: protocol.CallerProof{
			Authorization: fakeProof(binding, theInstance()),
			Date:          a.date.UTC().Format("20060102T150405Z"),
			SecurityToken: testSecret,
		},
	}
	for _, key := range a.keys {
		request.Signatures = append(request.Signatures, must(identity.SignBinding(key, binding)))
	}
	if a.request != nil {
		a.request(&request)
	}
	r := entry.Request{
		ID: "request-1", Method: http.MethodPost, ContentType: "application/json",
		Body: must(json.Marshal(request)), Source: "192.0.2.1",
	}
	if a.http != nil {
		a.http(&r)
	}
	return r
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// send sends a request through the world's entry, as an event, if it has one.
func (w *world) send(r entry.Request) entry.Answer {
	w.t.Helper()
	if w.entry == "" {
		return w.signer.Enroll(w.t.Context(), r)
	}
	if w.entry == entry.PrivateAPI && r.Endpoint == "" {
		r.Endpoint = testEndpoint
	}
	arrived, err := w.entry.Request(must(entrytest.Event(w.entry, r)))
	if err != nil {
		w.t.Fatal(err)
	}
	arrived.ID = r.ID // as from Lambda's context
	return must(entrytest.Answer(w.entry, must(w.entry.Response(w.signer.Enroll(w.t.Context(), arrived)))))
}

// enroll sends the attempt and returns the answer's status and body.
func (w *world) enroll(a *attempt) (int, protocol.Response, protocol.Refusal) {
	w.t.Helper()
	answer := w.send(a.build(w.t))
	var granted protocol.Response
	var refused protocol.ErrorResponse
	into := any(&granted)
	if answer.Status != http.StatusOK {
		into = &refused
	}
	if err := json.Unmarshal(answer.Body, into); err != nil {
		w.t.Fatalf("answer %q: %v", answer.Body, err)
	}
	return answer.Status, granted, refused.Error
}

// all are the calls of a granted first enrollment.
const all = "sts ec2 connect lookup claim issue confirm"

func TestEnroll(t *testing.T) {
	w := newWorld(t)
	a := newAttempt(t, w.now)
	status, got, refused := w.enroll(a)
	if status != http.StatusOK {
		t.Fatalf("status %d, %+v", status, refused)
	}
	if calls := w.upstream(); calls != all {
		t.Errorf("calls %q, want %q", calls, all)
	}

	id := theInstance().NodeID()
	if want := (protocol.Node{ID: id, Hostname: testHostname, Address: "10.0.0.7:22", Cluster: testCluster}); got.Node != want {
		t.Errorf("node %+v, want %+v", got.Node, want)
	}
	principals := []string{testHostname, id, testHostname + "." + testCluster, id + "." + testCluster}
	if !slices.Equal(got.Principals, principals) {
		t.Errorf("principals %q, want %q", got.Principals, principals)
	}
	if want := w.now.Add(policy.DefaultLifetime / 3); !got.RenewAfter.Equal(want) {
		t.Errorf("renew after %s, want %s", got.RenewAfter, want)
	}
	if got.RequestID != "request-1" || got.Version != protocol.Version {
		t.Errorf("response %+v", got)
	}
	checkCertificateLines(t, w, a, got)

	n := w.nodes[id]
	if !n.Expires.Equal(w.now.Add(policy.DefaultLifetime)) {
		t.Errorf("lease ends %s, not with the certificates", n.Expires)
	}
	if n.Labels[node.SignerLabel] != testAudience || n.Labels["hallmark/image-owner"] != testOwner || n.Labels["aws/Name"] != "web" {
		t.Errorf("labels %v", n.Labels)
	}
}

// checkCertificateLines verifies what a client of the enrolled machine would.
func checkCertificateLines(t *testing.T, w *world, a *attempt, got protocol.Response) {
	t.Helper()
	checker := ssh.CertChecker{IsHostAuthority: func(key ssh.PublicKey, _ string) bool {
		return bytes.Equal(key.Marshal(), w.hostCA.PublicKey().Marshal())
	}}
	if len(got.Certificates) != len(a.keys) {
		t.Fatalf("%d certificates for %d keys", len(got.Certificates), len(a.keys))
	}
	for i, text := range got.Certificates {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		certificate := key.(*ssh.Certificate)
		if !bytes.Equal(certificate.Key.Marshal(), a.keys[i].PublicKey().Marshal()) {
			t.Errorf("certificate %d is for another key", i)
		}
		for _, name := range got.Principals {
			if err := checker.CheckHostKey(name+":22", nil, certificate); err != nil {
				t.Errorf("certificate %d as %s: %v", i, name, err)
			}
		}
	}
}

func TestEnrollingAgainWithTheSameKeys(t *testing.T) {
	w := newWorld(t)
	a := newAttempt(t, w.now)
	for range 2 {
		if status, _, refused := w.enroll(a); status != http.StatusOK {
			t.Fatalf("status %d, %+v", status, refused)
		}
	}
	if len(w.nodes) != 1 {
		t.Errorf("%d nodes of one instance", len(w.nodes))
	}
	lookups := slices.DeleteFunc(slices.Clone(w.calls), func(c string) bool { return c != "lookup" })
	if len(lookups) != 2 {
		t.Errorf("%d look-ups; want the node's and the name's, at the first claim only", len(lookups))
	}
}

// A first attempt that failed halfway has not shown that the name is free.
func TestForeignNodesAreLookedUpUntilConfirmed(t *testing.T) {
	w := newWorld(t)
	a := newAttempt(t, w.now)
	w.nodeErr = errors.New("connection lost")
	if status, _, refused := w.enroll(a); refused.Code != protocol.CodeUpstream {
		t.Fatalf("status %d, %+v", status, refused)
	}
	w.nodeErr = nil
	w.nodes["other"] = node.Node{ID: "other", Hostname: testHostname}
	if _, _, refused := w.enroll(a); refused.Code != protocol.CodeNameInUse {
		t.Errorf("code %q, want %q", refused.Code, protocol.CodeNameInUse)
	}
}

func TestForeignNodesAreLookedUpWhenRenamed(t *testing.T) {
	w := newWorld(t)
	a := newAttempt(t, w.now)
	if status, _, refused := w.enroll(a); status != http.StatusOK {
		t.Fatalf("status %d, %+v", status, refused)
	}
	w.instance.Tags["Name"] = "db"
	w.nodes["other"] = node.Node{ID: "other", Hostname: "db-" + testInstance}
	if _, _, refused := w.enroll(a); refused.Code != protocol.CodeNameInUse {
		t.Errorf("code %q, want %q", refused.Code, protocol.CodeNameInUse)
	}
}

func TestANodeOfAnInstanceThatEndedMeanwhileIsDeleted(t *testing.T) {
	w := newWorld(t)
	w.beforeOK = func() {
		if err := w.ledger.Retire(t.Context(), ec2ref.Instance{Account: testAccount, Region: testRegion, ID: testInstance}); err != nil {
			t.Error(err)
		}
	}
	if _, _, refused := w.enroll(newAttempt(t, w.now)); refused.Code != protocol.CodeInstanceEnded {
		t.Errorf("code %q, want %q", refused.Code, protocol.CodeInstanceEnded)
	}
	if len(w.nodes) != 0 {
		t.Errorf("nodes %v are left", w.nodes)
	}
}

// A good node keeps serving with the certificates of its last renewal.
func TestAFailedRenewalDeletesNothing(t *testing.T) {
	w := newWorld(t)
	a := newAttempt(t, w.now)
	if status, _, refused := w.enroll(a); status != http.StatusOK {
		t.Fatalf("status %d, %+v", status, refused)
	}
	w.signErr = errors.New("connection lost")
	if _, _, refused := w.enroll(a); refused.Code != protocol.CodeUpstream {
		t.Errorf("code %q, want %q", refused.Code, protocol.CodeUpstream)
	}
	if len(w.nodes) != 1 {
		t.Errorf("nodes %v, want the one", w.nodes)
	}
}

func TestCAsThatRotateMeanwhileAreReadAgain(t *testing.T) {
	w := newWorld(t)
	current := w.cas
	w.cas = func(n int) teleport.CAs {
		if n == 1 {
			return teleport.CAs{Host: []ssh.PublicKey{sshkeytest.NewSigner(t).PublicKey()}}
		}
		return current(n)
	}
	status, got, refused := w.enroll(newAttempt(t, w.now))
	if status != http.StatusOK {
		t.Fatalf("status %d, %+v", status, refused)
	}
	if want := []string{sshkey.Line(w.hostCA.PublicKey())}; !slices.Equal(got.HostCAs, want) {
		t.Errorf("host CAs %q, want %q", got.HostCAs, want)
	}
}
