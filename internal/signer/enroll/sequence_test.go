package enroll

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/stored"
	"github.com/hallmark-ssh/hallmark/internal/signer/upkeep"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// A sequence is an attack, or a run of bad luck, that takes several steps. It is
// played against the real signer and the real fleet function, which share a ledger, a
// Teleport and an EC2 in memory.
//
// Whatever a sequence does, the stage checks at its end what must always hold (see
// stage.check), and then asks: can the honest machine still renew?
type sequence struct {
	play func(*stage)
	// gone says that the honest machine's instance is gone, so the machine must not get any
	// more certificates. Otherwise it must be able to renew.
	gone bool
}

// TestAttackSequences is the table of attacks that take more than one request. Its groups are
// in attack_sequence_*_test.go.
func TestAttackSequences(t *testing.T) {
	rows := make(map[string]sequence)
	for _, group := range []map[string]sequence{
		keySequences(), floodSequences(), nameSequences(), eventSequences(),
		sweepSequences(), imageSequences(), failureSequences(), clockSequences(), signerSequences(),
	} {
		for name, row := range group {
			if _, twice := rows[name]; twice {
				t.Fatalf("two rows are called %q", name)
			}
			rows[name] = row
		}
	}
	if len(rows) < 60 {
		t.Errorf("%d rows, want at least 60", len(rows))
	}
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		t.Run(name, rows[name].run)
	}
}

func (row sequence) run(t *testing.T) {
	s := newStage(t)
	row.play(s)
	s.check()
	s.recover()
	if row.gone {
		if status, _, _ := s.honest.ask(); status == http.StatusOK {
			t.Error("a machine whose instance has ended got certificates")
		}
		return
	}
	s.honest.mustEnroll()
	s.check()
	if n, there := s.nodes[s.honest.node()]; !there || n.Labels["aws/Name"] != s.honest.ec2().Tags["Name"] {
		t.Errorf("after a renewal the honest machine's node is %+v", n)
	}
}

// stage is a world with several instances, with the fleet function in addition to the signer.
type stage struct {
	*world
	fleet     *upkeep.Fleet
	instances map[string]*inventory.Instance // what EC2 shows, by id
	honest    *machine
	// granted are all certificates that were handed out, with the instance that asked.
	granted []issuedTo
}

type issuedTo struct {
	instance    string
	certificate *ssh.Certificate
}

// machine acts as one instance. It is the machine itself, or an attacker who can read the
// machine's metadata service.
type machine struct {
	*stage
	id     string
	keys   []ssh.Signer
	source string
	change func(*attempt)
}

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{world: newWorld(t), instances: make(map[string]*inventory.Instance)}
	s.honest = s.launch(testInstance, "web")
	s.signer.Inventory = stageEC2{s}
	s.signer.Connect = func(context.Context) (Cluster, error) { return stageCluster{fakeCluster{s.world}}, s.dialErr }
	s.fleet = &upkeep.Fleet{
		Audience: testAudience, Accounts: s.signer.Accounts, Regions: s.signer.Regions,
		Inventory: stageEC2{s}, Ledger: &s.ledger, Missing: new(stored.Memory),
		Policy:  func(ctx context.Context) (*policy.Policy, error) { return s.signer.Policy(ctx) },
		Connect: func(context.Context) (upkeep.Cluster, error) { return stageCluster{fakeCluster{s.world}}, s.dialErr },
		Log:     slog.New(slog.NewJSONHandler(&s.log, nil)),
		Now:     func() time.Time { return s.now },
	}
	return s
}

// launch starts an instance whose Name tag is name, and returns its machine.
func (s *stage) launch(id, name string) *machine {
	s.t.Helper()
	instance := s.instance
	instance.ID, instance.LaunchTime = ec2ref.InstanceID(id), s.now.Add(-time.Minute)
	instance.PrivateIP = fmt.Sprintf("10.0.1.%d", len(s.instances)+1)
	instance.Tags = map[string]string{"Name": name}
	s.instances[id] = &instance
	return &machine{stage: s, id: id, keys: []ssh.Signer{sshkeytest.NewSigner(s.t), sshkeytest.NewSigner(s.t)}, source: "192.0.2.1"}
}

// intruder is a process on the machine that reaches the metadata service and has its own host
// keys, but none of the machine's.
func (m *machine) intruder() *machine {
	return &machine{stage: m.stage, id: m.id, keys: []ssh.Signer{sshkeytest.NewSigner(m.t), sshkeytest.NewSigner(m.t)}, source: m.source}
}

// thief has the identity document and nothing else.
func (m *machine) thief(source string) *machine {
	stolen := m.intruder()
	stolen.source = source
	stolen.change = func(a *attempt) {
		a.request = func(r *protocol.Request) { r.Caller.Authorization = "junk" }
	}
	return stolen
}

