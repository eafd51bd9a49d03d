package upkeep

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/emf"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// HealthLedger records the results of probes. Package ledger implements it.
type HealthLedger interface {
	// NoteProbe reports whether the result differs from the recorded one.
	NoteProbe(ctx context.Context, i ec2ref.Instance, unreachable bool) (bool, error)
}

// HealthReport is the result of a health check.
type HealthReport struct {
	Nodes   int // this signer's, in the listed accounts and regions
	Probed  int
	Changed int // nodes whose label was out of date
	// Suspected counts nodes that could not be reached any more, all at once. Their labels
	// stay: so many at once point to a fault in upkeep's own network.
	Suspected int
	Failed    int
}

// probes bounds how many nodes are probed at the same time. A Lambda function has 1,024
// file descriptors.
const probes = 256

// manyNodes is how many nodes must change at once before their share of the fleet counts:
// in a small fleet, one machine is a large share.
const manyNodes = 5

// many reports whether n of all nodes are more than a fifth, and more than a few.
func many(n, all int) bool { return n >= manyNodes && n*5 > all }

// CheckHealth probes all of this signer's nodes and updates the labels of those whose health
// has changed. It changes nothing else about a node, and never deletes one because of its
// health. It stops when the context ends; the next check finds the rest. One log line sums
// up the check.
func (f *Fleet) CheckHealth(ctx context.Context) (HealthReport, error) {
	start := f.Now()
	watched, t := f.watched()
	report, err := watched.checkHealth(ctx)
	f.logHealth(ctx, start, report, t, err)
	return report, err
}

func (f *Fleet) checkHealth(ctx context.Context) (HealthReport, error) {
	p, err := f.newPass(ctx)
	if err != nil {
		return HealthReport{}, err
	}
	found, err := p.nodes(ctx)
	if err != nil {
		return HealthReport{}, err
	}
	own := p.listed(found)
	report := HealthReport{Nodes: len(own)}
	records, err := f.Ledger.LookupAll(ctx, instancesOf(own))
	if err != nil {
		return report, err
	}
	own = slices.DeleteFunc(own, func(o ownNode) bool {
		return records[o.instance].IsOut() || records[o.instance].ConfirmedHostname == ""
	})
	reached := f.probeAll(ctx, own)
	report.Probed = len(reached)
	lost := slices.DeleteFunc(slices.Clone(own), func(o ownNode) bool {
		ok, probed := reached[o.instance]
		return !probed || ok || records[o.instance].Health.Unreachable
	})
	suspected := f.suspects(ctx, lost, len(reached))
	report.Suspected = len(suspected)
	for i := range suspected {
		delete(reached, i)
	}
	f.noteProbes(ctx, own, records, reached, &report)
	p.showHealth(ctx, own, records, &report)
	return report, nil
}

// listed returns the nodes that belong to an instance of a listed account or a member, in a
// listed region.
func (s scope) listed(nodes []node.Node) []ownNode {
	var own []ownNode
	for _, n := range nodes {
		i, ok := n.Instance()
		if ok && s.has(i.Place()) && n.Signer() == s.Audience {
			own = append(own, ownNode{i, n})
		}
	}
	return own
}

// probeAll returns whether each node could be reached. It leaves out nodes that it could not
// probe in time.
func (f *Fleet) probeAll(ctx context.Context, own []ownNode) map[ec2ref.Instance]bool {
	if f.Probe == nil {
		return nil
	}
	var mu sync.Mutex
	reached := make(map[ec2ref.Instance]bool, len(own))
	var group errgroup.Group
	group.SetLimit(probes)
	for _, o := range own {
		group.Go(func() error {
			err := f.Probe(ctx, o.node.Address)
			if ctx.Err() != nil {
				return nil // says nothing about the machine
			}
			mu.Lock()
			defer mu.Unlock()
			reached[o.instance] = err == nil
			return nil
		})
	}
	_ = group.Wait() // no probe fails as a whole
	return reached
}

