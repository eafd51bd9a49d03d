package organization

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/golden"
	"github.com/hallmark-ssh/hallmark/internal/signer/cached"
	"github.com/hallmark-ssh/hallmark/internal/signer/emf/emftest"
)

// table is a table of texts in memory.
type table struct {
	texts map[string][]byte
	until map[string]time.Time
	// loads and saves count calls. saved runs after a save.
	loads, saves int
	saved        func(name string)
	err          error
}

func newTable() *table {
	return &table{texts: make(map[string][]byte), until: make(map[string]time.Time)}
}

type text struct {
	*table
	name string
}

func (x text) Load(context.Context) ([]byte, error) {
	x.loads++
	return x.texts[x.name], x.err
}

func (x text) SaveUntil(_ context.Context, content []byte, until time.Time) error {
	x.saves++
	if x.err == nil {
		x.texts[x.name], x.until[x.name] = bytes.Clone(content), until
	}
	if x.saved != nil {
		x.saved(x.name)
	}
	return x.err
}

func (x text) Update(_ context.Context, change func([]byte) ([]byte, error)) error {
	if x.err != nil {
		return x.err
	}
	content, err := change(x.texts[x.name])
	if err == nil {
		x.texts[x.name] = content
	}
	return err
}

func (t *table) store() Store {
	return Store{Name: Item + "signer", Text: func(name string) Text { return text{t, name} }}
}

// world is an organization, a refresher and a process that reads the stored list.
type world struct {
	t    *testing.T
	now  time.Time
	list List
	err  error
	// next, if any, are the results of the next readings, before list and err.
	next   []reading
	reads  int
	table  *table
	log    bytes.Buffer
	reader *Members
}

// reading is the result of a reading.
type reading struct {
	accounts []Account
	err      error
}

func newWorld(t *testing.T, accounts int) *world {
	w := &world{t: t, now: time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC), table: newTable(), list: List{ID: "o-a1b2c3d4e5", Units: units()}}
	w.list.Accounts = numbered(0, accounts)
	w.reader = &Members{Store: w.table.store(), Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return w.now }}
	return w
}

// numbered returns accounts with the numbers from first on.
func numbered(first, n int) []Account {
	list := make([]Account, n)
	for i := range list {
		list[i] = Account{ID: ec2ref.Account(fmt.Sprintf("%012d", first+i)), Name: fmt.Sprint("account ", first+i), Unit: 1}
	}
	return list
}

func (w *world) Read(context.Context) (List, error) {
	w.reads++
	l := w.list
	if len(w.next) > 0 {
		var found reading
		found, w.next = w.next[0], w.next[1:]
		l.Accounts = found.accounts
		return l, found.err
	}
	l.Accounts = slices.Clone(l.Accounts)
	return l, w.err
}

// refresh reads the organization some time later, and returns the event that was logged.
func (w *world) refresh(after time.Duration) (Report, string) {
	w.t.Helper()
	w.now = w.now.Add(after)
	w.log.Reset()
	r := Refresher{
		Organization: w, Store: w.table.store(), Audience: "signer",
		Log: slog.New(slog.NewJSONHandler(&w.log, nil)), Now: func() time.Time { return w.now },
	}
	report, err := r.Refresh(w.t.Context())
	if (err != nil) != (w.err != nil || w.table.err != nil) {
		w.t.Errorf("error %v", err)
	}
	return report, w.field("event")
}

// field returns a field of the log's lines.
func (w *world) field(name string) string {
	for line := range strings.Lines(w.log.String()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			w.t.Error(err)
		}
		if value, ok := fields[name]; ok {
			return fmt.Sprint(value)
		}
	}
	return ""
}