func (m *machine) ec2() *inventory.Instance { return m.instances[m.id] }
func (m *machine) ref() ec2ref.Instance     { return inTestAccount(m.id) }
func (m *machine) node() string {
	return ec2ref.Instance{Account: testAccount, Region: testRegion, ID: ec2ref.InstanceID(m.id)}.NodeID()
}

func (m *machine) record() ledger.Record {
	m.t.Helper()
	return must(m.ledger.Lookup(m.t.Context(), m.ref()))
}

// request is a request that the machine makes now.
func (m *machine) request() entry.Request {
	m.t.Helper()
	a := newAttempt(m.t, m.now)
	a.keys = m.keys
	a.document["instanceId"] = m.id
	if instance := m.ec2(); instance != nil {
		a.document["imageId"], a.document["privateIp"] = instance.ImageID, instance.PrivateIP
	}
	a.request = func(r *protocol.Request) {
		r.Caller.Authorization = fakeProof(protocol.Bind(r.Payload), instanceWith(ec2ref.InstanceID(m.id)))
	}
	a.http = func(r *entry.Request) { r.Source = m.source }
	if m.change != nil {
		m.change(a)
	}
	return a.build(m.t)
}

// ask enrolls or renews.
func (m *machine) ask() (int, protocol.Response, protocol.Refusal) {
	m.t.Helper()
	return m.send(m.request())
}

func (m *machine) send(r entry.Request) (int, protocol.Response, protocol.Refusal) {
	m.t.Helper()
	answer := m.signer.Enroll(m.t.Context(), r)
	var got protocol.Response
	if answer.Status != http.StatusOK {
		var refused protocol.ErrorResponse
		if err := json.Unmarshal(answer.Body, &refused); err != nil {
			m.t.Fatal(err)
		}
		return answer.Status, got, refused.Error
	}
	if err := json.Unmarshal(answer.Body, &got); err != nil {
		m.t.Fatal(err)
	}
	for _, text := range got.Certificates {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(text))
		if err != nil {
			m.t.Fatal(err)
		}
		m.granted = append(m.granted, issuedTo{m.id, key.(*ssh.Certificate)})
	}
	return answer.Status, got, protocol.Refusal{}
}

func (m *machine) mustEnroll() protocol.Response {
	m.t.Helper()
	status, got, refused := m.ask()
	if status != http.StatusOK {
		m.t.Fatalf("%s is refused: %d %s %q; log: %s", m.id, status, refused.Code, refused.Message, m.log.String())
	}
	return got
}

func (m *machine) mustFail(code protocol.Code) {
	m.t.Helper()
	if status, got, refused := m.ask(); refused.Code != code {
		m.t.Errorf("%s: %d %q, want %q; granted %v", m.id, status, refused.Code, code, got.Principals)
	}
}

// wait lets time pass.
func (s *stage) wait(d time.Duration) { s.now = s.now.Add(d) }

// sweep sweeps once and expects success.
func (s *stage) sweep() upkeep.Report {
	s.t.Helper()
	report, err := s.fleet.Sweep(s.t.Context(), "", 0)
	if err != nil {
		s.t.Fatal(err)
	}
	return report
}

// stateChanged delivers an event that says that the instances' states have changed.
func (s *stage) stateChanged(ids ...string) {
	s.t.Helper()
	refs := make([]ec2ref.Instance, len(ids))
	for n, id := range ids {
		refs[n] = inTestAccount(id)
	}
	for _, err := range s.fleet.StatesChanged(s.t.Context(), refs) {
		if err != nil {
			s.t.Error(err)
		}
	}
}

// tagsChanged delivers a tag event.
func (s *stage) tagsChanged(id string, version uint64) {
	s.t.Helper()
	for _, err := range s.fleet.TagsChanged(s.t.Context(), []upkeep.TagChange{{Instance: inTestAccount(id), Version: version}}) {
		if err != nil {
			s.t.Error(err)
		}
	}
}

// terminate ends the instance in EC2, which shows it as terminated.
func (m *machine) terminate() { m.ec2().State = inventory.StateTerminated }

// forget makes EC2 stop showing the instance.
func (m *machine) forget() { delete(m.instances, m.id) }

// recover removes the failures that a sequence has set up, and gives limits time to refill:
// after this the world is healthy.
func (s *stage) recover() {
	s.stsErr, s.ec2Err, s.lookupErr, s.claimErr, s.dialErr, s.nodeErr, s.upsertErr, s.signErr = nil, nil, nil, nil, nil, nil, nil, nil
	s.sign, s.beforeOK, s.onClaim = nil, nil, nil
	s.wait(time.Minute)
}

// check verifies what must hold after every sequence.
func (s *stage) check() {
	s.t.Helper()
	for _, fault := range s.faults() {
		s.t.Error(fault)
	}
}

