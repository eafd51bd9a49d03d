package upkeep

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
)

// Report is the result of a sweep.
type Report struct {
	Nodes int // this signer's, in the listed accounts and regions
	// Deleted counts nodes of instances that are gone, or that are stopped if the policy
	// removes the nodes of stopped instances.
	Deleted int
	// Repaired counts nodes that differed from what they should be: in labels, address,
	// host name or lease, or because the instance was retired or left.
	Repaired int `json:"Mended"`
	// Refused counts nodes of running instances that the policy no longer admits. They
	// stay until their leases expire, and cannot be renewed: a mistake in a policy must not
	// empty a cluster.
	Refused int
	// Incomplete counts nodes of running instances for which EC2 does not show something
	// that the policy needs, such as an address or the image. They stay unchanged.
	Incomplete int
	// Unenrolled counts running instances without a node. Where members of the organization
	// have no nodes at all, it covers memberPlaces accounts and regions in each sweep.
	Unenrolled int
	// Foreign counts nodes with this signer's label that do not belong to an instance of
	// a listed account and region, or that have another instance's id. They stay
	// unchanged.
	Foreign int
	// Missing counts nodes of instances that EC2 does not show and that must be missing
	// again in a later sweep.
	Missing int
	// OverLimit counts nodes of missing instances that stay because there are more than
	// the limit allows.
	OverLimit int
	// Failed counts the accounts and regions that EC2 did not answer for, and nodes that
	// could not be deleted or repaired.
	Failed int
	// HealthChanged counts nodes whose health label was out of date.
	HealthChanged int
	// Next is the account and region where the next sweep begins, empty if all were
	// covered.
	Next string
}

// ownNode is a node that this signer wrote.
type ownNode struct {
	instance ec2ref.Instance
	node     node.Node
}

// survey sorts the nodes of one account and region.
type survey struct {
	dead    []ownNode // EC2 says so
	missing []ownNode // EC2 does not show them
	stopped []ownNode // and the policy wants the node removed
	suspect []ownNode // may differ from what they should be
}

// run is a sweep in progress.
type run struct {
	pass
	limit *int // what is left of an operator's limit, nil without one
	// removable is how many nodes of stopped instances this sweep may still delete. A run that
	// may delete none, whatever the policy says, has none.
	removable *int
	noted     map[ec2ref.Place]bool // where instances were missing before
	byPlace   map[ec2ref.Place][]ownNode
	report    *Report
}

// Sweep compares all of this signer's nodes with EC2. It off-boards instances that are
// gone and repairs the other nodes. It may also off-board up to limit missing instances,
// or as many as the daily limit allows if limit is 0. It begins with the account and
// region that an earlier report named as Next, and stops when the context ends; the next
// sweep of that account and region finds the rest. One log line sums up the sweep.
func (f *Fleet) Sweep(ctx context.Context, from string, limit int) (Report, error) {
	start := f.Now()
	watched, t := f.watched()
	r, err := watched.newRun(ctx, limit)
	if err == nil {
		r.sweep(ctx, from)
		r.countMembers(ctx, f.Inventory)
	}
	f.logSweep(ctx, start, *r.report, t, err)
	return *r.report, err
}

// newRun lists this signer's nodes. The run has a report even if it fails.
func (f *Fleet) newRun(ctx context.Context, limit int) (run, error) {
	r := run{report: new(Report)}
	var err error
	if r.pass, err = f.newPass(ctx); err != nil {
		return r, err
	}
	nodes, err := r.nodes(ctx)
	if err != nil {
		return r, err
	}
	r.byPlace = r.sort(ctx, nodes, r.report)
	if r.noted, err = f.notedPlaces(ctx); err != nil {
		return r, err
	}
	if limit > 0 {
		r.limit, r.removable = &limit, &limit
	} else {
		removable := defaultLimit(r.report.Nodes)
		r.removable = &removable
	}
	return r, nil
}

