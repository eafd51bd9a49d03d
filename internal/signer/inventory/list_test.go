package inventory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// fleetEC2 answers lists as EC2 does: by filter and by page.
type fleetEC2 struct {
	mu sync.Mutex
	// instances and images are what it knows, by id: whose they are.
	instances map[string]string
	images    map[string]string
	perPage   int // 0: all on one
	// spoil replaces the answer to the nth request of an action, from 1.
	spoil    func(action string, n int) string
	requests []url.Values
}

func (f *fleetEC2) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	data, _ := io.ReadAll(r.Body)
	form, _ := url.ParseQuery(string(data))
	f.requests = append(f.requests, form)
	action := form.Get("Action")
	if f.spoil != nil {
		if answer := f.spoil(action, f.count(action)); answer != "" {
			if strings.Contains(answer, "<Errors>") {
				w.WriteHeader(http.StatusBadRequest)
			}
			_, _ = io.WriteString(w, answer)
			return
		}
	}
	if action == "DescribeImages" {
		_, _ = io.WriteString(w, f.list(form, "image-id", f.images, imageItemOf, "imagesSet"))
		return
	}
	_, _ = io.WriteString(w, f.list(form, "instance-id", f.instances, reservationOf, "reservationSet"))
}

func (f *fleetEC2) count(action string) (n int) {
	for _, r := range f.requests {
		if r.Get("Action") == action {
			n++
		}
	}
	return n
}

