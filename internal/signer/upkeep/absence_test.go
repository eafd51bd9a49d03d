package upkeep

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// hide keeps instances out of EC2's answers.
func (w *world) hide(numbers ...int) {
	for _, n := range numbers {
		delete(w.instances, ref(n).ID)
	}
}

func upTo(n int) (numbers []int) {
	for i := range n {
		numbers = append(numbers, i)
	}
	return numbers
}

// Missing once does not retire an instance, whether in a sweep or an event. Missing again too
// soon does not either.
func TestAMissingInstanceEndsAtTheSecondLook(t *testing.T) {
	sweep := func(w *world) { w.sweep(0) }
	event := func(w *world) {
		if err := w.stateChanged(ref(1)); err != nil {
			w.t.Error(err)
		}
	}
	looks := map[string]func(*world){"sweep": sweep, "event": event}
	for first, look := range looks {
		for second, again := range looks {
			t.Run(first+" and "+second, func(t *testing.T) {
				w := newWorld(t)
				for n := range 4 {
					w.enroll(n)
				}
				w.hide(1)
				look(w)
				w.now = w.now.Add(absenceTime - time.Second)
				again(w)
				if _, there := w.node(1); !there || w.retired(1) {
					t.Fatal("ended before its time")
				}
				w.now = w.now.Add(time.Second)
				again(w)
				if _, there := w.node(1); there || !w.retired(1) {
					t.Errorf("node is there: %v, ended %v; log %s", there, w.retired(1), w.log.String())
				}
			})
		}
	}
}