// sweep goes through the accounts and regions until the context ends.
func (r run) sweep(ctx context.Context, from string) {
	places := placesFrom(r.byPlace, from)
	for n, at := range places {
		if r.sweepPlace(ctx, at, r.byPlace[at]); ctx.Err() != nil {
			if n == 0 {
				n = 1 % len(places) // a slow one must not block the others forever
			}
			r.report.Next = places[n].String()
			break
		}
		r.byPlace[at] = nil // free the memory for the next
	}
}

// placesFrom returns the places in order, beginning with the given one.
func placesFrom(byPlace map[ec2ref.Place][]ownNode, from string) []ec2ref.Place {
	places := slices.SortedFunc(maps.Keys(byPlace), func(a, b ec2ref.Place) int { return cmp.Compare(a.String(), b.String()) })
	if start := slices.IndexFunc(places, func(p ec2ref.Place) bool { return p.String() >= from }); start > 0 {
		return slices.Concat(places[start:], places[:start])
	}
	return places
}

func (r run) sweepPlace(ctx context.Context, at ec2ref.Place, nodes []ownNode) {
	s, err := r.survey(ctx, at, nodes)
	if err != nil {
		// EC2 did not answer for this place: change nothing there.
		if ctx.Err() == nil { // or it is only late
			r.report.Failed++
			r.Log.ErrorContext(ctx, "EC2 could not be asked", slog.Any("", at), slog.Any("error", err))
		}
		return
	}
	if err := r.settle(ctx, at, &s, len(nodes)); err != nil && ctx.Err() == nil {
		r.report.Failed++
		r.Log.ErrorContext(ctx, "cannot check instances that EC2 does not show; their nodes stay", slog.Any("", at), slog.Int("missing", len(s.missing)), slog.Any("error", err))
	}
	if len(s.stopped) > *r.removable {
		r.report.OverLimit += len(s.stopped)
		r.Log.ErrorContext(ctx, "too many nodes of stopped instances to delete in one sweep; none deleted here; check the policy, then sweep with a higher limit",
			slog.Any("", at), slog.Int("stopped", len(s.stopped)), slog.Bool("alarm", true))
		s.stopped = nil
	}
	*r.removable -= len(s.stopped)
	r.tidy(ctx, at, s)
}

// settle decides which of the missing instances count as gone.
func (r run) settle(ctx context.Context, at ec2ref.Place, s *survey, nodes int) error {
	if len(s.missing) == 0 && !r.noted[at] {
		return nil
	}
	byInstance := make(map[ec2ref.Instance]ownNode, len(s.missing))
	missing := make([]ec2ref.Instance, len(s.missing))
	for n, o := range s.missing {
		missing[n], byInstance[o.instance] = o.instance, o
	}
	all := func(string) bool { return true } // EC2 listed all there is
	gone, waiting, overLimit, err := r.absent(ctx, at, missing, all, func() (size, error) { return size{r.report.Nodes, nodes}, nil }, r.limit)
	r.report.Missing += waiting
	r.report.OverLimit += overLimit
	if r.limit != nil {
		*r.limit -= len(gone)
	}
	for _, i := range gone {
		s.dead = append(s.dead, byInstance[i])
	}
	return err
}

// notedPlaces returns the accounts and regions with instances noted as missing.
func (f *Fleet) notedPlaces(ctx context.Context) (map[ec2ref.Place]bool, error) {
	var noted map[ec2ref.Place]bool
	err := f.noteAbsences(ctx, f.Now(), func(a absences) {
		noted = make(map[ec2ref.Place]bool)
		for key := range a.Missing {
			if i, err := ec2ref.ParseInstance(key); err == nil {
				noted[i.Place()] = true
			}
		}
	})
	return noted, err
}

// sort groups this signer's nodes by account and region. It leaves out nodes of unlisted
// accounts and regions, and nodes whose labels do not match their id. Accounts of the
// organization that have no nodes are not among the groups: there may be thousands.
func (s scope) sort(ctx context.Context, nodes []node.Node, report *Report) map[ec2ref.Place][]ownNode {
	byPlace := make(map[ec2ref.Place][]ownNode)
	for _, account := range s.Accounts {
		for _, region := range s.Regions {
			byPlace[ec2ref.Place{Account: account, Region: region}] = nil
		}
	}
	for _, found := range nodes {
		i, ok := found.Instance()
		p := i.Place()
		if !ok || !s.has(p) || found.Signer() != s.Audience {
			report.Foreign++
			s.Log.WarnContext(ctx, "node with this signer's label belongs to no listed instance; left unchanged", slog.String("node_id", found.ID),
				slog.Any("", i))
			continue
		}
		report.Nodes++
		byPlace[p] = append(byPlace[p], ownNode{i, found})
	}
	return byPlace
}