// view is what an enrollment sees a minute later.
func (w *world) view() View {
	w.t.Helper()
	w.now = w.now.Add(time.Minute)
	v, err := w.reader.Current(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

func (w *world) remove(n int)     { w.list.Accounts = w.list.Accounts[n:] }
func (w *world) add(first, n int) { w.list.Accounts = append(w.list.Accounts, numbered(first, n)...) }

var update = flag.Bool("update", false, "write the golden files")

// The line of a reading, with its metrics. The alarm and the dashboard use their names.
func TestReadingLine(t *testing.T) {
	w := newWorld(t, 3)
	w.refresh(0)
	var line map[string]any
	if err := json.Unmarshal(w.log.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	emftest.Check(t, line, w.now)
	delete(line, "time")
	got, err := json.MarshalIndent(line, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, filepath.Join("testdata", "reading.json"), append(got, '\n'), *update)
}

func TestGuards(t *testing.T) {
	for name, tt := range map[string]struct {
		accounts int
		steps    func(*world) // of two minutes each, by refresh
		event    string       // of the last reading
		want     int          // accounts in force
	}{
		"the first list":                   {3, func(*world) {}, "", 3},
		"the first list is empty":          {0, func(*world) {}, EventHeld, 0},
		"a new account":                    {3, func(w *world) { w.add(100, 1) }, "", 4},
		"an account of few leaves":         {3, func(w *world) { w.remove(1) }, "", 2},
		"all but one of few leave":         {19, func(w *world) { w.remove(18) }, "", 1},
		"the last account leaves":          {1, func(w *world) { w.remove(1) }, EventHeld, 1},
		"all of few leave":                 {19, func(w *world) { w.remove(19) }, EventHeld, 19},
		"a tenth of 20 leaves":             {20, func(w *world) { w.remove(2) }, "", 18},
		"more than a tenth of 20 leaves":   {20, func(w *world) { w.remove(3) }, EventHeld, 20},
		"a tenth of 100 leaves":            {100, func(w *world) { w.remove(10) }, "", 90},
		"more than a tenth of 100 leaves":  {100, func(w *world) { w.remove(11) }, EventHeld, 100},
		"half leave, as many others come":  {100, func(w *world) { w.remove(50); w.add(200, 50) }, EventHeld, 100},
		"all leave":                        {100, func(w *world) { w.remove(100) }, EventHeld, 100},
		"it cannot be read":                {100, func(w *world) { w.err = errors.New("denied") }, EventUnread, 100},
		"a tenth leaves, and then another": {100, func(w *world) { w.remove(10); w.refresh(2 * time.Minute); w.remove(9) }, EventHeld, 90},
		"a tenth leaves on each day": {100, func(w *world) {
			w.remove(10)
			w.refresh(2 * time.Minute)
			w.now = w.now.Add(window)
			w.remove(9)
		}, "", 81},
		"accounts leave and come back": {100, func(w *world) {
			before := w.list.Accounts
			w.remove(10)
			w.refresh(2 * time.Minute)
			w.list.Accounts = before
			w.refresh(2 * time.Minute)
			w.list.Accounts = before[:90]
		}, "", 90},
		"a held change undoes itself": {100, func(w *world) {
			before := w.list.Accounts
			w.remove(50)
			w.refresh(2 * time.Minute)
			w.list.Accounts = before
		}, "", 100},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tt.accounts)
			_, event := w.refresh(0)
			if tt.accounts > 0 && event != "" {
				t.Fatalf("the first reading logged %s", event)
			}
			tt.steps(w)
			report, event := w.refresh(2 * time.Minute)
			if event != tt.event || report.Accounts != tt.want {
				t.Errorf("event %q, %d accounts; want %q, %d\n%s", event, report.Accounts, tt.event, tt.want, &w.log)
			}
			alarms := "0"
			if tt.event != "" {
				alarms = "1"
			}
			if got := w.field("organization_alarms"); got != alarms {
				t.Errorf("metric organization_alarms is %s, want %s", got, alarms)
			}
			if got := len(w.view().members); got != tt.want {
				t.Errorf("an enrollment sees %d accounts, want %d", got, tt.want)
			}
		})
	}
}