// faults returns what is wrong: a key or a name with two holders, the node of a retired
// instance, a node whose host name differs from the ledger's.
func (s *stage) faults() (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	names, keys := make(map[string]string), make(map[string]string)
	holds := func(holders map[string]string, what, instance string) {
		if other, taken := holders[what]; taken && other != instance {
			fault("%s is certified for %s and for %s", what, other, instance)
		}
		holders[what] = instance
	}
	for _, g := range s.granted {
		holds(keys, ssh.FingerprintSHA256(g.certificate.Key), g.instance)
		if time.Unix(int64(g.certificate.ValidBefore), 0).After(s.now) {
			for _, name := range g.certificate.ValidPrincipals {
				holds(names, name, g.instance)
			}
		}
	}
	for id, n := range s.nodes {
		if n.Labels[node.SignerLabel] != testAudience {
			continue
		}
		instance := n.Labels[node.InstanceLabel]
		record := must(s.ledger.Lookup(s.t.Context(), inTestAccount(instance)))
		if record.Retired {
			fault("node %s of %s, which has ended", id, instance)
		}
		if record.ConfirmedHostname != "" && n.Hostname != record.ConfirmedHostname {
			fault("the node of %s is named %s, the ledger says %s", instance, n.Hostname, record.ConfirmedHostname)
		}
	}
	return faults
}

// A check that finds nothing would make all of the rows pass.
func TestTheStageFindsFaults(t *testing.T) {
	for name, spoil := range map[string]func(*stage){
		"two holders":                          func(s *stage) { s.granted = append(s.granted, issuedTo{otherInstance, s.granted[0].certificate}) },
		"a node of an instance that has ended": func(s *stage) { s.end() },
		"a node under another name": func(s *stage) {
			n := s.nodes[s.honest.node()]
			n.Hostname = "other"
			s.nodes[n.ID] = n
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			s.honest.mustEnroll()
			if faults := s.faults(); len(faults) != 0 {
				t.Fatalf("faults %q of a good world", faults)
			}
			spoil(s)
			if len(s.faults()) == 0 {
				t.Error("no fault is found")
			}
		})
	}
}

// stageEC2 answers for all instances on the stage.
type stageEC2 struct{ *stage }

func (f stageEC2) Instance(_ context.Context, i ec2ref.Instance) (*inventory.Instance, error) {
	f.note("ec2")
	if f.ec2Err != nil {
		return nil, f.ec2Err
	}
	instance, ok := f.instances[string(i.ID)]
	if !ok || i.Place() != testPlace() {
		return nil, inventory.ErrNotFound
	}
	return cloneInstance(instance), nil
}

func (f stageEC2) Instances(_ context.Context, at ec2ref.Place, ids []ec2ref.InstanceID) (map[ec2ref.InstanceID]*inventory.Instance, error) {
	if f.ec2Err != nil {
		return nil, f.ec2Err
	}
	found := make(map[ec2ref.InstanceID]*inventory.Instance)
	for _, id := range ids {
		if instance, ok := f.instances[string(id)]; ok && at == testPlace() {
			found[id] = cloneInstance(instance)
		}
	}
	return found, nil
}

func (f stageEC2) All(ctx context.Context, at ec2ref.Place) (map[ec2ref.InstanceID]*inventory.Instance, error) {
	var ids []ec2ref.InstanceID
	for id := range f.instances {
		ids = append(ids, ec2ref.InstanceID(id))
	}
	return f.Instances(ctx, at, ids)
}

func (f stageEC2) CheckAccount(context.Context, ec2ref.Account) error { return f.ec2Err }

func cloneInstance(i *inventory.Instance) *inventory.Instance {
	copied := *i
	copied.Tags, copied.ImageTags = maps.Clone(i.Tags), maps.Clone(i.ImageTags)
	return &copied
}

// stageCluster is the fake cluster, with what the fleet function needs from it.
type stageCluster struct{ fakeCluster }

func (f stageCluster) NodesWith(_ context.Context, labels map[string]string) ([]node.Node, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []node.Node
	for _, id := range slices.Sorted(maps.Keys(f.nodes)) {
		n := f.nodes[id]
		if !slices.ContainsFunc(slices.Collect(maps.Keys(labels)), func(key string) bool { return n.Labels[key] != labels[key] }) {
			list = append(list, n)
		}
	}
	return list, nil
}

// limits replaces the policy with one rule, under limits that know the images' owner.
func (s *stage) limits(rule string) {
	s.t.Helper()
	rules, err := policy.Parse([]byte("version: 1\nrules:\n- "+rule), policy.Limits{
		Accounts: s.signer.Accounts, Regions: s.signer.Regions, MaxLifetime: policy.LongestLifetime,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.signer.Policy = fixed(rules)
}
