package upkeep

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
)

// leave enrolls instances whose nodes then disappear without an event, as leases expire.
func (w *world) leave(numbers ...int) {
	w.t.Helper()
	for _, n := range numbers {
		w.enroll(n)
		delete(w.nodes, ref(n).NodeID())
	}
}

// lapse lets all certificates expire.
func (w *world) lapse() { w.now = w.now.Add(policy.DefaultLifetime + time.Hour) }

func (w *world) step() ExpiredReport {
	w.t.Helper()
	report, err := w.fleet.RetireExpired(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return report
}

func (w *world) wantStep(what string, want ExpiredReport) {
	w.t.Helper()
	if got := w.step(); got != want {
		w.t.Errorf("%s: got %+v, want %+v; log: %s", what, got, want, w.log.String())
	}
}

// claims reports whether another instance can have the name of instance n.
func (w *world) isFree(n int) bool {
	w.t.Helper()
	c := ledger.Claim{
		Instance: ref(9000 + n), Fingerprints: []string{fmt.Sprintf("SHA256:other-%d", n)}, Hostname: string("web-" + ref(n).ID), ValidUntil: w.now.Add(time.Hour),
	}
	_, err := w.ledger.Claim(w.t.Context(), c, w.now)
	if err != nil && !errors.Is(err, ledger.ErrNameInUse) {
		w.t.Fatal(err)
	}
	return err == nil
}

func TestRetireExpired(t *testing.T) {
	w := newWorld(t)
	w.leave(1, 2, 3, 4, 5)
	w.instances[ref(1).ID].State = inventory.StateTerminated
	w.instances[ref(2).ID].State = inventory.StateShuttingDown
	w.instances[ref(3).ID].State = inventory.StateStopped
	w.hide(4)
	w.wantStep("certificates are good", ExpiredReport{})
	w.lapse()
	w.enroll(5) // it renews
	w.wantStep("the first look", ExpiredReport{Records: 4, Retired: 2, Missing: 1})
	for n, retired := range map[int]bool{1: true, 2: true, 3: false, 4: false, 5: false} {
		if w.retired(n) != retired {
			t.Errorf("instance %d: ended %v", n, w.retired(n))
		}
	}
	w.now = w.now.Add(absenceTime - time.Second)
	w.wantStep("the second look, too soon", ExpiredReport{Records: 2, Missing: 1})
	w.now = w.now.Add(time.Second)
	w.wantStep("the second look", ExpiredReport{Records: 2, Retired: 1})
	w.now = w.now.Add(time.Hour)
	w.wantStep("afterwards", ExpiredReport{Records: 1})
	for n, free := range map[int]bool{1: true, 2: true, 3: false, 4: true, 5: false} {
		if w.isFree(n) != free {
			t.Errorf("the name of instance %d is free: %v", n, !free)
		}
	}
	if _, there := w.node(5); !there {
		t.Error("the node of an instance that renewed is gone")
	}
}

// A step makes one request to the ledger and one to EC2 for each account and region, and
// touches no node. It lists nodes only where an instance may count as gone.
func TestRetireExpiredCalls(t *testing.T) {
	w := newWorld(t)
	var many []int
	for n := range 30 {
		many = append(many, n)
	}
	w.leave(many...)
	w.lapse()
	w.hide(many...)
	for _, want := range []string{"instances account", "instances account nodes"} {
		w.calls = nil
		w.step()
		if got := strings.Join(w.calls, " "); got != want {
			t.Errorf("calls %q, want %q", got, want)
		}
		w.now = w.now.Add(absenceTime)
	}
}

// EC2 stops showing everything. Machines that were stopped for long must not all be locked
// out, and the limit must not stop the walk for good.
func TestALostViewEndsFewExpiredRecords(t *testing.T) {
	for expired, most := range map[int]int{1: 1, 2: 1, 6: 3, 39: 19, 60: 20} {
		t.Run(fmt.Sprint(expired), func(t *testing.T) {
			w := newWorld(t)
			w.leave(upTo(expired)...)
			w.lapse()
			w.hide(upTo(expired)...)
			w.step()
			for range 5 {
				w.now = w.now.Add(4 * time.Hour)
				w.step()
			}
			retired := 0
			for n := range expired {
				if w.retired(n) {
					retired++
				}
			}
			if retired != most {
				t.Errorf("%d of %d have ended within a day, want %d", retired, expired, most)
			}
			if strings.Contains(w.log.String(), "alarm=true") {
				t.Errorf("an alarm about records without a node: %s", w.log.String())
			}
			for day := 0; day < 60 && retired < expired; day++ { // one a day is slow, but not endless
				w.now = w.now.Add(limitTime)
				retired += w.step().Retired
			}
			if retired != expired {
				t.Errorf("%d of %d have ended in the end", retired, expired)
			}
		})
	}
}

// What the walk gives up takes nothing from what the sweep may delete.
func TestTheWalkHasALimitOfItsOwn(t *testing.T) {
	w := newWorld(t)
	w.leave(upTo(20)...)
	w.lapse()
	for n := 100; n < 110; n++ {
		w.enroll(n)
		w.hide(n)
	}
	w.hide(upTo(20)...)
	for range 2 {
		w.step()
		w.sweep(0)
		w.now = w.now.Add(absenceTime)
	}
	if len(w.nodes) != 10 {
		t.Fatalf("%d nodes are left of 10: all were missing, and half may go", len(w.nodes))
	}
	for n := 100; n < 105; n++ {
		w.run(n) // half of them are shown again
	}
	if got := w.sweep(0); got.Deleted != 5 {
		t.Errorf("report %+v", got)
	}
}

// An instance that is shown in between starts over.
func TestAnExpiredInstanceThatIsShownAgain(t *testing.T) {
	w := newWorld(t)
	w.leave(1)
	w.lapse()
	stopped := w.instances[ref(1).ID]
	stopped.State = inventory.StateStopped
	w.hide(1)
	w.step()
	w.instances[ref(1).ID] = stopped
	w.now = w.now.Add(time.Hour)
	w.step()
	w.hide(1)
	w.now = w.now.Add(time.Hour)
	w.wantStep("hidden again", ExpiredReport{Records: 1, Missing: 1})
	if w.retired(1) {
		t.Error("it has ended")
	}
}

// A machine that was stopped for long starts and renews while the walk asks EC2, which shows
// old data.
func TestARenewalDuringTheWalk(t *testing.T) {
	w := newWorld(t)
	w.leave(1)
	w.lapse()
	w.hide(1)
	w.step()
	w.now = w.now.Add(absenceTime)
	w.before = func() {
		w.before = nil
		w.enroll(1)
		w.hide(1)
	}
	w.wantStep("it renews", ExpiredReport{Records: 1})
	if w.retired(1) {
		t.Error("an instance that has just renewed has ended")
	}
}

// The walk does not ask about instances that another signer enrolled, or whose account or
// region is not listed.
func TestTheWalkLeavesOthersRecordsAlone(t *testing.T) {
	w := newWorld(t)
	for n, change := range []func(*ledger.Claim){
		func(c *ledger.Claim) { c.Signer = "another.example.com" },
		func(c *ledger.Claim) { c.Instance.Account = "999999999999" },
		func(c *ledger.Claim) { c.Instance.Region = "eu-west-1" },
	} {
		c := ledger.Claim{
			Instance: ref(n), Fingerprints: []string{fmt.Sprint(n)}, Hostname: fmt.Sprintf("web-%d", n),
			Signer: testAudience, ValidUntil: w.now.Add(time.Hour),
		}
		change(&c)
		if _, err := w.ledger.Claim(t.Context(), c, w.now); err != nil {
			t.Fatal(err)
		}
	}
	w.lapse()
	for range 2 {
		w.wantStep("only others", ExpiredReport{})
		w.now = w.now.Add(time.Hour)
	}
	if len(w.calls) > 0 {
		t.Errorf("calls %v", w.calls)
	}
}

func TestTheWalkFails(t *testing.T) {
	for name, test := range map[string]struct {
		spoil, repair func(*world)
		fails         bool // as a whole
	}{
		"EC2 does not answer":           {func(w *world) { w.ec2Err = errors.New("no") }, func(w *world) { w.ec2Err = nil }, false},
		"another account's credentials": {func(w *world) { w.accountErr = errors.New("no") }, func(w *world) { w.accountErr = nil }, false},
		"nothing can be noted":          {func(w *world) { w.fleet.Walk = brokenNotes{} }, nil, true},
		"the ledger does not answer":    {func(w *world) { w.fleet.Records = brokenRecords{} }, func(w *world) { w.fleet.Records = &w.ledger }, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.leave(1)
			w.lapse()
			w.hide(1)
			w.step()
			notes := w.fleet.Walk
			test.spoil(w)
			w.now = w.now.Add(time.Hour)
			report, err := w.fleet.RetireExpired(t.Context())
			if (err != nil) != test.fails || !test.fails && report.Failed != 1 || w.retired(1) {
				t.Errorf("report %+v, error %v, ended %v", report, err, w.retired(1))
			}
			w.fleet.Walk = notes
			if test.repair != nil {
				test.repair(w)
			}
			if w.wantStep("the cause is gone", ExpiredReport{Records: 1, Retired: 1}); !w.retired(1) {
				t.Error("it has not ended")
			}
		})
	}
}