func (f *fleetEC2) list(form url.Values, name string, known map[string]string, item func(id, owner string) string, set string) string {
	var ids []string
	for id := range known {
		if form.Get("Filter.1.Name") == "" || form.Get("Filter.1.Name") == name && slices.Contains(filterValues(form), id) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	start, _ := strconv.Atoi(form.Get("NextToken"))
	end, next := len(ids), ""
	if f.perPage > 0 && start+f.perPage < end {
		end = start + f.perPage
		next = "<nextToken>" + strconv.Itoa(end) + "</nextToken>"
	}
	var b strings.Builder
	for _, id := range ids[start:end] {
		b.WriteString(item(id, known[id]))
	}
	root := form.Get("Action") + "Response"
	return "<" + root + "><" + set + ">" + b.String() + "</" + set + ">" + next + "</" + root + ">"
}

func filterValues(form url.Values) (values []string) {
	for n := 1; form.Has(fmt.Sprintf("Filter.1.Value.%d", n)); n++ {
		values = append(values, form.Get(fmt.Sprintf("Filter.1.Value.%d", n)))
	}
	return values
}

func reservationOf(id, owner string) string {
	return `<item><ownerId>` + owner + `</ownerId><instancesSet><item><instanceId>` + id + `</instanceId>` +
		`<imageId>ami-` + id[len(id)-1:] + `</imageId><instanceState><name>running</name></instanceState></item></instancesSet></item>`
}

func imageItemOf(id, owner string) string {
	return `<item><imageId>` + id + `</imageId><imageOwnerId>` + owner + `</imageOwnerId>` +
		`<tagSet><item><key>pipeline</key><value>golden</value></item></tagSet></item>`
}

// newFleetEC2 has n instances of the account, from five images: the first image is the
// account's own, the last is gone.
func newFleetEC2(n int) (f *fleetEC2, ids []ec2ref.InstanceID) {
	f = &fleetEC2{instances: make(map[string]string), images: map[string]string{
		"ami-0": account, "ami-1": "444455556666", "ami-2": account, "ami-3": account,
	}}
	for i := range n {
		id := fmt.Sprintf("i-%016x%d", i, i%5)
		f.instances[id] = account
		ids = append(ids, ec2ref.InstanceID(id))
	}
	return f, ids
}

func startFleet(t *testing.T, f http.Handler) *EC2 {
	t.Helper()
	e, _ := startFor(t, f, nil, Account{ID: account})
	return e
}

func checkFleet(t *testing.T, found map[ec2ref.InstanceID]*Instance, ids []ec2ref.InstanceID) {
	t.Helper()
	if len(found) != len(ids) {
		t.Errorf("%d instances, want %d", len(found), len(ids))
	}
	for _, id := range ids {
		i := found[id]
		if i == nil || i.ID != id || i.OwnerID != account || i.Region != region || i.State != StateRunning {
			t.Fatalf("%s: %+v", id, i)
		}
		owner, tags := ec2ref.Account(account), "golden"
		switch id[len(id)-1] {
		case '1':
			owner, tags = "444455556666", "" // another account's tags say nothing
		case '4':
			owner, tags = "", ""
		}
		if i.ImageOwner != owner || i.ImageTags["pipeline"] != tags {
			t.Errorf("%s: image %s of %q with tags %v", id, i.ImageID, i.ImageOwner, i.ImageTags)
		}
	}
}

func TestInstances(t *testing.T) {
	f, ids := newFleetEC2(450)
	e := startFleet(t, f)
	found, err := e.Instances(t.Context(), theInstance().Place(), slices.Concat(ids, ids[:3])) // one may be named twice
	if err != nil {
		t.Fatal(err)
	}
	checkFleet(t, found, ids)
	if n := f.count("DescribeInstances"); n != 3 {
		t.Errorf("asked %d times about 450 instances, want 3", n)
	}
	if n := f.count("DescribeImages"); n != 1 {
		t.Errorf("asked %d times about 5 images, want once", n)
	}
	for _, r := range f.requests {
		if n := len(filterValues(r)); n > maxFilterValues || r.Get("MaxResults") != "1000" {
			t.Errorf("%d values of a filter, MaxResults %s", n, r.Get("MaxResults"))
		}
	}
	// Remembered images are not asked about again, except one that is gone.
	f.requests = nil
	if _, err := e.Instances(t.Context(), theInstance().Place(), ids[:5]); err != nil {
		t.Fatal(err)
	}
	if got := filterValues(f.requests[1]); len(f.requests) != 2 || !slices.Equal(got, []string{"ami-4"}) {
		t.Errorf("%d requests, images %q", len(f.requests), got)
	}
}

func TestInstancesOfNone(t *testing.T) {
	f, _ := newFleetEC2(3)
	found, err := startFleet(t, f).Instances(t.Context(), theInstance().Place(), nil)
	if err != nil || len(found) != 0 || len(f.requests) != 0 {
		t.Errorf("%d instances, %d requests, error %v", len(found), len(f.requests), err)
	}
}

// An instance that is gone leaves the others unchanged, and only it is asked about again.
func TestInstancesThatAreGone(t *testing.T) {
	f, ids := newFleetEC2(10)
	delete(f.instances, string(ids[3]))
	found, err := startFleet(t, f).Instances(t.Context(), theInstance().Place(), ids)
	if err != nil {
		t.Fatal(err)
	}
	checkFleet(t, found, slices.DeleteFunc(slices.Clone(ids), func(id ec2ref.InstanceID) bool { return id == ids[3] }))
	if n := f.count("DescribeInstances"); n != 5 {
		t.Errorf("asked %d times, want 5", n)
	}
	for _, r := range f.requests[1:5] {
		if got := filterValues(r); !slices.Equal(got, []string{string(ids[3])}) {
			t.Errorf("asked again about %q", got)
		}
	}
}

func TestInstancesThatEC2ShowsLate(t *testing.T) {
	f, ids := newFleetEC2(2)
	delete(f.instances, string(ids[1]))
	f.spoil = func(_ string, n int) string {
		if n == 2 {
			f.instances[string(ids[1])] = account
		}
		return ""
	}
	found, err := startFleet(t, f).Instances(t.Context(), theInstance().Place(), ids)
	if err != nil {
		t.Fatal(err)
	}
	checkFleet(t, found, ids)
}

func TestInstancesWhenTimeIsUp(t *testing.T) {
	f, ids := newFleetEC2(2)
	delete(f.instances, string(ids[1]))
	ctx, cancel := context.WithCancel(t.Context())
	e := startFleet(t, f)
	e.Wait = func(ctx context.Context, _ time.Duration) error { // before it is asked about again
		cancel()
		return ctx.Err()
	}
	if found, err := e.Instances(ctx, theInstance().Place(), ids[1:]); !errors.Is(err, context.Canceled) {
		t.Errorf("found %v, error %v: an instance that was not asked about again counts as gone", found, err)
	}
}

func TestAll(t *testing.T) {
	f, ids := newFleetEC2(25)
	f.perPage = 10
	found, err := startFleet(t, f).All(t.Context(), theInstance().Place())
	if err != nil {
		t.Fatal(err)
	}
	checkFleet(t, found, ids)
	if n := f.count("DescribeInstances"); n != 3 {
		t.Errorf("%d pages, want 3", n)
	}
	if f.requests[0].Get("MaxResults") != "1000" || f.requests[0].Has("Filter.1.Name") || f.requests[1].Get("NextToken") != "10" {
		t.Errorf("requests %v", f.requests)
	}
}

// A list is complete or an error.
func TestListsThatGoWrong(t *testing.T) {
	onPage := func(page int, answer string) func(string, int) string {
		return func(action string, n int) string {
			if action == "DescribeInstances" && n >= page {
				return answer
			}
			return ""
		}
	}
	tests := map[string]struct {
		spoil func(action string, n int) string
		want  string
		asked int // how often about instances, of 3 pages
	}{
		"not authorized":     {onPage(1, fault("UnauthorizedOperation")), "UnauthorizedOperation", 1},
		"throttled":          {onPage(2, fault("RequestLimitExceeded")), "RequestLimitExceeded", 6},
		"a token that ended": {onPage(2, fault("InvalidNextToken")), "InvalidNextToken", 2},
		"another's account":  {onPage(2, "<DescribeInstancesResponse><reservationSet>"+reservationOf("i-1", "999999999999")+"</reservationSet></DescribeInstancesResponse>"), "999999999999", 2},
		"pages in a circle":  {onPage(2, "<DescribeInstancesResponse><reservationSet/><nextToken>10</nextToken></DescribeInstancesResponse>"), "same page token", 2},
		"cut short":          {onPage(2, "<DescribeInstancesResponse><reservationSet>"), "decode", 2},
		"an image's owner hides": {func(action string, _ int) string {
			return map[string]string{"DescribeImages": fault("UnauthorizedOperation")}[action]
		}, "images", 3},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f, ids := newFleetEC2(25)
			f.perPage, f.spoil = 10, tt.spoil
			e := startFleet(t, f)
			for what, ask := range map[string]func() (map[ec2ref.InstanceID]*Instance, error){
				"all": func() (map[ec2ref.InstanceID]*Instance, error) { return e.All(t.Context(), theInstance().Place()) },
				"by ids": func() (map[ec2ref.InstanceID]*Instance, error) {
					return e.Instances(t.Context(), theInstance().Place(), ids)
				},
			} {
				f.requests = nil
				found, err := ask()
				if err == nil || found != nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%s: %d found, error %v", what, len(found), err)
				}
				if n := f.count("DescribeInstances"); n != tt.asked {
					t.Errorf("%s: asked %d times, want %d", what, n, tt.asked)
				}
			}
		})
	}
}

