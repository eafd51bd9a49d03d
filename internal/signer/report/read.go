package report

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// Ledger is the ledger, which the report reads as a whole. *ledger.DynamoDB implements it.
type Ledger interface {
	Each(ctx context.Context, v ledger.Visitor) error
}

// EC2 returns the states of instances. *inventory.EC2 implements it.
type EC2 interface {
	// CheckAccount fails unless the credentials belong to this account.
	CheckAccount(ctx context.Context, account ec2ref.Account) error
	// States returns the state of every instance of an account in a region.
	States(ctx context.Context, at ec2ref.Place) (map[ec2ref.InstanceID]string, error)
}

// Reader reads the sources.
type Reader struct {
	Ledger Ledger
	// Nodes returns the nodes with this signer's label.
	Nodes func(ctx context.Context) ([]node.Node, error)
	EC2   EC2
	// Places are the accounts and regions of the deployment.
	Places []ec2ref.Place
	// Members returns the accounts of the organization, in all regions of the deployment. It
	// may be nil. There can be thousands: EC2 is asked about those that the ledger names, or the
	// filter.
	Members func(ctx context.Context) ([]ec2ref.Place, error)
	// Audience is the signer's. The report leaves out records of other signers.
	Audience string
}

const (
	// maxInstances bounds the memory of a report: about a kilobyte for each.
	maxInstances = 200_000
	// placesAtOnce bounds the concurrent requests to EC2.
	placesAtOnce = 16
)

// ErrTooMany says that a source has more than maxInstances.
var ErrTooMany = fmt.Errorf("more than %d instances", maxInstances)

// Read asks all sources at the same time about the accounts and regions that the filter
// covers. If Teleport or EC2 cannot be read, the fleet says so. Without the ledger there is
// nothing to report, and Read fails.
func (r Reader) Read(ctx context.Context, f Filter) (Fleet, error) {
	w := &reading{Reader: r, filter: f, others: make(map[ec2ref.Instance]time.Time), fleet: Fleet{
		Records:  make(map[ec2ref.Instance]ledger.Record),
		Refusals: make(map[ec2ref.Instance]ledger.Refusal),
		EC2:      make(map[ec2ref.Place]map[ec2ref.InstanceID]string),
	}}
	asking := ctx // the group's context ends with the group
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return w.readLedger(ctx) })
	group.Go(func() error { return w.readNodes(ctx) })
	group.Go(func() error { return w.readEC2(ctx) })
	if err := group.Wait(); err != nil {
		return Fleet{}, err
	}
	known, err := w.readMembers(asking)
	if err != nil {
		return Fleet{}, err
	}
	w.noteUnlisted(known)
	w.leaveOutOthers()
	slices.SortFunc(w.fleet.Gaps, func(a, b Gap) int { return strings.Compare(a.String(), b.String()) })
	return w.fleet, nil
}

// reading is a Read in progress. The sources fill different fields of the fleet.
type reading struct {
	Reader
	filter Filter

	mu    sync.Mutex // guards EC2 and Gaps
	fleet Fleet
	// others are the instances that other signers enrolled, with their last renewals.
	others map[ec2ref.Instance]time.Time
}

func (w *reading) readLedger(ctx context.Context) error {
	return w.Ledger.Each(ctx, ledger.Visitor{
		Record: func(i ec2ref.Instance, r ledger.Record) error {
			if !w.filter.covers(i.Place()) {
				return nil
			}
			if r.Signer != "" && r.Signer != w.Audience {
				w.others[i] = r.Renewed
				return bounded(len(w.others))
			}
			r.Fingerprints, r.ImageTags = nil, nil // nobody reports them
			w.fleet.Records[i] = r
			return bounded(len(w.fleet.Records))
		},
		Refusal: func(i ec2ref.Instance, r ledger.Refusal) error {
			if w.filter.covers(i.Place()) {
				w.fleet.Refusals[i] = r
			}
			return bounded(len(w.fleet.Refusals))
		},
	})
}

func bounded(n int) error {
	if n > maxInstances {
		return ErrTooMany
	}
	return nil
}

