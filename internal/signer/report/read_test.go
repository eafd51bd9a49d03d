package report

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

const (
	signer = "hallmark.example.com"
	member = ec2ref.Account("444455556666")
)

// fakeEC2 answers with a state for each instance, or an error for a place or account.
type fakeEC2 struct {
	states       map[ec2ref.Place]map[ec2ref.InstanceID]string
	failing      map[ec2ref.Place]error
	foreign      ec2ref.Account // with credentials of another account
	asking, most atomic.Int32
}

func (f *fakeEC2) CheckAccount(_ context.Context, account ec2ref.Account) error {
	if account == f.foreign {
		return errors.New("the credentials belong to account 999999999999")
	}
	return nil
}

func (f *fakeEC2) States(_ context.Context, at ec2ref.Place) (map[ec2ref.InstanceID]string, error) {
	n := f.asking.Add(1)
	defer f.asking.Add(-1)
	for most := f.most.Load(); n > most && !f.most.CompareAndSwap(most, n); most = f.most.Load() {
	}
	return f.states[at], f.failing[at]
}

// world is a fleet of three instances: one in each of two accounts, and one of another signer.
type world struct {
	ledger *ledger.Memory
	ec2    *fakeEC2
	nodes  []node.Node
	err    error // of Teleport
}

func at(account ec2ref.Account) ec2ref.Place { return ec2ref.Place{Account: account, Region: region} }

func instanceOf(account ec2ref.Account, n int) ec2ref.Instance {
	return ec2ref.Instance{Account: account, Region: region, ID: ec2ref.InstanceID(fmt.Sprintf("i-%017x", n))}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{ledger: new(ledger.Memory), ec2: &fakeEC2{
		states: make(map[ec2ref.Place]map[ec2ref.InstanceID]string), failing: make(map[ec2ref.Place]error),
	}}
	for n, account := range []ec2ref.Account{account, member} {
		w.enroll(t, instanceOf(account, n), signer)
	}
	w.enroll(t, instanceOf(account, 7), "other.example.com")
	return w
}

func (w *world) enroll(t *testing.T, i ec2ref.Instance, by string) {
	t.Helper()
	c := ledger.Claim{
		Instance: i, Fingerprints: []string{"SHA256:" + string(i.ID)}, Hostname: "web-" + string(i.ID), Signer: by, Rule: "web", ValidUntil: noon().Add(7 * day1),
	}
	grant, err := w.ledger.Claim(t.Context(), c, noon())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.ledger.Confirm(t.Context(), c, grant, noon()); err != nil {
		t.Fatal(err)
	}
	if by != signer {
		return
	}
	w.nodes = append(w.nodes, node.Node{ID: i.NodeID(), Hostname: c.Hostname, Expires: c.ValidUntil, Labels: map[string]string{
		node.SignerLabel: by, node.AccountLabel: string(i.Account), node.RegionLabel: string(i.Region), node.InstanceLabel: string(i.ID),
	}})
	if w.ec2.states[i.Place()] == nil {
		w.ec2.states[i.Place()] = make(map[ec2ref.InstanceID]string)
	}
	w.ec2.states[i.Place()][i.ID] = inventory.StateRunning
}

// refuse notes a refused request.
func (w *world) refuse(i ec2ref.Instance, when time.Time) {
	_ = w.ledger.NoteRefusal(context.Background(), i, ledger.Refusal{At: when, Code: "policy_refused"}) // fails only without a context
}

func (w *world) reader() Reader {
	return Reader{
		Ledger: w.ledger, EC2: w.ec2, Places: []ec2ref.Place{at(account), at(member)}, Audience: signer,
		Nodes: func(context.Context) ([]node.Node, error) { return w.nodes, w.err },
	}
}

// TestRead breaks one source in each row: the others still say what they know.
func TestRead(t *testing.T) {
	tests := map[string]struct {
		change func(*world)
		filter Filter
		states []State // of the instances in both accounts
		gaps   []string
	}{
		"all": {func(*world) {}, Filter{}, []State{Enrolled, Enrolled}, nil},
		"one account": {func(w *world) { w.ec2.failing[at(account)] = errors.New("denied") }, Filter{Accounts: []ec2ref.Account{member}},
			[]State{Enrolled}, nil},
		"no Teleport": {func(w *world) { w.err = errors.New("no\n  login") }, Filter{}, []State{Unknown, Unknown}, []string{"Teleport: no login"}},
		"no EC2 in one account": {func(w *world) {
			w.ec2.failing[at(member)] = errors.New("denied")
			w.nodes = nil
		}, Filter{}, []State{NoNode, Unknown}, []string{"EC2 in account 444455556666, us-west-2: denied"}},
		"another account's credentials": {func(w *world) {
			w.ec2.foreign = member
			w.ec2.states[at(member)] = nil
		}, Filter{}, []State{Enrolled, Enrolled}, []string{"EC2 in account 444455556666, us-west-2: the credentials belong to account 999999999999"}},
		"a node that claims to be of another instance": {func(w *world) {
			w.nodes[0].Labels[node.InstanceLabel] = string(instanceOf(account, 9).ID)
		}, Filter{}, []State{NoNode, Enrolled}, nil},
		"a node of an instance that cannot exist": {func(w *world) {
			i := ec2ref.Instance{Account: account, Region: region, ID: "=1+1"}
			w.nodes = append(w.nodes, node.Node{ID: i.NodeID(), Labels: map[string]string{
				node.SignerLabel: signer, node.AccountLabel: string(i.Account), node.RegionLabel: string(i.Region), node.InstanceLabel: string(i.ID),
			}})
		}, Filter{}, []State{Enrolled, Enrolled}, nil},
		"another signer's running instance": {func(w *world) {
			w.ec2.states[at(account)][instanceOf(account, 7).ID] = inventory.StateRunning
			w.refuse(instanceOf(account, 7), noon().Add(-time.Hour))
		}, Filter{}, []State{Enrolled, Enrolled}, nil},
		"another signer's instance, refused since": {func(w *world) {
			w.ec2.states[at(account)][instanceOf(account, 7).ID] = inventory.StateRunning
			w.refuse(instanceOf(account, 7), noon().Add(time.Hour))
		}, Filter{}, []State{Refused, Enrolled, Enrolled}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tt.change(w)
			fleet, err := w.reader().Read(t.Context(), tt.filter)
			if err != nil {
				t.Fatal(err)
			}
			wantFleet(t, fleet, tt.states, tt.gaps)
		})
	}
}