type brokenRecords struct{}

func (brokenRecords) Expired(context.Context, string, time.Time) (ledger.Expired, error) {
	return ledger.Expired{}, errors.New("throttled")
}

func (brokenRecords) RetireExpired(context.Context, ec2ref.Instance, time.Time) (bool, error) {
	return false, errors.New("throttled")
}

// The walk continues where the last process stopped, and starts over at the end. A step that
// ran out of time is repeated.
func TestTheWalkGoesRound(t *testing.T) {
	w := newWorld(t)
	w.leave(upTo(ledger.MaxExpired + 5)...)
	w.lapse()
	ctx, cancel := context.WithCancel(t.Context())
	w.before = cancel
	if _, err := w.fleet.RetireExpired(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	w.before = nil
	for _, want := range []int{ledger.MaxExpired, 5, ledger.MaxExpired} {
		restarted := *w.fleet
		w.fleet = &restarted
		w.wantStep("round", ExpiredReport{Records: want})
	}
}

func TestTheWalksNotesAreRead(t *testing.T) {
	now := time.Unix(1_800_000_000, 0).UTC()
	for text, fails := range map[string]bool{"": false, `{"next":"instance#1/r/i-1"}`: false, "{": true, `{"next":1}`: true} {
		if _, err := parseWalk([]byte(text), now); (err != nil) != fails {
			t.Errorf("%q: error %v", text, err)
		}
	}
	w, err := parseWalk([]byte(`{"next":"x","missing":{"1/r/i-1":"2001-01-01T00:00:00Z","1/r/i-2":"`+now.Format(time.RFC3339)+`"}}`), now)
	if err != nil || w.Next != "x" || len(w.Missing) != 1 {
		t.Errorf("walk %+v, error %v: what nobody looks at again is forgotten", w, err)
	}
}