func (w *reading) readNodes(ctx context.Context) error {
	nodes, err := w.Nodes(ctx)
	if err != nil {
		w.gap(Gap{Source: sourceTeleport, Error: oneLine(err)})
		return nil
	}
	byInstance := make(map[ec2ref.Instance]node.Node, len(nodes))
	for _, n := range nodes {
		// If a node's labels do not fit its id, this signer did not write it.
		if i, ok := n.Instance(); ok && w.filter.covers(i.Place()) {
			byInstance[i] = n
		}
	}
	w.fleet.Nodes = byInstance
	return bounded(len(byInstance))
}

func (w *reading) readEC2(ctx context.Context) error {
	return w.readPlaces(ctx, w.Places)
}

func (w *reading) readPlaces(ctx context.Context, places []ec2ref.Place) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(placesAtOnce)
	for _, at := range places {
		if w.filter.covers(at) {
			group.Go(func() error { return w.readPlace(ctx, at) })
		}
	}
	return group.Wait()
}

// readMembers asks EC2 about the organization's accounts, and returns all places that EC2 was
// asked about or need not be.
func (w *reading) readMembers(ctx context.Context) (known []ec2ref.Place, err error) {
	if w.Members == nil {
		return w.Places, nil
	}
	members, err := w.Members(ctx)
	if err != nil {
		w.gap(Gap{Source: sourceOrganization, Error: oneLine(err)})
		return slices.Collect(maps.Keys(w.named())), nil // that gap says enough of them
	}
	named := w.named()
	asked := slices.DeleteFunc(members, func(at ec2ref.Place) bool { return len(w.filter.Accounts) == 0 && !named[at] })
	return append(slices.Clone(w.Places), asked...), w.readPlaces(ctx, asked)
}

// named returns the places that the ledger names.
func (w *reading) named() map[ec2ref.Place]bool {
	named := make(map[ec2ref.Place]bool)
	for i := range w.fleet.Records {
		named[i.Place()] = true
	}
	for i := range w.fleet.Refusals {
		named[i.Place()] = true
	}
	return named
}

func (w *reading) readPlace(ctx context.Context, at ec2ref.Place) error {
	// With another account's credentials, every instance would look gone.
	err := w.EC2.CheckAccount(ctx, at.Account)
	var states map[ec2ref.InstanceID]string
	if err == nil {
		states, err = w.EC2.States(ctx, at)
	}
	if err != nil {
		w.gap(Gap{Source: sourceEC2, Account: at.Account, Region: at.Region, Error: oneLine(err)})
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fleet.EC2[at] = states
	return bounded(len(states))
}

func (w *reading) gap(g Gap) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fleet.Gaps = append(w.fleet.Gaps, g)
}

// leaveOutOthers drops what EC2 says about instances of other signers: their nodes are not this
// signer's, so they would seem never to have enrolled. If such an instance was refused since its
// last renewal, it may be moving to this signer, and stays.
func (w *reading) leaveOutOthers() {
	for i, renewed := range w.others {
		_, hasNode := w.fleet.Nodes[i]
		refused := w.fleet.Refusals[i].At
		if hasNode || !refused.IsZero() && !refused.Before(renewed) {
			continue
		}
		delete(w.fleet.Refusals, i)
		delete(w.fleet.EC2[i.Place()], i.ID)
	}
}

// errUnlisted is the gap of accounts and regions that the deployment no longer lists.
var errUnlisted = errors.New("neither deployment.yaml nor the organization lists it")

// noteUnlisted records places that have records but that nobody lists, so EC2
// was not asked about them.
func (w *reading) noteUnlisted(known []ec2ref.Place) {
	noted := make(map[ec2ref.Place]bool)
	for i, r := range w.fleet.Records {
		at := i.Place()
		if !r.Retired && !noted[at] && !slices.Contains(known, at) {
			noted[at] = true
			w.gap(Gap{Source: sourceEC2, Account: at.Account, Region: at.Region, Error: errUnlisted.Error()})
		}
	}
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