// The guard compares the accounts that may enroll, not the organization.
func TestTheGuardLooksAtTheScope(t *testing.T) {
	w := newWorld(t, 30)
	w.reader.Scope = Scope{Allow: []string{workloads}}
	refresh := func() string {
		r := Refresher{
			Organization: w, Store: w.table.store(), Scope: w.reader.Scope, Audience: "signer",
			Log: slog.New(slog.NewJSONHandler(&w.log, nil)), Now: func() time.Time { return w.now },
		}
		w.log.Reset()
		if _, err := r.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		return w.field("event")
	}
	if event := refresh(); event != "" {
		t.Fatal(event)
	}
	for i := range 10 {
		w.list.Accounts[i].Unit = 2 // to the sandbox
	}
	if event := refresh(); event != EventHeld {
		t.Errorf("event %q", event)
	}
	if got := len(w.view().members); got != 30 {
		t.Errorf("%d accounts, want the last good 30", got)
	}
	// The deployment denies a unit: that narrows at once, without a reading.
	w.reader.Scope.Deny = []string{workloads}
	w.reader.seen = cached.Value[seen]{}
	if got := len(w.view().members); got != 0 {
		t.Errorf("%d accounts in a denied unit", got)
	}
}

func TestConfirm(t *testing.T) {
	held := func(t *testing.T) (*world, string) {
		w := newWorld(t, 100)
		w.refresh(0)
		w.remove(50)
		report, _ := w.refresh(2 * time.Minute)
		if !report.Held || report.Change == "" {
			t.Fatalf("report %+v", report)
		}
		waiting, err := w.table.store().Waiting(t.Context(), Scope{})
		if err != nil || waiting.Change != report.Change || waiting.Before != 100 || waiting.After != 50 || len(waiting.Leaving) != 50 ||
			waiting.Leaving[0] != (Leaver{"000000000000", Member{"account 0", "/Workloads"}}) {
			t.Fatalf("waiting %+v, error %v", waiting, err)
		}
		return w, report.Change
	}
	confirm := func(w *world, change string) error {
		return w.table.store().Confirm(w.t.Context(), change, "ann", w.now.Add(MaxPermit))
	}
	t.Run("the change", func(t *testing.T) {
		w, change := held(t)
		if err := confirm(w, change); err != nil {
			t.Fatal(err)
		}
		report, event := w.refresh(2 * time.Minute)
		if event != EventConfirmed || report.Accounts != 50 || w.field("by") != "ann" || w.field("organization_alarms") != "0" {
			t.Errorf("event %q, report %+v\n%s", event, report, &w.log)
		}
		if got := len(w.view().members); got != 50 {
			t.Errorf("%d accounts", got)
		}
		if _, err := w.table.store().Waiting(t.Context(), Scope{}); !errors.Is(err, ErrNoChange) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("new accounts do not matter", func(t *testing.T) {
		w, change := held(t)
		w.add(500, 3)
		if err := confirm(w, change); err != nil {
			t.Fatal(err)
		}
		if report, event := w.refresh(2 * time.Minute); event != EventConfirmed || report.Accounts != 53 {
			t.Errorf("event %q, report %+v", event, report)
		}
	})
	t.Run("another account leaves", func(t *testing.T) {
		w, change := held(t)
		if err := confirm(w, change); err != nil {
			t.Fatal(err)
		}
		w.remove(1)
		if report, event := w.refresh(2 * time.Minute); event != EventHeld || report.Accounts != 100 || report.Change == change {
			t.Errorf("event %q, report %+v", event, report)
		}
	})
	t.Run("once", func(t *testing.T) {
		w, change := held(t)
		before := w.list.Accounts
		if err := confirm(w, change); err != nil {
			t.Fatal(err)
		}
		w.refresh(2 * time.Minute)
		w.list.Accounts = append(numbered(0, 50), before...)
		w.refresh(2 * time.Minute)
		w.list.Accounts = before
		if report, event := w.refresh(2 * time.Minute); event != EventHeld || report.Accounts != 100 {
			t.Errorf("event %q, report %+v", event, report)
		}
	})
	t.Run("too late", func(t *testing.T) {
		w, change := held(t)
		if err := confirm(w, change); err != nil {
			t.Fatal(err)
		}
		if report, event := w.refresh(MaxPermit); event != EventHeld || report.Accounts != 100 {
			t.Errorf("event %q, report %+v", event, report)
		}
	})
	t.Run("an empty organization", func(t *testing.T) {
		w := newWorld(t, 3)
		w.refresh(0)
		w.remove(3)
		report, _ := w.refresh(2 * time.Minute)
		if err := confirm(w, report.Change); err != nil {
			t.Fatal(err)
		}
		if report, event := w.refresh(2 * time.Minute); event != EventConfirmed || report.Accounts != 0 {
			t.Errorf("event %q, report %+v", event, report)
		}
		if _, event := w.refresh(2 * time.Minute); event != "" {
			t.Errorf("event %q, although an operator confirmed the empty list", event)
		}
	})
	t.Run("another change", func(t *testing.T) {
		w, _ := held(t)
		before := bytes.Clone(w.table.texts[Item+"signer"])
		if err := confirm(w, "0123456789abcdef"); !errors.Is(err, ErrOtherChange) {
			t.Errorf("error %v", err)
		}
		if !bytes.Equal(before, w.table.texts[Item+"signer"]) {
			t.Error("a refused confirmation was stored")
		}
	})
	t.Run("nothing waits", func(t *testing.T) {
		w := newWorld(t, 3)
		if err := confirm(w, "0123456789abcdef"); !errors.Is(err, ErrNoChange) {
			t.Errorf("error %v", err)
		}
	})
}

// A reading that is not in force does not make the list in force any fresher.
func TestStaleness(t *testing.T) {
	for name, spoil := range map[string]func(*world){
		"no reading succeeds": func(w *world) { w.err = errors.New("denied") },
		"a held change":       func(w *world) { w.remove(50) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 100)
			w.refresh(0)
			read := w.now
			spoil(w)
			for range 11 {
				w.refresh(2 * time.Hour)
			}
			if v := w.view(); v.IsStale(w.now) || !v.Read().Equal(read) {
				t.Errorf("stale after %s, read %s", w.now.Sub(read), v.Read())
			}
			w.refresh(2 * time.Hour)
			if v := w.view(); !v.IsStale(w.now) || len(v.members) != 100 {
				t.Errorf("fresh after %s, %d accounts", w.now.Sub(read), len(v.members))
			}
		})
	}
	if !(View{}).IsStale(time.Now()) {
		t.Error("no list is a fresh list")
	}
	if !NewView(nil, time.Now().Add(48*time.Hour)).IsStale(time.Now()) {
		t.Error("a list from the future is fresh")
	}
}

