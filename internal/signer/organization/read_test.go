package organization

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/hallmark-ssh/hallmark/internal/signer/awscall"
)

const organizationID = "o-a1b2c3d4e5"

// fakeOrganizations answers as AWS Organizations about a tree, in pages. The contract test
// holds it to moto.
type fakeOrganizations struct {
	mu       sync.Mutex
	units    map[string][]map[string]string // by parent
	accounts map[string][]map[string]string // by parent
	// change replaces an answer of an action.
	change func(action string, answer map[string]any) (status int, body any)
	calls  map[string]int
}

func newFake() *fakeOrganizations {
	return &fakeOrganizations{
		units: make(map[string][]map[string]string), accounts: make(map[string][]map[string]string), calls: make(map[string]int),
	}
}

func (f *fakeOrganizations) root(*testing.T) string { return rootID }

func (f *fakeOrganizations) unit(_ *testing.T, parent, name string) string {
	n := 0
	for _, list := range f.units {
		n += len(list)
	}
	id := fmt.Sprintf("ou-ab12-%08d", n)
	f.units[parent] = append(f.units[parent], map[string]string{"Id": id, "Name": name, "Arn": "arn:aws:organizations::999999999999:ou/" + organizationID + "/" + id})
	return id
}

func (f *fakeOrganizations) account(_ *testing.T, parent, name string) string {
	n := 1
	for _, list := range f.accounts {
		n += len(list)
	}
	id := fmt.Sprintf("%012d", n)
	f.accounts[parent] = append(f.accounts[parent], map[string]string{"Id": id, "Name": name, "Status": "ACTIVE", "State": "ACTIVE"})
	return id
}

func (f *fakeOrganizations) suspend(_ *testing.T, id string) {
	for _, list := range f.accounts {
		for _, account := range list {
			if account["Id"] == id {
				account["Status"], account["State"] = "SUSPENDED", "SUSPENDED"
			}
		}
	}
}

func (f *fakeOrganizations) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var in struct {
		ParentID   string `json:"ParentId"`
		MaxResults int
		NextToken  string
	}
	_ = json.NewDecoder(r.Body).Decode(&in)
	action := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "AWSOrganizationsV20161128.")
	f.calls[action]++
	answer := make(map[string]any)
	switch action {
	case "ListRoots":
		answer["Roots"] = []map[string]string{{"Id": rootID, "Name": "Root", "Arn": "arn:aws:organizations::999999999999:root/" + organizationID + "/" + rootID}}
	case "ListOrganizationalUnitsForParent":
		answer["OrganizationalUnits"], answer["NextToken"] = page(f.units[in.ParentID], in.MaxResults, in.NextToken)
	case "ListAccountsForParent":
		answer["Accounts"], answer["NextToken"] = page(f.accounts[in.ParentID], in.MaxResults, in.NextToken)
	}
	status, body := http.StatusOK, any(answer)
	if f.change != nil {
		status, body = f.change(action, answer)
	}
	w.WriteHeader(status)
	if text, ok := body.(string); ok {
		_, _ = w.Write([]byte(text))
		return
	}
	_ = json.NewEncoder(w).Encode(body)
}

// page returns a page of a list, and the token of the next one or nil.
func page(list []map[string]string, size int, token string) (items []map[string]string, next any) {
	from, _ := strconv.Atoi(token)
	end := min(from+max(size, 1), len(list))
	if end < len(list) {
		next = strconv.Itoa(end)
	}
	return append([]map[string]string{}, list[from:end]...), next
}

func readerOf(url, id string) Reader {
	return Reader{
		Client:      awscall.Client{HTTP: http.DefaultClient, Now: time.Now},
		Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
		Endpoint:    url, Region: "us-east-1", ID: id,
		Wait: func(context.Context, time.Duration) error { return nil },
	}
}

// organizations is an emulator of AWS Organizations.
type organizations interface {
	root(t *testing.T) string
	unit(t *testing.T, parent, name string) string
	account(t *testing.T, parent, name string) string
	suspend(t *testing.T, account string)
}

