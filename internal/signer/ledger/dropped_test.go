package ledger_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

// tableAt is a table, a ledger in it, and the clock of both.
type tableAt struct {
	noting
	*ledger.DynamoDB
	t   *testing.T
	now time.Time
}

func newTableAt(t *testing.T) *tableAt {
	a := &tableAt{t: t, now: start()}
	a.DynamoDB = ledger.NewDynamoDB(&a.noting, "ledger", func() time.Time { return a.now })
	return a
}

func (a *tableAt) enroll(hostname string, names ...string) {
	a.t.Helper()
	c := claim(1, hostname)
	c.Names, c.ValidUntil = names, a.now.Add(7*day)
	g, err := a.Claim(a.t.Context(), c, a.now)
	if err == nil {
		err = a.Confirm(a.t.Context(), c, g, a.now)
	}
	if err != nil {
		a.t.Fatal(err)
	}
}

func (a *tableAt) wantExpires(want map[string]string) {
	a.t.Helper()
	for pk, end := range want {
		if got := expires(a.Item(pk)); got != end {
			a.t.Errorf("%s expires at %q, want %q", pk, got, end)
		}
	}
}

// A name that nobody holds anymore eventually leaves nothing behind.
func TestDynamoDBDroppedNameExpires(t *testing.T) {
	a := newTableAt(t)
	a.enroll("web", "10.0.0.1")
	a.enroll("www")
	a.now = a.now.Add(8 * day)
	a.calls = nil
	a.enroll("www") // drops web and the address
	if want := []string{"BatchGetItem", "BatchGetItem", "TransactWriteItems", "PutItem"}; !slices.Equal(a.calls, want) {
		t.Errorf("calls %v, want %v", a.calls, want)
	}
	end := epoch(a.now.Add(7 * day))
	a.wantExpires(map[string]string{"name#web": end, "name#10.0.0.1": end, "name#www": "", instancePK(1): ""})

	a.enroll("web") // while the item is there
	a.wantExpires(map[string]string{"name#web": "", "name#www": ""})
	a.Delete("name#10.0.0.1")
	a.enroll("web", "10.0.0.1") // after it was deleted
	a.wantExpires(map[string]string{"name#web": "", "name#10.0.0.1": ""})
}

func TestDynamoDBReleasedNameExpires(t *testing.T) {
	a := newTableAt(t)
	a.enroll("web")
	a.now = a.now.Add(8 * day)
	if _, err := a.Release(t.Context(), "web", "somebody", a.now); err != nil {
		t.Fatal(err)
	}
	a.wantExpires(map[string]string{"name#web": epoch(a.now.Add(7 * day)), instancePK(1): ""})
	a.enroll("web")
	a.wantExpires(map[string]string{"name#web": ""})
}

// An operator gave a former name to another instance by hand. The renewal that drops the name
// must succeed, and leave the item alone.
func TestDynamoDBDroppedNameOfAnother(t *testing.T) {
	a := newTableAt(t)
	a.enroll("web")
	a.enroll("www")
	a.now = a.now.Add(8 * day)
	a.Delete("name#web")
	c := claim(2, "web")
	c.ValidUntil = a.now.Add(7 * day)
	if _, err := a.Claim(t.Context(), c, a.now); err != nil {
		t.Fatal(err)
	}
	a.enroll("www")
	a.wantExpires(map[string]string{"name#web": ""})
	if _, err := a.Claim(t.Context(), claim(3, "web"), a.now); !errors.Is(err, ledger.ErrNameInUse) {
		t.Errorf("error %v, want %v", err, ledger.ErrNameInUse)
	}
}

// The largest claim drops as many names as possible, takes as many from others, and brings as
// many keys: DynamoDB accepts a hundred actions at once.
func TestDynamoDBLargestClaim(t *testing.T) {
	a := newTableAt(t)
	var wanted []string
	for n := range ledger.MaxNames - 1 {
		name := fmt.Sprintf("wanted-%d", n)
		wanted = append(wanted, name)
		c := claim(n+10, name)
		c.Names = nil
		if _, err := a.Claim(t.Context(), c, a.now); err != nil {
			t.Fatal(err)
		}
		if err := a.Retire(t.Context(), c.Instance); err != nil {
			t.Fatal(err)
		}
	}
	for n := range ledger.MaxNames {
		a.enroll(fmt.Sprintf("former-%d", n))
	}
	a.now = a.now.Add(8 * day)
	c := claim(1, wanted[0])
	c.Names, c.ValidUntil = wanted[1:], a.now.Add(7*day)
	for n := range ledger.MaxKeys - 1 {
		c.Fingerprints = append(c.Fingerprints, fmt.Sprintf("more-%d", n))
	}
	if _, err := a.Claim(t.Context(), c, a.now); err != nil { // the table counts the actions
		t.Fatal(err)
	}
	for _, name := range wanted {
		if _, err := a.Claim(t.Context(), claim(2, name), a.now); !errors.Is(err, ledger.ErrNameInUse) {
			t.Errorf("%s: error %v, want %v", name, err, ledger.ErrNameInUse)
		}
	}
}

// The walk reads a page of the table at a time, and asks only for the attributes that say
// whose records they are.
func TestDynamoDBExpiredCalls(t *testing.T) {
	a := newTableAt(t)
	a.enroll("web")
	for name, test := range map[string]struct {
		now  time.Time
		want []string
	}{
		"none": {start(), []string{"Scan"}},
		"one":  {start().Add(8 * day), []string{"Scan", "BatchGetItem"}},
	} {
		a.calls = nil
		step, err := a.Expired(t.Context(), "", test.now)
		if err != nil || len(step.Records) != len(test.want)-1 {
			t.Errorf("%s: %+v, error %v", name, step, err)
		}
		if !slices.Equal(a.calls, test.want) {
			t.Errorf("%s: calls %v, want %v", name, a.calls, test.want)
		}
	}
}

// A table is longer than a page: 2,500 items of 625 instances.
func TestDynamoDBExpiredPages(t *testing.T) {
	a := newTableAt(t)
	const many = 625
	for n := range many {
		if _, err := a.Claim(t.Context(), claim(n, fmt.Sprintf("web-%d", n)), a.now); err != nil {
			t.Fatal(err)
		}
	}
	found := 0
	for from := ""; ; {
		step, err := a.Expired(t.Context(), from, start().Add(8*day))
		if err != nil || len(step.Records) > ledger.MaxExpired {
			t.Fatalf("%d records, error %v", len(step.Records), err)
		}
		found += len(step.Records)
		if from = step.Next; from == "" {
			break
		}
		a.Delete(from) // the item that the cursor names may go
	}
	if found != many {
		t.Errorf("%d found of %d", found, many)
	}
}