// An account that joins is seen, and one that leaves is not, in time.
func TestMembershipFollows(t *testing.T) {
	w := newWorld(t, 30)
	w.refresh(0)
	w.view()
	w.add(100, 1)
	w.remove(1)
	w.refresh(2 * time.Minute) // the schedule
	w.now = w.now.Add(-time.Minute + Fresh)
	if v := w.view(); !v.Has("000000000100") || v.Has("000000000000") {
		t.Error("the change does not show")
	}
	if w.reader.Knows("000000000000") || !w.reader.Knows("000000000100") {
		t.Error("Knows lags behind")
	}
}

// A list of any size is stored, and switched at once.
func TestManyAccounts(t *testing.T) {
	w := newWorld(t, 10_000)
	for i := range w.list.Accounts {
		w.list.Accounts[i].Name = strings.Repeat("ö", 25) + fmt.Sprint(i)
	}
	w.refresh(0)
	largest, parts := 0, 0
	for name, content := range w.table.texts {
		largest = max(largest, len(content))
		if strings.Count(name, "/") > 1 {
			parts++
		}
	}
	if parts < 2 || largest > 350<<10 {
		t.Errorf("%d parts, the largest of %d bytes", parts, largest)
	}
	if got := w.view().members["000000009999"].Name; got != strings.Repeat("ö", 25)+"9999" {
		t.Errorf("name %q", got)
	}
	saves := w.table.saves
	w.refresh(2 * time.Minute)
	if w.table.saves != saves {
		t.Error("an unchanged list was stored again")
	}
	loads := w.table.loads
	w.view()
	if w.table.loads != loads+1 {
		t.Errorf("an enrollment loaded %d items of an unchanged list", w.table.loads-loads)
	}
	// The parts are stored again long before they expire.
	w.refresh(partsRenewed)
	for name, until := range w.table.until {
		if left := until.Sub(w.now); left < partsLife-time.Minute {
			t.Errorf("%s expires in %s", name, left)
		}
	}
}