// checkContract builds an organization and reads it.
func checkContract(t *testing.T, o organizations, r Reader) {
	t.Helper()
	root := o.root(t)
	production := o.unit(t, o.unit(t, root, "Workloads"), "Production")
	denied := o.unit(t, production, "Denied")
	o.unit(t, denied, "Below")
	var want []string
	for n := range 45 { // more than two pages
		want = append(want, fmt.Sprintf("%s /Workloads/Production web %d", o.account(t, production, fmt.Sprint("web ", n)), n))
	}
	for n := range 25 {
		id := o.account(t, o.unit(t, production, fmt.Sprint("Team ", n)), "team")
		want = append(want, fmt.Sprintf("%s /Workloads/Production/Team %d team", id, n))
	}
	o.account(t, denied, "denied")
	o.account(t, root, "outside")
	o.suspend(t, o.account(t, production, "suspended"))
	r.Scope = Scope{Allow: []string{production}, Deny: []string{denied}}
	l, err := r.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for id, m := range l.Members(r.Scope) {
		got = append(got, fmt.Sprintf("%s %s %s", id, m.Path, m.Name))
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("members:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if len(l.Accounts) != len(want) {
		t.Errorf("%d accounts were stored, want the %d of the scope", len(l.Accounts), len(want))
	}
	// Another organization's list must not pass as this one's.
	r.ID = "o-0000000000"
	if l, err := r.Read(t.Context()); !errors.Is(err, errForeign) {
		t.Errorf("%d accounts of another organization, error %v", len(l.Accounts), err)
	}
}

func TestContractOfTheFake(t *testing.T) {
	f := newFake()
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	checkContract(t, f, readerOf(server.URL, organizationID))
}

// small is an organization with two units and three accounts.
func small(t *testing.T) (*fakeOrganizations, Reader) {
	f := newFake()
	web := f.unit(t, rootID, "Web")
	f.account(t, rootID, "management")
	f.account(t, web, "one")
	f.account(t, f.unit(t, web, "Inner"), "two")
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return f, readerOf(server.URL, organizationID)
}

// Half an answer, or another's, is no list: accounts would seem to have left.
func TestStrangeAnswersOfOrganizations(t *testing.T) {
	on := func(action string, status int, body any) func(string, map[string]any) (int, any) {
		return func(asked string, answer map[string]any) (int, any) {
			if asked == action {
				return status, body
			}
			return http.StatusOK, answer
		}
	}
	const accounts, unitsAction, roots = "ListAccountsForParent", "ListOrganizationalUnitsForParent", "ListRoots"
	for name, tt := range map[string]struct {
		change func(string, map[string]any) (int, any)
		want   string
	}{
		"denied":                   {on(accounts, http.StatusBadRequest, `{"__type":"AccessDeniedException","Message":"not you"}`), "AccessDeniedException: not you"},
		"denied at once":           {on(roots, http.StatusBadRequest, `{"__type":"AccessDeniedException"}`), "ListRoots: AWS Organizations: HTTP status 400"},
		"always busy":              {on(accounts, http.StatusBadRequest, `{"__type":"TooManyRequestsException"}`), "busy"},
		"a page of a proxy":        {on(accounts, http.StatusOK, "<html>"), "unexpected answer"},
		"an error with status 200": {on(accounts, http.StatusOK, `{"__type":"TargetNotFoundException"}`), "TargetNotFoundException"},
		"cut off":                  {on(accounts, http.StatusOK, `{"Accounts":[{"Id":"000000000001"`), "unexpected answer"},
		"no list":                  {on(accounts, http.StatusOK, `{}`), "no list Accounts"},
		"a list that is null":      {on(accounts, http.StatusOK, `{"Accounts":null}`), "no list Accounts"},
		"the list twice":           {on(accounts, http.StatusOK, `{"Accounts":[],"Accounts":[]}`), "twice"},
		"another letter case":      {on(accounts, http.StatusOK, `{"accounts":[]}`), "no list Accounts"},
		"another action's":         {on(accounts, http.StatusOK, `{"OrganizationalUnits":[]}`), "no list Accounts"},
		"no units":                 {on(unitsAction, http.StatusOK, `{"Accounts":[]}`), "no list OrganizationalUnits"},
		"an account of 11 digits":  {on(accounts, http.StatusOK, `{"Accounts":[{"Id":"00000000001","State":"ACTIVE"}]}`), "is not an account number"},
		"an account, no state":     {on(accounts, http.StatusOK, `{"Accounts":[{"Id":"000000000001"}]}`), "without a state"},
		"a unit without a name":    {on(unitsAction, http.StatusOK, `{"OrganizationalUnits":[{"Id":"ou-ab12-00000000"}]}`), "a unit without id or name"},
		"units without an end":     {on(unitsAction, http.StatusOK, `{"OrganizationalUnits":[{"Id":"ou-ab12-00000000","Name":"a"}]}`), "deeper than"},
		"pages without an end":     {on(accounts, http.StatusOK, `{"Accounts":[],"NextToken":"x"}`), "the same page twice"},
		"a token that is no text":  {on(accounts, http.StatusOK, `{"Accounts":[],"NextToken":1}`), "NextToken"},
		"no root":                  {on(roots, http.StatusOK, `{"Roots":[]}`), "0 roots"},
		"a root of another":        {on(roots, http.StatusOK, `{"Roots":[{"Id":"r-ab12","Arn":"arn:aws:organizations::999999999999:root/o-a1b2c3d4e5x/r-ab12"}]}`), "another organization"},
		"too long":                 {on(accounts, http.StatusOK, `{"Accounts":[],"x":"`+strings.Repeat("x", maxAnswerBytes)+`"}`), "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			f, r := small(t)
			f.change = tt.change
			if l, err := r.Read(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%d accounts, error %v; want %q", len(l.Accounts), err, tt.want)
			}
		})
	}
}

