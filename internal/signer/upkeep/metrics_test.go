package upkeep

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/golden"
	"github.com/hallmark-ssh/hallmark/internal/signer/emf/emftest"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// lastLine returns the log's one metric record, as text and decoded.
func (w *world) lastLine() (line []byte, entry map[string]any) {
	w.t.Helper()
	for text := range strings.Lines(w.log.String()) {
		if !strings.Contains(text, `"_aws"`) {
			continue
		}
		if line != nil {
			w.t.Fatalf("more than one record: %s", w.log.String())
		}
		line = []byte(text)
		if err := json.Unmarshal(line, &entry); err != nil {
			w.t.Fatal(err)
		}
	}
	if line == nil {
		w.t.Fatalf("no record: %s", w.log.String())
	}
	return line, entry
}

func (w *world) golden(name string) {
	w.t.Helper()
	line, entry := w.lastLine()
	emftest.Check(w.t, entry, w.now)
	var got bytes.Buffer
	if err := json.Indent(&got, line, "", "  "); err != nil {
		w.t.Fatal(err)
	}
	golden.Compare(w.t, filepath.Join("testdata", name), got.Bytes(), *update)
}

func newLoggedWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.fleet.Log = slog.New(slog.NewJSONHandler(&w.log, nil))
	return w
}

func TestLineOfABatch(t *testing.T) {
	w := newLoggedWorld(t)
	w.enroll(1)
	w.terminate(1)
	w.enroll(2).Tags["secret"] = "tags are not in the line"
	w.enroll(3)
	w.before = func() { w.now = w.now.Add(40 * time.Millisecond) }
	w.onUpsert = func(n node.Node) { w.log.Reset() } // its own line has the labels
	w.fleet.Handle(t.Context(), Batch{Records: []Message{
		message("m1", about(stateEvent, 1)),
		message("m2", about(stateEvent, 3)),
		message("m3", about(tagEvent, 2)),
		message("m4", strings.Replace(stateEvent, "terminated", "running", 1)),
		message("m5", "no event"),
	}})
	w.golden("events.json")
}

func TestLineOfASweep(t *testing.T) {
	w := newLoggedWorld(t)
	w.enroll(1)
	w.enroll(2)
	w.terminate(2)
	w.enroll(3).Tags["new"] = "tag"
	w.run(4)
	w.before = func() { w.now = w.now.Add(40 * time.Millisecond) }
	w.sweep(0)
	w.golden("sweep.json")
}

// Whatever finds that an instance is gone, one line says that it was off-boarded.
func TestLineOfAnOffboarding(t *testing.T) {
	event := func(w *world) {
		if err := w.stateChanged(ref(1)); err != nil {
			t.Error(err)
		}
	}
	sweep := func(w *world) { w.sweep(0) }
	missing := func(again func(*world)) func(*world) {
		return func(w *world) {
			w.hide(1)
			w.sweep(0)
			w.now = w.now.Add(absenceTime)
			again(w)
		}
	}
	for name, find := range map[string]func(*world){
		"terminated, by an event": func(w *world) { w.terminate(1); event(w) },
		"terminated, by a sweep":  func(w *world) { w.terminate(1); sweep(w) },
		"missing, by an event":    missing(event),
		"missing, by a sweep":     missing(sweep),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			untimed := func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					return slog.Attr{}
				}
				return a
			}
			w.fleet.Log = slog.New(slog.NewJSONHandler(&w.log, &slog.HandlerOptions{ReplaceAttr: untimed}))
			for n := range 3 {
				w.enroll(n)
			}
			find(w)
			var lines bytes.Buffer
			for text := range strings.Lines(w.log.String()) {
				if strings.Contains(text, "node_deleted") {
					if err := json.Indent(&lines, []byte(text), "", "  "); err != nil {
						t.Fatal(err)
					}
				}
			}
			golden.Compare(t, filepath.Join("testdata", "offboarded.json"), lines.Bytes(), *update)
		})
	}
}

// A machine that could not be taken out of Teleport is not off-boarded.
func TestNoLineOfAFailedOffboarding(t *testing.T) {
	w := newLoggedWorld(t)
	for n := range 3 {
		w.enroll(n)
	}
	w.hide(1)
	w.sweep(0)
	w.now = w.now.Add(absenceTime)
	w.fleet.Ledger = unretiring{w.fleet.Ledger}
	if err := w.stateChanged(ref(1)); err == nil {
		t.Error("no error")
	}
	if strings.Contains(w.log.String(), "off-boarded") {
		t.Errorf("log %s", w.log.String())
	}
}

// unretiring is a ledger that retires no record.
type unretiring struct{ Ledger }

func (unretiring) Retire(context.Context, ec2ref.Instance) error { return errors.New("no answer") }

func TestLinesOfFailures(t *testing.T) {
	w := newLoggedWorld(t)
	w.fleet.Connect = func(context.Context) (Cluster, error) { return nil, errors.New("refused") }
	if _, err := w.fleet.Sweep(t.Context(), "", 0); err == nil {
		t.Error("no error")
	}
	if _, entry := w.lastLine(); entry["sweeps"] != 0.0 || entry["sweep_failed"] != 1.0 || entry["level"] != "WARN" || entry["teleport_errors"] != 1.0 {
		t.Errorf("line %v", entry)
	}
	w.log.Reset()
	w.run(1)
	w.terminate(1)
	w.fleet.Handle(t.Context(), Batch{Records: []Message{message("m1", about(stateEvent, 1))}})
	if _, entry := w.lastLine(); entry["event_failures"] != 1.0 || entry["offboarded"] != 0.0 || entry["level"] != "WARN" {
		t.Errorf("line %v", entry)
	}
}

