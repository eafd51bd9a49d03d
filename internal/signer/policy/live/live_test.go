package live

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/backoff"
	"github.com/hallmark-ssh/hallmark/internal/clocktest"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
)

// world is a parameter, a last good text, and a policy that uses both. Tests run in a bubble
// of package synctest, whose clock stands still until everything waits.
type world struct {
	policy *Policy
	log    bytes.Buffer

	mu       sync.Mutex
	text     string
	fetchErr error
	delay    time.Duration // of reading the parameter
	fetches  int

	last    string
	loadErr error
	saveErr error
	saves   int
	loads   int
}

func newWorld(text string) *world {
	w := &world{text: text}
	w.policy = w.restart()
	return w
}

// restart returns the policy of a process that starts now.
func (w *world) restart() *Policy {
	return New(Config{
		Fetch: w.fetch, LastGood: w, Limits: limits(), Now: time.Now, Log: slog.New(slog.NewJSONHandler(&w.log, nil)),
	})
}

func limits() policy.Limits {
	return policy.Limits{Accounts: []ec2ref.Account{"111122223333"}, Regions: []ec2ref.Region{"us-west-2"}, MaxLifetime: policy.LongestLifetime}
}

func (w *world) fetch(ctx context.Context) ([]byte, error) {
	w.mu.Lock()
	w.fetches++
	text, err, delay := w.text, w.fetchErr, w.delay
	w.mu.Unlock()
	if err := backoff.Wait(ctx, delay); err != nil {
		return nil, err
	}
	return []byte(text), err
}

func (w *world) Load(context.Context) ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.loads++
	if w.loadErr != nil || w.last == "" {
		return nil, w.loadErr
	}
	return []byte(w.last), nil
}

func (w *world) Save(_ context.Context, text []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.saves++
	if w.saveErr == nil {
		w.last = string(text)
	}
	return w.saveErr
}

// looks is how often the parameter was read, including looks that nobody waits for.
func (w *world) looks() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fetches
}

// put changes the parameter and makes the last look old.
func (w *world) put(text string, err error) {
	w.mu.Lock()
	w.text, w.fetchErr = text, err
	w.mu.Unlock()
	pass(maxAge + time.Second)
}

// pass lets time pass; in a bubble that takes none.
func pass(d time.Duration) { <-time.After(d) }

// inForce checks which text's policy is in force; empty means none.
func (w *world) inForce(t *testing.T, want string) {
	t.Helper()
	got, err := w.policy.Current(t.Context())
	switch {
	case want == "" && err == nil:
		t.Fatalf("policy %s is in force, want none", got.SHA256)
	case want == "":
	case err != nil:
		t.Fatal(err)
	case got.SHA256 != digest([]byte(want)):
		t.Fatalf("another policy is in force than %q", want)
	}
}

// alarms returns the lines about rejected policies so far.
func (w *world) alarms(t *testing.T) []map[string]any { return w.lines(t, EventRejected) }

// lines returns the alarm lines with an event so far.
func (w *world) lines(t *testing.T, event string) []map[string]any {
	t.Helper()
	var found []map[string]any
	for line := range strings.Lines(w.log.String()) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatal(err)
		}
		if entry["alarm"] == true {
			if entry["level"] != "ERROR" {
				t.Errorf("alarm at level %v", entry["level"])
			}
			if entry["event"] != EventRejected && entry["event"] != EventReset {
				t.Errorf("alarm with event %v", entry["event"])
			}
			if entry["event"] == event {
				found = append(found, entry)
			}
		}
	}
	return found
}

const (
	good   = "version: 1\nrules: [{name: good, match: {image_owners: [any], max_age: any}}]\n"
	better = "version: 1\nrules: [{name: better, match: {image_owners: [any], max_age: any}}]\n"
	broken = "version: 1\nrules: [{name: swordfish, shade: red}]\n"
	wide   = "version: 1\nrules: [{name: wide, match: {accounts: [\"999999999999\"], image_owners: [any], max_age: any}}]\n"
)

