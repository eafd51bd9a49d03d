package upkeep

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// closed is a network in which some nodes cannot be reached.
type closed struct {
	mu    sync.Mutex
	ports map[string]bool
}

func (c *closed) set(w *world, n int, is bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ports == nil {
		c.ports = make(map[string]bool)
	}
	c.ports[w.nodes[ref(n).NodeID()].Address] = is
}

func (c *closed) probe(_ context.Context, address string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ports[address] {
		return errors.New("connection refused")
	}
	return nil
}

func newHealthWorld(t *testing.T, nodes int) (*world, *closed) {
	w := newWorld(t)
	for n := 1; n <= nodes; n++ {
		w.enroll(n)
	}
	c := new(closed)
	w.fleet.Health, w.fleet.Probe = &w.ledger, c.probe
	return w, c
}

func (w *world) checkHealth() HealthReport {
	w.t.Helper()
	report, err := w.fleet.CheckHealth(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return report
}

func (w *world) wantHealth(n int, want string) {
	w.t.Helper()
	server, found := w.node(n)
	if got := server.Labels[node.HealthLabel]; !found || got != want {
		w.t.Errorf("node %d: found %v, health %q, want %q", n, found, got, want)
	}
}

func (w *world) reportsHealth(n int, state string) {
	w.t.Helper()
	if _, err := w.ledger.ReportHealth(w.t.Context(), ref(n), ledger.HealthReport{State: state, At: w.now, Fingerprint: fmt.Sprintf("SHA256:%d", n)}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) upserts() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, call := range w.calls {
		if strings.HasPrefix(call, "upsert") {
			n++
		}
	}
	return n
}

// A closed port shows at the next check, an open one at the check after; a node is written
// only when its label changes.
func TestCheckHealth(t *testing.T) {
	w, network := newHealthWorld(t, 3)
	w.reportsHealth(1, "ok")
	w.checkHealth()
	w.wantHealth(1, "ok")
	w.wantHealth(2, "") // never reported, and can be reached
	before := w.upserts()
	for range 3 {
		if report := w.checkHealth(); report != (HealthReport{Nodes: 3, Probed: 3}) {
			t.Errorf("nothing changed: %+v", report)
		}
	}
	if n := w.upserts() - before; n != 0 {
		t.Errorf("%d nodes were written, and nothing changed", n)
	}

	network.set(w, 1, true)
	network.set(w, 2, true)
	if report := w.checkHealth(); report.Changed != 2 || report.Suspected != 0 {
		t.Errorf("two closed ports: %+v", report)
	}
	w.wantHealth(1, "unreachable")
	w.wantHealth(2, "unreachable")
	w.wantHealth(3, "")
	if report := w.sweep(0); report.Repaired != 0 {
		t.Errorf("the sweep wrote %d nodes: it knows nothing of the probes", report.Repaired)
	}
	w.wantHealth(1, "unreachable")

	network.set(w, 1, false)
	network.set(w, 2, false)
	w.checkHealth()
	w.wantHealth(1, "ok")
	w.wantHealth(2, "")
}

// Without a route to the machines, the sweep shows what they report.
func TestSweepShowsReports(t *testing.T) {
	w, _ := newHealthWorld(t, 1)
	w.fleet.Probe = nil
	w.reportsHealth(1, "certificate")
	if report := w.sweep(0); report.HealthChanged != 1 {
		t.Errorf("report %+v", report)
	}
	w.wantHealth(1, "certificate")
	w.now = w.now.Add(node.SilentAfter + time.Minute)
	w.sweep(0)
	w.wantHealth(1, "silent")
	w.reportsHealth(1, "ok")
	w.sweep(0)
	w.wantHealth(1, "ok")
}

// A fleet that no longer probes forgets what it last found out: nothing else would, and the node
// would stay marked forever.
func TestSweepForgetsProbes(t *testing.T) {
	w, network := newHealthWorld(t, 2)
	network.set(w, 1, true)
	w.reportsHealth(1, "ok")
	w.checkHealth()
	w.wantHealth(1, "unreachable")
	w.fleet.Probe = nil
	if report := w.sweep(0); report.HealthChanged != 1 || report.Failed != 0 {
		t.Errorf("report %+v", report)
	}
	w.wantHealth(1, "ok")
	before := w.ledger.String()
	w.sweep(0)
	if after := w.ledger.String(); after != before {
		t.Errorf("another sweep wrote to the ledger:\n%s", after)
	}
}

// If upkeep's own network fails, every probe does. That marks no node.
func TestManyUnreachable(t *testing.T) {
	w, network := newHealthWorld(t, 20)
	for n := range 5 {
		network.set(w, n+1, true)
	}
	report := w.checkHealth()
	if report.Suspected != 5 || report.Changed != 0 || !strings.Contains(w.log.String(), "none marked") {
		t.Errorf("report %+v, log %s", report, w.log.String())
	}
	w.wantHealth(1, "")
	if !strings.Contains(w.log.String(), "health_changed_percent=25") {
		t.Errorf("log %s", w.log.String())
	}
	network.set(w, 5, false) // a fifth is not more than a fifth
	if report := w.checkHealth(); report.Suspected != 0 || report.Changed != 4 {
		t.Errorf("report %+v", report)
	}
	// That others fail too keeps nobody marked whose port is open again.
	for n := range 20 {
		network.set(w, n+1, n > 0)
	}
	w.checkHealth()
	w.wantHealth(1, "")
	w.wantHealth(2, "unreachable")
	w.wantHealth(20, "")
}

// Machines that are stopped at night are no fault of upkeep's network, and hide no closed port.
func TestManyStopped(t *testing.T) {
	w, network := newHealthWorld(t, 20)
	for n := 1; n <= 8; n++ {
		network.set(w, n, true)
	}
	for n := 1; n <= 7; n++ {
		w.instances[ref(n).ID].State = inventory.StateStopped
	}
	w.ec2Err = errors.New("throttled")
	if report, err := w.fleet.CheckHealth(t.Context()); err != nil || report.Suspected != 8 || report.Changed != 0 {
		t.Errorf("EC2 does not answer: %+v, error %v", report, err)
	}
	w.ec2Err = nil
	if report := w.checkHealth(); report.Suspected != 0 || report.Changed != 8 {
		t.Errorf("report %+v", report)
	}
	w.wantHealth(1, "unreachable")
	w.wantHealth(8, "unreachable")

	// Those that run are still suspected, if they are many themselves.
	for n := 9; n <= 14; n++ {
		network.set(w, n, true)
	}
	w.instances[ref(9).ID].State = inventory.StateStopped
	if report := w.checkHealth(); report.Suspected != 5 || report.Changed != 1 {
		t.Errorf("report %+v", report)
	}
	w.wantHealth(9, "unreachable")
	w.wantHealth(10, "")
}

// A machine that was stopped for long is not silent once it has enrolled again.
func TestStartedMachineIsNotSilent(t *testing.T) {
	w, _ := newHealthWorld(t, 1)
	w.fleet.Probe = nil
	w.reportsHealth(1, "ok")
	w.now = w.now.Add(20 * time.Hour)
	w.sweep(0)
	w.wantHealth(1, "silent")
	w.enroll(1)
	w.wantHealth(1, "ok")
	w.now = w.now.Add(time.Hour)
	if report := w.sweep(0); report.HealthChanged != 0 {
		t.Errorf("report %+v", report)
	}
	w.wantHealth(1, "ok")
}

// No node is ever removed because of its health, whatever is wrong.
func TestHealthNeverRemoves(t *testing.T) {
	w, network := newHealthWorld(t, 4)
	for n := 1; n <= 4; n++ {
		network.set(w, n, true)
		w.reportsHealth(n, "unreachable")
	}
	for range 50 {
		w.now = w.now.Add(time.Hour)
		w.checkHealth()
		w.sweep(0)
	}
	for n := 1; n <= 4; n++ {
		w.wantHealth(n, "unreachable")
	}
}

// A retired instance's node is the sweep's business, and an unconfirmed one's too.
func TestHealthOfOthers(t *testing.T) {
	w, network := newHealthWorld(t, 2)
	network.set(w, 1, true)
	if err := w.ledger.Retire(t.Context(), ref(1)); err != nil {
		t.Fatal(err)
	}
	w.relabel(2, "other.example.com")
	before := w.upserts()
	if report := w.checkHealth(); report.Probed != 0 || report.Changed != 0 || w.upserts() != before {
		t.Errorf("report %+v", report)
	}
}

// A check that runs out of time says nothing about the nodes that it did not reach.
func TestHealthRunsOut(t *testing.T) {
	w, _ := newHealthWorld(t, 3)
	ctx, cancel := context.WithCancel(t.Context())
	w.fleet.Probe = func(ctx context.Context, _ string) error {
		cancel()
		return ctx.Err()
	}
	if _, err := w.fleet.CheckHealth(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	record, err := w.ledger.Lookup(t.Context(), ref(1))
	if err != nil || record.Health.Unreachable {
		t.Errorf("health %+v, error %v", record.Health, err)
	}
}

func TestChangedPercent(t *testing.T) {
	for _, row := range []struct{ changed, all, want int }{{0, 0, 0}, {4, 4, 0}, {5, 5, 100}, {5, 100, 5}, {200, 1000, 20}} {
		if got := changedPercent(row.changed, row.all); got != row.want {
			t.Errorf("%d of %d: %d, want %d", row.changed, row.all, got, row.want)
		}
	}
}

func TestProbe(t *testing.T) {
	serve := func(text string) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(conn, text)
				_ = conn.Close()
			}
		}()
		return l.Addr().String()
	}
	if err := Probe(t.Context(), serve("SSH-2.0-OpenSSH_9.2\r\n")); err != nil {
		t.Error(err)
	}
	for name, text := range map[string]string{"a web server": "HTTP/1.1 400", "nothing": "", "cut": "SS"} {
		if err := Probe(t.Context(), serve(text)); err == nil {
			t.Errorf("%s passes for sshd", name)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := Probe(t.Context(), l.Addr().String()); err == nil {
		t.Error("a closed port passes")
	}
}

// TestHealthOverAMillionChecks simulates healthy machines whose reports and probes get lost
// and arrive late. None loses "ok" for longer than one round.
func TestHealthOverAMillionChecks(t *testing.T) {
	const (
		machines   = 1000 // with 15 checks in each of 70 rounds: a million
		rounds     = 70
		loss       = 0.05
		perRound   = 15 // checks of upkeep
		checkEvery = 4 * time.Minute
	)
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same every time
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	lost := 0
	for m := range machines {
		var l ledger.Memory
		i := ref(m + 1)
		c := ledger.Claim{Instance: i, Fingerprints: []string{"SHA256:a"}, Hostname: "web", ValidUntil: start.Add(365 * 24 * time.Hour)}
		g, err := l.Claim(t.Context(), c, start)
		if err == nil {
			err = l.Confirm(t.Context(), c, g, start)
		}
		if err == nil {
			_, err = l.ReportHealth(t.Context(), i, ledger.HealthReport{State: "ok", At: start, Fingerprint: "SHA256:a"})
		}
		if err != nil {
			t.Fatal(err)
		}
		var since time.Time // when the label was last seen to be other than ok
		var late []ledger.HealthReport
		for round := range rounds {
			begin := start.Add(time.Duration(round+1) * time.Hour)
			if random.Float64() >= loss {
				at := begin.Add(time.Duration(random.Int64N(int64(10 * time.Minute))))
				late = append(late, ledger.HealthReport{State: "ok", At: at, Fingerprint: "SHA256:a"})
			}
			for check := range perRound {
				now := begin.Add(time.Duration(check) * checkEvery)
				// Each report is up to an hour late, and they overtake one another.
				for n := 0; n < len(late); {
					if late[n].At.After(now) || random.Float64() > 0.3 {
						n++
						continue
					}
					if _, err := l.ReportHealth(t.Context(), i, late[n]); err != nil {
						t.Fatal(err)
					}
					late = append(late[:n], late[n+1:]...)
				}
				unreachable := true
				for range probeTries {
					unreachable = unreachable && random.Float64() < loss
				}
				if _, err := l.NoteProbe(t.Context(), i, unreachable); err != nil {
					t.Fatal(err)
				}
				if isOK(t, &l, i, now) {
					since = time.Time{}
					continue
				}
				lost++
				if since.IsZero() {
					since = now
				}
				if now.Sub(since) >= time.Hour {
					t.Fatalf("machine %d is not ok from %s to %s", m, since, now)
				}
			}
		}
	}
	t.Logf("%d of %d checks showed a healthy machine as something else", lost, machines*rounds*perRound)
}

func isOK(t *testing.T, l *ledger.Memory, i ec2ref.Instance, now time.Time) bool {
	t.Helper()
	r, err := l.Lookup(t.Context(), i)
	if err != nil {
		t.Fatal(err)
	}
	return node.Health(r, now) == "ok"
}

// Machines that were stopped for hours are silent. That a policy now removes the nodes of
// stopped instances is for the sweep, which stops at a limit.
func TestHealthCheckRemovesNoStoppedNodes(t *testing.T) {
	const nodes = 25
	w, _ := newHealthWorld(t, nodes)
	w.fleet.Probe = nil
	for n := 1; n <= nodes; n++ {
		w.reportsHealth(n, "ok")
		stop(w.instances[ref(n).ID])
	}
	w.now = w.now.Add(node.SilentAfter + time.Minute)
	w.setPolicy(removing)
	if report := w.sweep(0); report.OverLimit != nodes || report.Deleted > 0 {
		t.Errorf("sweep: %+v", report)
	}
	if report := w.checkHealth(); report.Changed != nodes || report.Failed > 0 {
		t.Errorf("health check: %+v", report)
	}
	for n := 1; n <= nodes; n++ {
		w.wantHealth(n, "silent")
	}
}