// Each service's failures count separately, and a negative answer is not a failure.
func TestServicesThatDoNotAnswer(t *testing.T) {
	failure := errors.New("connection lost")
	tests := map[string]struct {
		change func(*world)
		want   map[string]float64
	}{
		"all answer":   {func(*world) {}, nil},
		"EC2 does not": {func(w *world) { w.ec2Err = failure }, map[string]float64{"ec2_errors": 1}},
		"Teleport does not": {func(w *world) {
			w.fleet.Connect = func(context.Context) (Cluster, error) { return failingCluster{fakeCluster{w}, failure}, nil }
		}, map[string]float64{"teleport_errors": 1}},
		"Teleport has no node": {func(w *world) { clear(w.nodes) }, nil},
		"the ledger does not":  {func(w *world) { w.fleet.Ledger = failingLedger{w.fleet.Ledger, failure} }, map[string]float64{"ledger_errors": 1}},
		"the ledger has seen more": {func(w *world) {
			if err := w.ledger.SeeTags(t.Context(), ref(2), 1000); err != nil {
				t.Fatal(err)
			}
		}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newLoggedWorld(t)
			w.enroll(2)
			tt.change(w)
			w.fleet.Handle(t.Context(), Batch{Records: []Message{message("m1", about(tagEvent, 2))}})
			_, entry := w.lastLine()
			for _, name := range []string{"ec2_errors", "ledger_errors", "teleport_errors"} {
				if entry[name] != tt.want[name] {
					t.Errorf("%s is %v, want %v", name, entry[name], tt.want[name])
				}
			}
		})
	}
}

type failingCluster struct {
	Cluster
	err error
}

func (f failingCluster) Node(context.Context, string) (*node.Node, error) { return nil, f.err }

type failingLedger struct {
	Ledger
	err error
}

func (f failingLedger) Announce(context.Context, ec2ref.Instance) (ledger.Record, error) {
	return ledger.Record{}, f.err
}

func TestLineOfASweepThatStopped(t *testing.T) {
	w := newLoggedWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	w.onAll = func(string) { cancel() }
	if _, err := w.fleet.Sweep(ctx, "", 0); err != nil {
		t.Fatal(err)
	}
	if _, entry := w.lastLine(); entry["sweeps"] != 0.0 || entry["next"] != testAccount+"/"+testRegion {
		t.Errorf("line %v", entry)
	}
}

// lineOfAWalk returns the line about a step that ended one record of two.
func lineOfAWalk(t *testing.T) map[string]any {
	t.Helper()
	w := newLoggedWorld(t)
	w.leave(1, 2)
	w.lapse()
	w.terminate(1)
	w.step()
	w.wantStep("one is there, and quiet", ExpiredReport{Records: 1})
	for text := range strings.Lines(w.log.String()) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(text), &entry); err != nil {
			t.Fatal(err)
		}
		if entry["msg"] == "expired records" {
			if entry["ended"] != 1.0 || entry["records"] != 2.0 {
				t.Errorf("line %v", entry)
			}
			return entry
		}
	}
	t.Fatalf("no line: %s", w.log.String())
	return nil
}

// lineOfAHealthCheck returns the line of a check of one node.
func lineOfAHealthCheck(t *testing.T) map[string]any {
	t.Helper()
	w, _ := newHealthWorld(t, 1)
	w.fleet.Log = slog.New(slog.NewJSONHandler(&w.log, nil))
	w.checkHealth()
	var entry map[string]any
	if err := json.Unmarshal(w.log.Bytes(), &entry); err != nil || entry["msg"] != "health" || entry["probed"] != 1.0 {
		t.Fatalf("line %v, error %v", entry, err)
	}
	return entry
}

// Each member of the lines is explained, and nothing is explained that is not there.
func TestLinesAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	_, part, found := strings.Cut(string(text), "\n## The fleet's lines\n")
	if !found {
		t.Fatal("docs/audit.md has no part on the fleet's lines")
	}
	documented := make(map[string]bool)
	for _, row := range regexp.MustCompile("(?m)^\\| (`.*?`) \\|").FindAllStringSubmatch(part, -1) {
		for _, name := range regexp.MustCompile("`([a-z0-9_]+)`").FindAllStringSubmatch(row[1], -1) {
			documented[name[1]] = true
		}
	}
	// These are the members of every line, which the first part explains, and those that do
	// not occur in the golden lines.
	explained := []string{"time", "level", "msg", "signer", "_aws"}
	written := map[string]bool{"next": true, "login_left_s": true}
	for _, name := range []string{"testdata/events.json", "testdata/sweep.json", "../organization/testdata/reading.json"} {
		data, err := os.ReadFile(filepath.FromSlash(name))
		if err != nil {
			t.Fatal(err)
		}
		var entry map[string]any
		if err := json.Unmarshal(data, &entry); err != nil {
			t.Fatal(err)
		}
		for key := range entry {
			if !slices.Contains(explained, key) {
				written[key] = true
			}
		}
	}
	for _, line := range []map[string]any{lineOfAWalk(t), lineOfAHealthCheck(t)} {
		for key := range line {
			if !slices.Contains(explained, key) {
				written[key] = true
			}
		}
	}
	if a, b := slices.Sorted(maps.Keys(documented)), slices.Sorted(maps.Keys(written)); !slices.Equal(a, b) {
		t.Errorf("documented: %q\nwritten:    %q", a, b)
	}
}