func (r run) survey(ctx context.Context, at ec2ref.Place, nodes []ownNode) (survey, error) {
	live, err := r.Inventory.All(ctx, at)
	if err != nil {
		return survey{}, err
	}
	records, err := r.Ledger.LookupAll(ctx, instancesOf(nodes))
	if err != nil {
		return survey{}, err
	}
	r.forgetProbes(ctx, nodes, records)
	var s survey
	var missing []ownNode
	var refused []error
	for _, o := range nodes {
		i, listed := live[o.instance.ID]
		delete(live, o.instance.ID)
		if !listed && !records[o.instance].Retired {
			missing = append(missing, o)
		} else if err := r.judge(o, i, records[o.instance], &s); errors.Is(err, policy.ErrRefused) {
			refused = append(refused, err)
		} else if errors.Is(err, policy.ErrIncomplete) {
			r.incomplete(ctx, o, err)
		}
	}
	r.report.Unenrolled += running(live)
	r.refuse(ctx, at, refused)
	err = r.confirm(ctx, at, missing, &s)
	return s, err
}

// forgetProbes clears the results of earlier probes if the fleet no longer probes.
func (r run) forgetProbes(ctx context.Context, nodes []ownNode, records map[ec2ref.Instance]ledger.Record) {
	if r.Probe != nil || r.Health == nil {
		return
	}
	for _, o := range nodes {
		record := records[o.instance]
		if !record.Health.Unreachable || record.IsOut() || ctx.Err() != nil {
			continue
		}
		if _, err := r.Health.NoteProbe(ctx, o.instance, false); r.note(ctx, "clear the last probe of", o, err) {
			record.Health.Unreachable = false
			records[o.instance] = record
		}
	}
}

func running(instances map[ec2ref.InstanceID]*inventory.Instance) (n int) {
	for _, i := range instances {
		if i.State == inventory.StateRunning {
			n++
		}
	}
	return n
}

// judge sorts a node into the survey, based on the listings of EC2 and the ledger. The
// sweep asks both again before it writes. An error is policy.ErrRefused or
// policy.ErrIncomplete, and concerns a running instance.
func (r run) judge(o ownNode, i *inventory.Instance, record ledger.Record, s *survey) error {
	switch {
	case record.IsOut():
		s.suspect = append(s.suspect, o) // the process that recorded it, or wrote the node, died halfway
		return nil
	case isGone(i):
		s.dead = append(s.dead, o)
		return nil
	case r.isRemoved(i, record):
		s.stopped = append(s.stopped, o)
		return nil
	}
	want, err := r.render(i, record)
	switch {
	case err == nil && record.ConfirmedHostname == "":
		// An enrollment is in progress, or died halfway: its next attempt or the end of
		// the lease settles it.
	case err == nil && !isSame(want, o.node, record):
		if !o.isShown(record, r.Now()) {
			r.report.HealthChanged++
		}
		s.suspect = append(s.suspect, o)
	case err != nil && i.State == inventory.StateRunning: // others may just lack an address
		return err
	}
	return nil
}

// incomplete counts an instance that the policy cannot decide on now.
func (r run) incomplete(ctx context.Context, o ownNode, reason error) {
	r.report.Incomplete++
	r.Log.InfoContext(ctx, "EC2 does not show every fact that the policy needs; node left unchanged", slog.Any("", o.instance), slog.String("node_id", o.node.ID), slog.Any("reason", reason))
}