// A process that dies halfway through storing a list, or two that store at once, never
// make anyone see half a list.
func TestHalfWrittenLists(t *testing.T) {
	w := newWorld(t, 8000)
	w.refresh(0)
	good := len(w.view().members)

	// It dies after each item.
	w.add(100_000, 500)
	after := 0
	died := errors.New("died")
	w.table.saved = func(string) {
		after++
		w.table.err = died
		w.table.saved = nil
	}
	w.refresh(2 * time.Minute)
	if after == 0 {
		t.Fatal("nothing was stored")
	}
	w.table.err = nil
	if got := len(w.view().members); got != good {
		t.Errorf("%d accounts after half a write, want %d", got, good)
	}
	w.refresh(2 * time.Minute)
	if got := len(w.view().members); got != good+500 {
		t.Errorf("%d accounts after the next reading", got)
	}

	// A part is lost, cut or of another list: a new process gets no list, not half of one.
	st, err := w.table.store().loadState(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("%ssigner/%s/1", Item, st.Current.Digest)
	whole := w.table.texts[name]
	for what, part := range map[string][]byte{"lost": nil, "cut": whole[:len(whole)-1], "another": []byte("{}")} {
		w.table.texts[name] = part
		fresh := &Members{Store: w.table.store(), Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return w.now }}
		if v, err := fresh.Current(t.Context()); !errors.Is(err, errIncomplete) || len(v.members) != 0 {
			t.Errorf("part %s: %d accounts, error %v", what, len(v.members), err)
		}
	}
	w.table.texts[name] = whole
}

// Two readings at once: the slower one does not undo the faster one's list.
func TestConcurrentReadings(t *testing.T) {
	w := newWorld(t, 30)
	w.refresh(0)
	old := w.list.Accounts
	w.list.Accounts = append(slices.Clone(old), numbered(100, 1)...)
	w.table.saved = func(string) {
		w.table.saved = nil
		w.list.Accounts = append(slices.Clone(old), numbered(200, 2)...)
		w.refresh(time.Second)
	}
	w.refresh(time.Second)
	if v := w.view(); !v.Has("000000000200") || v.Has("000000000100") {
		t.Error("the slower reading is in force")
	}
}