func TestStatesOfAccounts(t *testing.T) {
	for name, tt := range map[string]struct {
		account string
		want    int
	}{
		"both":              {`"Status":"ACTIVE","State":"ACTIVE"`, 1},
		"since 2026":        {`"State":"ACTIVE"`, 1},
		"before 2025":       {`"Status":"ACTIVE"`, 1},
		"suspended":         {`"State":"SUSPENDED"`, 0},
		"closing":           {`"Status":"ACTIVE","State":"PENDING_CLOSURE"`, 0},
		"not yet activated": {`"Status":"ACTIVE","State":"PENDING_ACTIVATION"`, 0},
		"a state to come":   {`"State":"SLEEPING"`, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f, r := small(t)
			f.change = func(action string, answer map[string]any) (int, any) {
				if action == "ListAccountsForParent" {
					return http.StatusOK, `{"Accounts":[{"Id":"000000000001","Name":"a",` + tt.account + `}]}`
				}
				return http.StatusOK, answer
			}
			if l, err := r.Read(t.Context()); err != nil || len(l.Accounts) != tt.want {
				t.Errorf("%d accounts, error %v; want %d", len(l.Accounts), err, tt.want)
			}
		})
	}
}

// Organizations throttles early. An empty page is not the end.
func TestPatience(t *testing.T) {
	f, r := small(t)
	busy, empty := 0, false
	f.change = func(action string, answer map[string]any) (int, any) {
		if busy++; busy%2 == 1 {
			return http.StatusBadRequest, `{"__type":"TooManyRequestsException","Message":"slow down"}`
		}
		if action == "ListAccountsForParent" && !empty {
			empty = true
			return http.StatusOK, `{"Accounts":[],"NextToken":"0"}`
		}
		return http.StatusOK, answer
	}
	if l, err := r.Read(t.Context()); err != nil || len(l.Accounts) != 3 {
		t.Errorf("%d accounts, error %v", len(l.Accounts), err)
	}
}

// What cannot enroll is not read: it costs calls, and Organizations throttles.
func TestOnlyTheScopeIsRead(t *testing.T) {
	f, r := small(t)
	r.Scope = Scope{Allow: []string{"ou-ab12-00000001"}}
	if l, err := r.Read(t.Context()); err != nil || len(l.Accounts) != 1 || f.calls["ListAccountsForParent"] != 1 {
		t.Errorf("%d accounts in %d calls, error %v", len(l.Accounts), f.calls["ListAccountsForParent"], err)
	}
	r.Scope = Scope{Deny: []string{"ou-ab12-00000000"}}
	clear(f.calls)
	if l, err := r.Read(t.Context()); err != nil || len(l.Accounts) != 1 || f.calls["ListOrganizationalUnitsForParent"] != 1 {
		t.Errorf("%d accounts, calls %v, error %v", len(l.Accounts), f.calls, err)
	}
}

// A reading ends with its context, without half a list.
func TestReadingEnds(t *testing.T) {
	_, r := small(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if l, err := r.Read(ctx); err == nil {
		t.Errorf("%d accounts after the end", len(l.Accounts))
	}
}