// suspects returns those of the nodes that became unreachable about which the probes may be
// wrong: so many at once point to upkeep's own network. Machines that EC2 says are stopped are
// none of them.
func (f *Fleet) suspects(ctx context.Context, lost []ownNode, probed int) map[ec2ref.Instance]bool {
	if !many(len(lost), probed) {
		return nil
	}
	suspects := make(map[ec2ref.Instance]bool, len(lost))
	byPlace := make(map[ec2ref.Place][]ownNode)
	for _, o := range lost {
		suspects[o.instance] = true
		at := o.instance.Place()
		byPlace[at] = append(byPlace[at], o)
	}
	for at, nodes := range byPlace {
		found, err := f.Inventory.Instances(ctx, at, idsOf(nodes))
		if err != nil {
			f.Log.WarnContext(ctx, "EC2 could not be asked about unreachable nodes", slog.Any("", at), slog.Any("error", err))
			continue
		}
		for _, o := range nodes {
			if i := found[o.instance.ID]; isStopped(i) || isGone(i) {
				delete(suspects, o.instance)
			}
		}
	}
	if !many(len(suspects), probed) {
		return nil
	}
	f.Log.ErrorContext(ctx, "too many nodes became unreachable at once; none marked; check the network of the fleet function", slog.Int("unreachable", len(suspects)), slog.Int("probed", probed))
	return suspects
}

// noteProbes records the results that differ from the recorded ones.
func (f *Fleet) noteProbes(ctx context.Context, own []ownNode, records map[ec2ref.Instance]ledger.Record, reached map[ec2ref.Instance]bool, report *HealthReport) {
	for _, o := range own {
		ok, probed := reached[o.instance]
		if !probed || records[o.instance].Health.Unreachable == !ok || ctx.Err() != nil {
			continue
		}
		if _, err := f.Health.NoteProbe(ctx, o.instance, !ok); err != nil {
			report.Failed++
			f.Log.ErrorContext(ctx, "recording a probe failed", slog.Any("", o.instance), slog.Any("error", err))
			continue
		}
		r := records[o.instance]
		r.Health.Unreachable = !ok
		records[o.instance] = r
	}
}

// showHealth writes the nodes whose label is out of date, as the sweep writes a node that
// differs from what it should be.
func (p pass) showHealth(ctx context.Context, own []ownNode, records map[ec2ref.Instance]ledger.Record, report *HealthReport) {
	byPlace := make(map[ec2ref.Place][]ownNode)
	for _, o := range own {
		if o.isShown(records[o.instance], p.Now()) {
			continue
		}
		report.Changed++
		at := o.instance.Place()
		byPlace[at] = append(byPlace[at], o)
	}
	var sweep Report
	r := run{pass: p, report: &sweep}
	for at, changed := range byPlace {
		for batch := range slices.Chunk(changed, refreshBatch) {
			if ctx.Err() != nil {
				return
			}
			r.refresh(ctx, at, batch)
		}
	}
	report.Failed += sweep.Failed
}

// isShown reports whether the node's label says what is known of the machine's health.
func (o ownNode) isShown(r ledger.Record, now time.Time) bool {
	return o.node.Labels[node.HealthLabel] == node.Health(r, now)
}

// logHealth logs a health check.
func (f *Fleet) logHealth(ctx context.Context, start time.Time, r HealthReport, t *tally, err error) {
	m := emf.By("signer")
	m.Count("health_changed_percent", changedPercent(r.Changed+r.Suspected, r.Nodes))
	t.addTo(m)
	f.logLine(ctx, "health", err != nil || r.Failed+r.Suspected > 0, start, m, "health_ms",
		slog.Int("nodes", r.Nodes), slog.Int("probed", r.Probed), slog.Int("changed", r.Changed), slog.Int("suspected", r.Suspected), slog.Int("failed", r.Failed))
}

// changedPercent is what the alarm watches: the share of nodes whose health changed at once,
// and 0 for a few nodes.
func changedPercent(changed, all int) int {
	if changed < manyNodes || all == 0 {
		return 0
	}
	return 100 * changed / all
}

const (
	// probeTries and probeTimeout bound the probe of one node. Three tries keep a node whose
	// network loses one packet in twenty from being marked.
	probeTries   = 3
	probeTimeout = 3 * time.Second
)

// Probe connects to an address, host:port, and reads the beginning of SSH's identification
// (RFC 4253, section 4.2). It fails if no try succeeds. It does not log in.
func Probe(ctx context.Context, address string) error {
	var err error
	for range probeTries {
		if err = probeOnce(ctx, address); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

var errNotSSH = errors.New("something other than sshd answers")

func probeOnce(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	begin := make([]byte, len("SSH-"))
	if _, err := io.ReadFull(conn, begin); err != nil {
		return fmt.Errorf("read sshd's identification: %w", err)
	}
	if !bytes.Equal(begin, []byte("SSH-")) {
		return errNotSSH
	}
	return nil
}
