package agent

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/backoff"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/templates/systemd"
)

var update = flag.Bool("update", false, "rewrite the documents that tests keep true")

const (
	herdSize = 10_000
	herdSeed = 7 // any seed: each machine has its own random part, so the order of events does not matter
	bucket   = 10 * time.Minute
)

// herd is a fleet of machines with the real rules of waiting, a made-up signer, and a
// simulated clock.
type herd struct {
	began      time.Time
	downFrom   time.Duration // since began
	downUntil  time.Duration
	ends       time.Duration
	timer      time.Duration // the units' settings
	restart    time.Duration
	mu         sync.Mutex
	perMinute  []int
	unenrolled int
}

func newHerd(t *testing.T, downFrom, downUntil, ends time.Duration) *herd {
	return &herd{
		began: time.Now(), downFrom: downFrom, downUntil: downUntil, ends: ends,
		timer:     unitSetting(t, systemd.RenewTimer, "RandomizedDelaySec"),
		restart:   unitSetting(t, systemd.Service, "RestartSec"),
		perMinute: make([]int, int(ends/time.Minute)+1),
	}
}

// unitSetting reads a time from a unit, so that the simulation matches what is shipped.
func unitSetting(t *testing.T, unit []byte, name string) time.Duration {
	t.Helper()
	match := regexp.MustCompile(`(?m)^` + name + `=(\d+)(min|h)$`).FindSubmatch(unit)
	if match == nil {
		t.Fatalf("no %s in\n%s", name, unit)
	}
	d, err := time.ParseDuration(strings.Replace(string(match[1])+string(match[2]), "min", "m", 1))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// request asks the signer.
func (h *herd) request() error {
	since := time.Since(h.began)
	h.mu.Lock()
	defer h.mu.Unlock()
	if minute := int(since / time.Minute); minute < len(h.perMinute) {
		h.perMinute[minute]++
	}
	if since >= h.downFrom && since < h.downUntil {
		return fault.Newf(fault.Temporary, "", "connection refused")
	}
	return nil
}

// simulated is one machine.
type simulated struct {
	*herd
	random     *rand.Rand
	certified  bool
	renewAfter time.Time
	last       *failure
}

// wake is a run of hallmark renew.
func (m *simulated) wake(ctx context.Context) error {
	due, situation := !m.certified || !time.Now().Before(m.renewAfter), "nothing due"
	if due {
		situation = "due"
	}
	if err := m.last.backOff(situation, time.Now()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	attempts := 1 // the request for CAs
	if due {
		attempts = 1000
	}
	r := newPolicy(nil)
	r.Random = m.random.Float64
	err := r.Do(ctx, attempts, func(context.Context) (bool, time.Duration, error) {
		err := m.request()
		return err != nil, 0, err
	})
	if err != nil {
		m.last = m.last.next(situation, !m.certified, err, time.Now(), m.random.Float64())
		return err
	}
	m.last = nil
	if due {
		m.certified, m.renewAfter = true, spread(time.Now().Add(56*time.Hour), time.Now(), m.random.Float64())
	}
	return nil
}

// live wakes the machine as its units do: every hour at a random moment, and some minutes
// after a failed run.
func (m *simulated) live(ctx context.Context) {
	for {
		wait := time.Until(m.began.Add(time.Since(m.began).Truncate(time.Hour) + time.Hour + time.Duration(m.random.Float64()*float64(m.timer))))
		if m.wake(ctx) != nil {
			wait = m.restart
		}
		if backoff.Wait(ctx, wait) != nil {
			break
		}
	}
	if !m.certified {
		m.mu.Lock()
		m.unenrolled++
		m.mu.Unlock()
	}
}

// run lets all machines live, each starting at a moment within the first period.
func (h *herd) run(t *testing.T, while time.Duration, certified bool) {
	ctx, cancel := context.WithTimeout(t.Context(), h.ends)
	defer cancel()
	var all sync.WaitGroup
	for n := range herdSize {
		m := &simulated{herd: h, random: rand.New(rand.NewPCG(herdSeed, uint64(n))), certified: certified}
		m.renewAfter = h.began.Add(time.Duration(m.random.Float64() * float64(56*time.Hour)))
		start := time.Duration(m.random.Float64() * float64(while))
		all.Go(func() {
			if backoff.Wait(ctx, start) == nil {
				m.live(ctx)
			}
		})
	}
	all.Wait()
}

// peak returns the busiest minute between two times.
func (h *herd) peak(from, until time.Duration) int {
	most := 0
	for _, n := range h.perMinute[from/time.Minute : until/time.Minute] {
		most = max(most, n)
	}
	return most
}

// histogram draws the requests of each ten minutes.
func (h *herd) histogram() string {
	const width = 50
	steps := int(h.ends / bucket)
	var sums, peaks []int
	highest := 1
	for n := range steps {
		from := int(time.Duration(n) * bucket / time.Minute)
		sum := 0
		for _, requests := range h.perMinute[from : from+int(bucket/time.Minute)] {
			sum += requests
		}
		sums = append(sums, sum)
		peaks = append(peaks, h.peak(time.Duration(n)*bucket, time.Duration(n+1)*bucket))
		highest = max(highest, sum)
	}
	var b strings.Builder
	b.WriteString("  time  signer  requests  busiest minute\n")
	for n, sum := range sums {
		at, signer := time.Duration(n)*bucket, "up"
		if at >= h.downFrom && at < h.downUntil {
			signer = "down"
		}
		line := fmt.Sprintf(" %2d:%02d  %-6s  %8d  %14d  %s", int(at.Hours()), int(at.Minutes())%60, signer, sum, peaks[n], strings.Repeat("#", sum*width/highest))
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.String()
}

// keep updates a part of a document, between two comments that name it.
func keep(t *testing.T, document, name, content string) {
	t.Helper()
	path := filepath.Join("..", "..", "..", "docs", document)
	text := string(machinetest.ReadFile(t, path))
	begin, end := "<!-- begin "+name+" -->\n", "<!-- end "+name+" -->"
	before, rest, ok := strings.Cut(text, begin)
	old, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no part %q", document, name)
	}
	content = "```\n" + content + "```\n"
	if old == content {
		return
	}
	if !*update {
		t.Errorf("%s, %s: got\n%s\nwant\n%s\nrun go test with -update if that is right", document, name, old, content)
		return
	}
	if err := os.WriteFile(path, []byte(before+begin+content+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// After an outage, the machines do not all ask the signer at once.
func TestNoHerdAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHerd(t, 2*time.Hour, 5*time.Hour, 8*time.Hour)
		h.run(t, time.Hour, true)
		keep(t, "reliability.md", "outage", h.histogram())
		usual, after := h.peak(time.Hour, 2*time.Hour), h.peak(5*time.Hour, 8*time.Hour)
		if after > 3*usual {
			t.Errorf("%d requests in the busiest minute after the outage, %d before", after, usual)
		}
	})
}

// The worst case: all machines boot within a minute while the signer is down.
func TestNoHerdOfNewMachines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHerd(t, 0, 30*time.Minute, 2*time.Hour)
		h.run(t, time.Minute, false)
		keep(t, "reliability.md", "boot", h.histogram())
		if h.unenrolled > 0 {
			t.Errorf("%d machines are not enrolled ninety minutes after the outage", h.unenrolled)
		}
		if after := h.peak(30*time.Minute, 2*time.Hour); after > herdSize/4 {
			t.Errorf("%d machines enroll in one minute", after)
		}
	})
}