// A stored list is read at most every few seconds, however many ask, and not for long
// without the table.
func TestReadsAreRare(t *testing.T) {
	w := newWorld(t, 30)
	w.refresh(0)
	w.view()
	loads := w.table.loads
	for range 100 {
		if _, err := w.reader.Current(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if w.table.loads != loads {
		t.Errorf("%d reads of a fresh list", w.table.loads-loads)
	}
	w.table.err = errors.New("throttled")
	w.now = w.now.Add(Fresh)
	for range 100 {
		if v, err := w.reader.Current(t.Context()); err != nil || len(v.members) != 30 {
			t.Fatalf("%d accounts, error %v", len(v.members), err)
		}
	}
	if w.table.loads != loads+1 {
		t.Errorf("%d reads while the table does not answer", w.table.loads-loads)
	}
	w.now = w.now.Add(kept)
	if v, err := w.reader.Current(t.Context()); err == nil {
		t.Errorf("%d accounts long after the last look", len(v.members))
	}
	if _, err := w.reader.Current(t.Context()); !errors.Is(err, cached.ErrPaused) {
		t.Errorf("error %v at once after a failure", err)
	}
	w.table.err = nil
	w.now = w.now.Add(pause)
	if _, err := w.reader.Current(t.Context()); err != nil {
		t.Error(err)
	}
}

// Without a list there are no members, and that is no failure.
func TestNoList(t *testing.T) {
	w := newWorld(t, 1)
	if v := w.view(); v.Has("000000000000") || !v.IsStale(w.now) {
		t.Error("an account of no list is a member")
	}
	w.err = errors.New("denied")
	if _, event := w.refresh(0); event != EventUnread {
		t.Errorf("event %q", event)
	}
	w.table.texts[Item+"signer"] = []byte("{")
	w.now = w.now.Add(time.Minute)
	fresh := &Members{Store: w.table.store(), Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return w.now }}
	if _, err := fresh.Current(t.Context()); err == nil {
		t.Error("a broken state passes as no list")
	}
}

func TestStateIsChecked(t *testing.T) {
	for _, text := range []string{
		`{"current":{"digest":"x","parts":1}}`, `{"current":{"digest":"` + strings.Repeat("a", 64) + `","parts":65}}`,
		`{"held":{"digest":"` + strings.Repeat("a", 64) + `","parts":0}}`, `[]`,
	} {
		if _, err := parseState([]byte(text)); err == nil {
			t.Errorf("%s was accepted", text)
		}
	}
}

func TestSplit(t *testing.T) {
	for _, content := range []string{"", "a", "abc", "abcdef", "äöüäöü", "a€b€c€", "😀😀😀"} {
		var joined []byte
		for _, part := range split([]byte(content), 4) {
			joined = append(joined, part...)
			if len(part) > 4 || strings.ToValidUTF8(string(part), "?") != string(part) {
				t.Errorf("%q has the part %q", content, part)
			}
		}
		if string(joined) != content {
			t.Errorf("%q became %q", content, joined)
		}
	}
}

// An account that moves during a reading may be in no unit that was read.
func TestAnAccountThatMovesDuringAReadingStays(t *testing.T) {
	all := numbered(0, 5)
	for name, tt := range map[string]struct {
		next  []reading
		want  int // accounts in force
		reads int
	}{
		"nobody moves":                      {[]reading{{all, nil}}, 5, 1},
		"one moves":                         {[]reading{{all[1:], nil}, {all, nil}}, 5, 2},
		"one leaves":                        {[]reading{{all[1:], nil}, {all[1:], nil}}, 4, 2},
		"one leaves, another moves":         {[]reading{{all[2:], nil}, {all[1:], nil}}, 4, 2},
		"another moves at the second":       {[]reading{{all[1:], nil}, {all[2:], nil}}, 4, 2},
		"one leaves, the second fails":      {[]reading{{all[1:], nil}, {nil, errors.New("throttled")}}, 4, 2},
		"one joins":                         {[]reading{{numbered(0, 6), nil}}, 6, 1},
		"one joins while another one moves": {[]reading{{numbered(1, 5), nil}, {numbered(0, 6), nil}}, 6, 2},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 5)
			w.refresh(0)
			w.next, w.reads = tt.next, 0
			if report, event := w.refresh(time.Minute); report.Accounts != tt.want || report.Held || event != "" || w.reads != tt.reads {
				t.Errorf("%+v after %d readings, event %q; want %d accounts after %d", report, w.reads, event, tt.want, tt.reads)
			}
			if got := len(w.view().Accounts()); got != tt.want {
				t.Errorf("%d accounts may enroll, want %d", got, tt.want)
			}
		})
	}
}