// refuse counts the refusals in one account and region, with one log line: there may be
// thousands, all for one reason.
func (r run) refuse(ctx context.Context, at ec2ref.Place, reasons []error) {
	if len(reasons) == 0 {
		return
	}
	r.report.Refused += len(reasons)
	r.Log.WarnContext(ctx, "policy no longer admits enrolled instances; their nodes stay until their leases expire",
		slog.Any("", at), slog.Int("instances", len(reasons)), slog.Any("first", reasons[0]))
}

// confirm asks EC2 by id about instances that a listing lacked: an instance that starts
// while EC2 sends pages may be on none of them.
func (r run) confirm(ctx context.Context, at ec2ref.Place, missing []ownNode, s *survey) error {
	if len(missing) == 0 {
		return nil
	}
	found, err := r.Inventory.Instances(ctx, at, idsOf(missing))
	if err != nil {
		return err
	}
	for _, o := range missing {
		switch i := found[o.instance.ID]; {
		case i == nil:
			s.missing = append(s.missing, o)
		case isGone(i):
			s.dead = append(s.dead, o)
		}
	}
	return nil
}

func instancesOf(list []ownNode) []ec2ref.Instance {
	instances := make([]ec2ref.Instance, len(list))
	for n, o := range list {
		instances[n] = o.instance
	}
	return instances
}

func idsOf(list []ownNode) []ec2ref.InstanceID {
	ids := make([]ec2ref.InstanceID, len(list))
	for n, o := range list {
		ids[n] = o.instance.ID
	}
	return ids
}

// tidy acts on the survey as far as time allows; the next sweep finds the rest.
func (r run) tidy(ctx context.Context, at ec2ref.Place, s survey) {
	for _, o := range s.dead {
		if ctx.Err() != nil {
			return
		}
		deleted, err := r.offboard(ctx, o.instance)
		if r.note(ctx, "off-board", o, err) && deleted {
			r.report.Deleted++
		}
	}
	for batch := range slices.Chunk(slices.Concat(s.stopped, s.suspect), refreshBatch) {
		if ctx.Err() != nil {
			return
		}
		r.refresh(ctx, at, batch)
	}
}

// refreshBatch is how many instances the sweep asks EC2 about before it writes their
// nodes: as many as one call allows, and few enough that the answer is still fresh for
// the last of them.
const refreshBatch = 200

// refresh asks the ledger and then EC2 again before it writes. The listing may be older
// than the latest event, and a stopped instance may be running again.
func (r run) refresh(ctx context.Context, at ec2ref.Place, batch []ownNode) {
	records := make(map[ec2ref.InstanceID]ledger.Record, len(batch))
	var known []ownNode
	for _, o := range batch {
		record, err := r.Ledger.Announce(ctx, o.instance)
		if r.note(ctx, "announce the write of", o, err) {
			records[o.instance.ID] = record
			known = append(known, o)
		}
	}
	found, err := r.Inventory.Instances(ctx, at, idsOf(known))
	for _, o := range known {
		if ctx.Err() != nil {
			return
		}
		if !r.note(ctx, "ask EC2 again", o, err) {
			continue
		}
		r.repair(ctx, o, records[o.instance.ID], found[o.instance.ID])
	}
}

func (r run) repair(ctx context.Context, o ownNode, record ledger.Record, i *inventory.Instance) {
	w := r.follow(o.instance)
	w.removes = r.removable != nil
	written, err := w.relabel(ctx, record, i)
	switch {
	case errors.Is(err, policy.ErrRefused):
		r.refuse(ctx, o.instance.Place(), []error{err})
	case errors.Is(err, policy.ErrIncomplete):
		r.incomplete(ctx, o, err)
	case !r.note(ctx, "repair", o, err) || !written:
	case w.deleted && !record.IsOut(): // it is stopped
		r.report.Deleted++
	default:
		r.report.Repaired++
	}
}

// note reports whether an action succeeded, and counts and logs failures. An action that
// ran out of time is left to the next sweep, and is no failure.
func (r run) note(ctx context.Context, what string, o ownNode, err error) bool {
	if err != nil && ctx.Err() == nil {
		r.report.Failed++
		r.Log.ErrorContext(ctx, what+" failed", slog.Any("", o.instance), slog.String("node_id", o.node.ID), slog.Any("error", err))
	}
	return err == nil
}