func TestThrottlingInTheMiddleOfAList(t *testing.T) {
	f, ids := newFleetEC2(25)
	f.perPage = 10
	f.spoil = func(action string, n int) string {
		if action == "DescribeInstances" && n == 2 {
			return fault("RequestLimitExceeded")
		}
		return ""
	}
	found, err := startFleet(t, f).All(t.Context(), theInstance().Place())
	if err != nil {
		t.Fatal(err)
	}
	checkFleet(t, found, ids)
}

func TestListsAreBounded(t *testing.T) {
	n := 0
	f := &fleetEC2{spoil: func(string, int) string {
		n++
		return fmt.Sprintf("<DescribeInstancesResponse><reservationSet/><nextToken>%d</nextToken></DescribeInstancesResponse>", n)
	}}
	if _, err := startFleet(t, f).All(t.Context(), theInstance().Place()); err == nil || n != maxPages {
		t.Errorf("%d pages, error %v", n, err)
	}
}

// A page is several MB, more than the limit for an answer about one instance.
func TestAPageMayBeLong(t *testing.T) {
	f, ids := newFleetEC2(1000)
	f.spoil = func(action string, _ int) string {
		if action == "DescribeImages" {
			return ""
		}
		var b strings.Builder
		for _, id := range ids {
			b.WriteString(strings.Replace(reservationOf(string(id), account), "<imageId>", "<rest>"+strings.Repeat("x", 4000)+"</rest><imageId>", 1))
		}
		return "<DescribeInstancesResponse><reservationSet>" + b.String() + "</reservationSet></DescribeInstancesResponse>"
	}
	found, err := startFleet(t, f).All(t.Context(), theInstance().Place())
	if err != nil {
		t.Fatal(err)
	}
	checkFleet(t, found, ids)
}

func TestListsOfUnlistedAccountsCallNobody(t *testing.T) {
	f, ids := newFleetEC2(1)
	e := startFleet(t, f)
	_, errAll := e.All(t.Context(), ec2ref.Place{Account: "999999999999", Region: region})
	_, errByID := e.Instances(t.Context(), ec2ref.Place{Account: "999999999999", Region: region}, ids)
	if !errors.Is(errAll, ErrNotListed) || !errors.Is(errByID, ErrNotListed) || len(f.requests) != 0 {
		t.Errorf("errors %v, %v; %d requests", errAll, errByID, len(f.requests))
	}
}