// An instance that was only hidden starts over.
func TestAnInstanceThatIsShownAgain(t *testing.T) {
	for name, seen := range map[string]func(*world){
		"by a sweep": func(w *world) { w.sweep(0) },
		"by an event": func(w *world) {
			for _, err := range w.fleet.StatesChanged(w.t.Context(), []ec2ref.Instance{ref(1), ref(2)}) {
				if err != nil {
					w.t.Error(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			i := w.enroll(1)
			w.enroll(2)
			w.enroll(3)
			w.hide(1)
			w.sweep(0)
			w.instances[i.ID] = i
			if name == "by an event" {
				w.hide(2)
			}
			w.now = w.now.Add(time.Hour)
			seen(w)
			w.hide(1)
			w.now = w.now.Add(time.Hour)
			if got := w.sweep(0); got.Missing < 1 || w.retired(1) {
				t.Errorf("report %+v, ended %v: it was shown in between", got, w.retired(1))
			}
		})
	}
}

// EC2 stops showing everything. Events and sweeps together remove a bounded number within a
// day, and never empty a small cluster.
func TestALostViewEmptiesNoCluster(t *testing.T) {
	for nodes, most := range map[int]int{1: 1, 2: 1, 3: 1, 5: 2, 20: 10, 39: 19, 40: 20, 100: 20, 300: 30} {
		for name, hidden := range map[string]int{"all": nodes, "as many as may go": most} {
			t.Run(fmt.Sprintf("%d nodes, %s", nodes, name), func(t *testing.T) {
				w := newWorld(t)
				for n := range nodes {
					w.enroll(n)
				}
				w.hide(upTo(hidden)...)
				for range 3 {
					w.sweep(0)
					for n := 0; n < hidden; n += 7 { // a batch of events includes some of them
						var batch []ec2ref.Instance
						for k := n; k < min(n+7, hidden); k++ {
							batch = append(batch, ref(k))
						}
						if err := errors.Join(w.fleet.StatesChanged(t.Context(), batch)...); err != nil {
							t.Fatal(err)
						}
					}
					w.now = w.now.Add(7 * time.Hour)
				}
				if gone := nodes - len(w.nodes); gone > most || hidden <= most && gone != hidden {
					t.Errorf("%d nodes of %d are gone; %d may go", gone, nodes, most)
				}
			})
		}
	}
}

// The limit covers a day, for events and sweeps together, and survives the process.
func TestTheLimitIsOfADay(t *testing.T) {
	w := newWorld(t)
	for n := range 20 {
		w.enroll(n)
	}
	gone := func(numbers ...int) Report {
		w.hide(numbers...)
		w.sweep(0)
		w.now = w.now.Add(absenceTime)
		restarted := *w.fleet // with what is durable
		w.fleet = &restarted
		return w.sweep(0)
	}
	if got := gone(upTo(6)...); got.Deleted != 6 {
		t.Fatalf("report %+v", got)
	}
	if got := gone(10, 11, 12, 13, 14); got.OverLimit != 5 || got.Deleted != 0 {
		t.Errorf("report %+v: eleven of twenty in a day", got)
	}
	if !strings.Contains(w.log.String(), "alarm=true") {
		t.Errorf("no alarm in %s", w.log.String())
	}
	w.now = w.now.Add(limitTime)
	if got := w.sweep(0); got.Deleted != 5 {
		t.Errorf("report %+v, a day later", got)
	}
}

// What EC2 itself reports needs neither a second look nor a limit.
func TestTerminatedInstancesHaveNoLimit(t *testing.T) {
	w := newWorld(t)
	for n := range 20 {
		w.enroll(n)
		w.terminate(n)
	}
	if got := w.sweep(0); got.Deleted != 20 {
		t.Errorf("report %+v", got)
	}
}

// With credentials of another account everything is missing, and none of it counts.
func TestAnotherAccountsCredentials(t *testing.T) {
	w := newWorld(t)
	w.enroll(1)
	w.enroll(2)
	w.terminate(2)
	w.hide(1)
	w.accountErr = errors.New("the credentials belong to account 999999999999")
	for range 2 {
		if got := w.sweep(0); got.Failed != 1 {
			t.Errorf("report %+v", got)
		}
		if err := w.stateChanged(ref(1)); !errors.Is(err, w.accountErr) {
			t.Errorf("error %v", err)
		}
		w.now = w.now.Add(time.Hour)
	}
	if _, there := w.node(1); !there || w.retired(1) || !w.retired(2) {
		t.Errorf("node is there: %v, ended %v and %v", there, w.retired(1), w.retired(2))
	}
}

// EC2 may not show a young instance yet.
func TestAnUnknownInstanceIsNotRetired(t *testing.T) {
	w := newWorld(t)
	for range 3 {
		if err := w.stateChanged(ref(1)); err != nil {
			t.Fatal(err)
		}
		w.now = w.now.Add(time.Hour)
	}
	if w.retired(1) {
		t.Error("an instance that EC2 does not show yet has ended")
	}
	w.enroll(1)
	if _, there := w.node(1); !there {
		t.Error("it cannot enroll")
	}
}

// brokenNotes cannot be read.
type brokenNotes struct{}

func (brokenNotes) Update(context.Context, func([]byte) ([]byte, error)) error {
	return errors.New("throttled")
}

func TestWithoutItsNotesNothingMissingEnds(t *testing.T) {
	w := newWorld(t)
	w.enroll(1)
	w.hide(1)
	w.sweep(0)
	notes := w.fleet.Missing
	w.fleet.Missing = brokenNotes{}
	w.now = w.now.Add(time.Hour)
	if err := w.stateChanged(ref(1)); err == nil {
		t.Error("no error")
	}
	if _, err := w.fleet.Sweep(t.Context(), "", 0); err == nil {
		t.Error("no error of the sweep")
	}
	w.fleet.Missing = notes
	if w.retired(1) {
		t.Fatal("it has ended")
	}
	if got := w.sweep(0); got.Deleted != 1 {
		t.Errorf("report %+v", got)
	}
}

// Instances that were given up, but not finished because Teleport or the ledger was down, do
// not count again.
func TestWhatWasGivenUpIsFinished(t *testing.T) {
	w := newWorld(t)
	w.enroll(1)
	w.hide(1)
	w.sweep(0)
	w.now = w.now.Add(absenceTime)
	w.deleteErr = errors.New("down")
	if got := w.sweep(0); got.Failed != 1 {
		t.Errorf("report %+v", got)
	}
	w.deleteErr = nil
	report := w.sweep(0)
	if _, there := w.node(1); there || report.Failed+report.OverLimit != 0 {
		t.Errorf("node is there: %v, report %+v", there, report)
	}
}

func TestAbsencesAreBounded(t *testing.T) {
	a, err := parseAbsences(nil, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	missing := make([]ec2ref.Instance, maxAbsences+500)
	for n := range missing {
		missing[n] = ref(n)
	}
	a.note(ec2ref.Place{Account: testAccount, Region: testRegion}, missing, func(string) bool { return true }, time.Unix(0, 0).UTC())
	text, err := json.Marshal(a)
	if err != nil || len(a.Missing) != maxAbsences || len(text) > 390_000 {
		t.Errorf("%d absences in %d bytes, error %v", len(a.Missing), len(text), err)
	}
	if _, err := parseAbsences([]byte("{"), time.Unix(0, 0)); err == nil {
		t.Error("half a text is read")
	}
}