func TestReadNotesUnlistedPlaces(t *testing.T) {
	w := newWorld(t)
	r := w.reader()
	r.Places = r.Places[:1]
	fleet, err := r.Read(t.Context(), Filter{})
	if err != nil || len(fleet.Gaps) != 1 || !strings.Contains(fleet.Gaps[0].String(), string(member)) {
		t.Errorf("gaps %v, error %v", fleet.Gaps, err)
	}
	if err := w.ledger.Retire(t.Context(), instanceOf(member, 1)); err != nil {
		t.Fatal(err)
	}
	if fleet, err := r.Read(t.Context(), Filter{}); err != nil || len(fleet.Gaps) != 0 {
		t.Errorf("gaps %v, error %v after its last record ended", fleet.Gaps, err)
	}
}

type brokenLedger struct{}

func (brokenLedger) Each(context.Context, ledger.Visitor) error { return errors.New("AccessDenied") }

func TestReadWithoutLedger(t *testing.T) {
	r := newWorld(t).reader()
	r.Ledger = brokenLedger{}
	if fleet, err := r.Read(t.Context(), Filter{}); err == nil {
		t.Errorf("fleet %+v without a ledger", fleet)
	}
}

func TestReadIsBounded(t *testing.T) {
	if err := bounded(maxInstances); err != nil {
		t.Error(err)
	}
	if err := bounded(maxInstances + 1); !errors.Is(err, ErrTooMany) {
		t.Errorf("error %v", err)
	}
	w := newWorld(t)
	r := w.reader()
	for n := range 200 {
		r.Places = append(r.Places, ec2ref.Place{Account: ec2ref.Account(fmt.Sprintf("%012d", n)), Region: region})
	}
	if _, err := r.Read(t.Context(), Filter{}); err != nil {
		t.Fatal(err)
	}
	if most := w.ec2.most.Load(); most > placesAtOnce {
		t.Errorf("%d questions at once", most)
	}
}

// Accounts of the organization are asked about where the ledger or the filter names them.
func TestReadMembers(t *testing.T) {
	const quiet = ec2ref.Account("777788889999")
	tests := map[string]struct {
		change func(*world)
		err    error
		filter Filter
		states []State
		gaps   []string
	}{
		"in use":           {func(*world) {}, nil, Filter{}, []State{Enrolled, Enrolled}, nil},
		"an account named": {func(*world) {}, nil, Filter{Accounts: []ec2ref.Account{quiet}}, []State{NoNode}, nil},
		"no member role": {func(w *world) { w.ec2.failing[at(member)] = errors.New("denied"); w.nodes = w.nodes[:1] }, nil, Filter{}, []State{Enrolled, Unknown},
			[]string{"EC2 in account 444455556666, us-west-2: denied"}},
		"no list": {func(w *world) { w.nodes = w.nodes[:1] }, errors.New("AccessDenied"), Filter{}, []State{Enrolled, Unknown},
			[]string{"the organization's accounts: AccessDenied"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.ec2.states[at(quiet)] = map[ec2ref.InstanceID]string{instanceOf(quiet, 1).ID: inventory.StateRunning}
			tt.change(w)
			r := w.reader()
			r.Places = r.Places[:1]
			r.Members = func(context.Context) ([]ec2ref.Place, error) { return []ec2ref.Place{at(member), at(quiet)}, tt.err }
			fleet, err := r.Read(t.Context(), tt.filter)
			if err != nil {
				t.Fatal(err)
			}
			wantFleet(t, fleet, tt.states, tt.gaps)
		})
	}
}

// wantFleet compares the states of a fleet's instances, and what could not be read.
func wantFleet(t *testing.T, fleet Fleet, wantStates []State, wantGaps []string) {
	t.Helper()
	var states []State
	for _, r := range Join(fleet, noon()) {
		states = append(states, r.State)
	}
	var gaps []string
	for _, g := range fleet.Gaps {
		gaps = append(gaps, g.String())
	}
	if !slices.Equal(states, wantStates) || !slices.Equal(gaps, wantGaps) {
		t.Errorf("states %q, gaps %q; want %q, %q", states, gaps, wantStates, wantGaps)
	}
}