// run is a test in a bubble.
func run(t *testing.T, name string, test func(*testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

func TestChange(t *testing.T) {
	run(t, "is picked up when the last look is old", func(t *testing.T) {
		w := newWorld(good)
		w.inForce(t, good)
		w.text = better
		pass(maxAge)
		w.inForce(t, good)
		pass(time.Second)
		w.inForce(t, better)
		if w.fetches != 2 || len(w.alarms(t)) != 0 {
			t.Errorf("%d looks, want 2; log: %s", w.fetches, w.log.String())
		}
	})
	run(t, "is picked up when the clock went back", func(t *testing.T) {
		w := newWorld(good)
		w.inForce(t, good)
		w.text = better
		w.policy.config.Now = func() time.Time { return time.Now().Add(-time.Hour) }
		w.inForce(t, better)
	})
	run(t, "to an equal text parses and saves nothing", func(t *testing.T) {
		w := newWorld(good)
		w.inForce(t, good)
		first := w.policy.current
		w.put(good, nil)
		w.inForce(t, good)
		if w.policy.current != first || w.saves != 1 || w.fetches != 2 {
			t.Errorf("%d saves, %d looks", w.saves, w.fetches)
		}
	})
}

func TestBroken(t *testing.T) {
	for name, text := range map[string]string{"not valid": broken, "wider than the deployment": wide, "empty": ""} {
		run(t, name, func(t *testing.T) {
			w := newWorld(good)
			w.inForce(t, good)
			for range 2 {
				w.put(text, nil)
				w.inForce(t, good)
			}
			alarms := w.alarms(t)
			if len(alarms) != 2 {
				t.Fatalf("%d alarms, want one for each look: %s", len(alarms), w.log.String())
			}
			if alarms[0]["broken_sha256"] != digest([]byte(text)) || alarms[0]["policy_sha256"] != digest([]byte(good)) {
				t.Errorf("alarm %v", alarms[0])
			}
			if log := w.log.String(); strings.Contains(log, "swordfish") || strings.Contains(log, "shade") || strings.Contains(log, "999999999999") {
				t.Errorf("the broken text is in the log: %s", log)
			}
			if w.last != good || w.saves != 1 {
				t.Errorf("last good %q after %d saves", w.last, w.saves)
			}
			w.put(better, nil)
			w.inForce(t, better)
		})
	}
	run(t, "unreadable", func(t *testing.T) {
		w := newWorld(good)
		w.inForce(t, good)
		w.put("", errors.New("AccessDeniedException"))
		w.inForce(t, good)
		alarms := w.alarms(t)
		if len(alarms) != 1 || !strings.Contains(alarms[0]["error"].(string), "AccessDenied") || alarms[0]["broken_sha256"] != nil {
			t.Errorf("alarms %v", alarms)
		}
	})
}

// CloudFormation may replace an edited policy with the stack's first one.
func TestReset(t *testing.T) {
	const builtIn = "version: 1\nrules:\n  - name: default\n    match:\n      image_owners: [listed]\n      max_age: 24h\n"
	if p, err := policy.Default(limits()); err != nil || p.SHA256 != digest([]byte(builtIn)) {
		t.Fatalf("the built-in policy is another (%v)", err)
	}
	run(t, "under a running process", func(t *testing.T) {
		w := newWorld(good)
		w.inForce(t, good)
		w.put(builtIn, nil)
		w.inForce(t, builtIn)
		w.wantReset(t, good)
		pass(maxAge + time.Second)
		w.inForce(t, builtIn)
		w.wantReset(t, good) // logged once
	})
	run(t, "while none ran", func(t *testing.T) {
		w := newWorld(builtIn)
		w.last = good
		w.inForce(t, builtIn)
		w.wantReset(t, good)
	})
	run(t, "at the first start", func(t *testing.T) {
		w := newWorld(builtIn)
		w.inForce(t, builtIn)
		w.wantReset(t)
	})
	run(t, "by a stricter one", func(t *testing.T) {
		w := newWorld(builtIn)
		w.inForce(t, builtIn)
		w.put(better, nil)
		w.inForce(t, better)
		w.wantReset(t)
	})
}

// wantReset checks which texts the built-in policy has replaced so far, according to the log.
func (w *world) wantReset(t *testing.T, replaced ...string) {
	t.Helper()
	var got, want []string
	for _, line := range w.lines(t, EventReset) {
		got = append(got, fmt.Sprint(line["replaced_sha256"]))
	}
	for _, text := range replaced {
		want = append(want, digest([]byte(text)))
	}
	if !slices.Equal(got, want) {
		t.Errorf("the log says that the built-in policy replaced %q, want %q", got, want)
	}
}

func TestStart(t *testing.T) {
	failed := errors.New("no route to host")
	tests := map[string]struct {
		text     string
		fetchErr error
		last     string
		loadErr  error
		want     string // the text in force
		alarms   int
		saves    int
	}{
		"nothing stored yet":                 {text: good, want: good, saves: 1},
		"the same is stored":                 {text: good, last: good, want: good},
		"another is stored":                  {text: better, last: good, want: better, saves: 1},
		"the store cannot be read":           {text: good, loadErr: failed, want: good, saves: 1},
		"broken, with a last good one":       {text: broken, last: good, want: good, alarms: 1},
		"unreadable, with a last good one":   {fetchErr: failed, last: good, want: good, alarms: 1},
		"broken, with nothing stored":        {text: broken, alarms: 1},
		"unreadable, with nothing stored":    {fetchErr: failed, alarms: 1},
		"both unreadable":                    {fetchErr: failed, loadErr: failed, alarms: 1},
		"broken, the last good one too wide": {text: broken, last: wide, alarms: 1},
		"broken, the last good one broken":   {text: broken, last: "version: 7", alarms: 1},
	}
	for name, tt := range tests {
		run(t, name, func(t *testing.T) {
			w := newWorld(tt.text)
			w.fetchErr, w.last, w.loadErr = tt.fetchErr, tt.last, tt.loadErr
			w.inForce(t, tt.want)
			if alarms := w.alarms(t); len(alarms) != tt.alarms || w.saves != tt.saves || w.loads != 1 {
				t.Errorf("%d alarms, %d saves, %d loads; log: %s", len(alarms), w.saves, w.loads, w.log.String())
			}
			// A second look in the same process reads and stores only what is new.
			want := tt.saves
			if w.last != good {
				want++
			}
			w.put(good, nil)
			w.inForce(t, good)
			if w.saves != want || w.last != good {
				t.Errorf("%d saves, want %d; last good %q", w.saves, want, w.last)
			}
		})
	}
}

func TestAProcessWithoutPolicyLooksAgainAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(broken)
		w.inForce(t, "")
		w.text = good
		w.inForce(t, good)
	})
}

func TestTheLastGoodOutlivesTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(good)
		w.inForce(t, good)
		w.put(broken, nil)
		w.policy = w.restart()
		w.inForce(t, good)
	})
}

func TestAFailedSaveIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(good)
		w.saveErr = errors.New("throttled")
		w.inForce(t, good)
		w.saveErr = nil
		w.put(good, nil)
		w.inForce(t, good)
		w.put(good, nil)
		w.inForce(t, good)
		if w.saves != 2 || w.last != good {
			t.Errorf("%d saves, last good %q", w.saves, w.last)
		}
	})
}

func TestManyRequestsLookOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(good)
		w.delay = time.Second
		for round := range 2 { // without a policy, and with one
			var failed atomic.Int32
			var all sync.WaitGroup
			for range 50 {
				all.Go(func() {
					if _, err := w.policy.Current(t.Context()); err != nil {
						failed.Add(1)
					}
				})
			}
			all.Wait()
			if looks := w.looks(); failed.Load() != 0 || looks != round+1 {
				t.Errorf("round %d: %d requests failed, %d looks", round, failed.Load(), looks)
			}
			pass(maxAge + time.Second)
		}
	})
}

func TestASlowParameterDelaysNobodyForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(good)
		w.inForce(t, good)
		w.delay = 2 * time.Second
		w.put(better, nil)
		start := time.Now()
		w.inForce(t, good)
		if waited := time.Since(start); waited != patience {
			t.Errorf("waited %s, want %s", waited, patience)
		}
		// The look continues, and serves the requests after it.
		pass(2 * time.Second)
		w.inForce(t, better)
		if w.fetches != 2 {
			t.Errorf("%d looks, want 2", w.fetches)
		}
	})
}

func TestALookEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(good)
		w.delay = time.Hour
		start := time.Now()
		w.inForce(t, "")
		if waited := time.Since(start); waited != fetchTimeout {
			t.Errorf("waited %s, want %s", waited, fetchTimeout)
		}
	})
}

// The request that begins a look may end; the others still get its result.
func TestACanceledRequestSpoilsNoLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(good)
		w.delay = time.Second
		ctx, cancel := context.WithCancel(t.Context())
		begun := make(chan error)
		go func() {
			_, err := w.policy.Current(ctx)
			begun <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-begun; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		w.inForce(t, good)
		if w.fetches != 1 {
			t.Errorf("%d looks, want 1", w.fetches)
		}
	})
}

// A process that was frozen looks again, although its monotonic clock stood still.
func TestAFrozenProcessLooksAgain(t *testing.T) {
	now := time.Now() // a bubble's clock has no monotonic reading
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(good)
		w.policy.config.Now = func() time.Time { return now }
		for want := 1; want <= 2; want++ {
			for range 2 { // the second one comes at the same moment
				if _, err := w.policy.Current(t.Context()); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if w.fetches != want {
					t.Errorf("%d looks, want %d", w.fetches, want)
				}
			}
			now = clocktest.Freeze(now, clocktest.FreezeTime)
		}
		if times := clocktest.CheckStored(t, "policy", w.policy); times < 1 {
			t.Errorf("%d times found", times)
		}
	})
}

// A process was frozen during a look that nobody waited for any more. The look found the text
// from before.
func TestAFrozenLookIsNoLook(t *testing.T) {
	now := time.Now() // a bubble's clock has no monotonic reading
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(good)
		w.policy.config.Now = func() time.Time { return now }
		w.inForce(t, good)
		now = clocktest.Freeze(now, maxAge+time.Second)
		w.delay = patience + 100*time.Millisecond
		w.inForce(t, good)
		synctest.Wait() // the look has read the text, and sleeps
		now = clocktest.Freeze(now, clocktest.FreezeTime)
		w.text, w.delay = better, 0
		w.inForce(t, better)
		if w.fetches != 3 {
			t.Errorf("%d looks, want 3", w.fetches)
		}
	})
}
