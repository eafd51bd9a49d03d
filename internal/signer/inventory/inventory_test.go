package inventory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/hallmark-ssh/hallmark/internal/clocktest"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

const (
	account  = "111122223333"
	region   = "us-west-2"
	id       = "i-0a1b2c3d4e5f60718"
	ami      = "ami-0a1b2c3d4e5f60718"
	instance = `<DescribeInstancesResponse><reservationSet><item><ownerId>111122223333</ownerId><instancesSet><item>
		<instanceId>` + id + `</instanceId><imageId>` + ami + `</imageId>
		<instanceState><code>16</code><name>running</name></instanceState>
		<privateIpAddress>10.0.0.7</privateIpAddress><ipAddress>192.0.2.7</ipAddress><ipv6Address>2001:db8::7</ipv6Address>
		<privateDnsName>ip-10-0-0-7.us-west-2.compute.internal</privateDnsName><placement><availabilityZone>us-west-2b</availabilityZone></placement>
		<vpcId>vpc-1</vpcId><subnetId>subnet-1</subnetId><launchTime>2026-01-02T03:04:05.000Z</launchTime>
		<iamInstanceProfile><arn>arn:aws:iam::111122223333:instance-profile/web</arn></iamInstanceProfile>
		<tagSet><item><key>Name</key><value>web</value></item><item><key>empty</key><value/></item></tagSet>
		<metadataOptions><state>applied</state><httpTokens>required</httpTokens><httpPutResponseHopLimit>1</httpPutResponseHopLimit>
		<httpEndpoint>enabled</httpEndpoint><httpProtocolIpv6>disabled</httpProtocolIpv6><instanceMetadataTags>disabled</instanceMetadataTags></metadataOptions>
		</item></instancesSet></item></reservationSet></DescribeInstancesResponse>`
	images = `<DescribeImagesResponse><imagesSet><item><imageId>` + ami + `</imageId>
		<imageOwnerId>444455556666</imageOwnerId><tagSet><item><key>pipeline</key><value>golden</value></item></tagSet>
		</item></imagesSet></DescribeImagesResponse>`
	noInstances = `<DescribeInstancesResponse><reservationSet/></DescribeInstancesResponse>`
	noImages    = `<DescribeImagesResponse><imagesSet/></DescribeImagesResponse>`
)

// theInstance is the instance that the tests ask about.
func theInstance() ec2ref.Instance { return ec2ref.Instance{Account: account, Region: region, ID: id} }

func fault(code string) string {
	return `<Response><Errors><Error><Code>` + code + `</Code><Message>no</Message></Error></Errors></Response>`
}

// fakeEC2 answers each action with the next of its answers, and repeats the last one.
type fakeEC2 struct {
	mu       sync.Mutex
	answers  map[string][]string
	requests []url.Values

	authorizations []string
}

func (f *fakeEC2) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	data, _ := io.ReadAll(r.Body)
	form, _ := url.ParseQuery(string(data))
	f.requests = append(f.requests, form)
	f.authorizations = append(f.authorizations, r.Header.Get("Authorization"))
	action := form.Get("Action")
	answers := f.answers[action]
	if len(answers) > 1 {
		f.answers[action] = answers[1:]
	}
	if strings.Contains(answers[0], "<Errors>") {
		w.WriteHeader(http.StatusBadRequest)
	}
	_, _ = io.WriteString(w, answers[0])
}

func (f *fakeEC2) count(action string) (n int) {
	for _, r := range f.requests {
		if r.Get("Action") == action {
			n++
		}
	}
	return n
}

// start returns an EC2 that asks the fake about one account, with the available credentials,
// and waits no real time.
func start(t *testing.T, f *fakeEC2) (e *EC2, waits *[]time.Duration) {
	return startFor(t, f, nil, Account{ID: account})
}

func startFor(t *testing.T, f http.Handler, roles RoleAssumer, accounts ...Account) (e *EC2, waits *[]time.Duration) {
	t.Helper()
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	e = New(Config{
		AWS: aws.Config{
			Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
				return aws.Credentials{AccessKeyID: "test", SecretAccessKey: "test"}, nil
			}),
			HTTPClient: server.Client(),
		},
		Accounts: accounts,
		Roles:    roles,
		Endpoint: func(region ec2ref.Region) (string, error) { return server.URL + "/" + string(region), nil },
		Now:      time.Now,
	})
	waits = new([]time.Duration)
	e.Wait = func(ctx context.Context, d time.Duration) error {
		*waits = append(*waits, d)
		return ctx.Err()
	}
	return e, waits
}

func TestInstance(t *testing.T) {
	e, _ := start(t, &fakeEC2{answers: map[string][]string{"DescribeInstances": {instance}, "DescribeImages": {images}}})
	got, err := e.Instance(t.Context(), theInstance())
	if err != nil {
		t.Fatal(err)
	}
	want := Instance{
		ID: id, OwnerID: "111122223333", State: StateRunning, Region: region, AvailabilityZone: "us-west-2b",
		VPC: "vpc-1", Subnet: "subnet-1", PrivateIP: "10.0.0.7", PublicIP: "192.0.2.7", IPv6: "2001:db8::7",
		ImageID: ami, ImageOwner: "444455556666", InstanceProfileARN: "arn:aws:iam::111122223333:instance-profile/web",
		PrivateDNS: "ip-10-0-0-7.us-west-2.compute.internal",
		LaunchTime: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Tags: map[string]string{"Name": "web", "empty": ""},
		MetadataOptions: protocol.MetadataOptions{HTTPTokens: protocol.TokensRequired, HopLimit: 1},
	}
	if g, w := fmt.Sprintf("%+v", *got), fmt.Sprintf("%+v", want); g != w {
		t.Errorf("got  %s\nwant %s", g, w)
	}
}

// Metadata options that are missing or odd are unknown, and the rest of the answer counts.
func TestMetadataOptions(t *testing.T) {
	type options = protocol.MetadataOptions
	const (
		tokens = "<httpTokens>required</httpTokens>"
		limit  = "<httpPutResponseHopLimit>1</httpPutResponseHopLimit>"
	)
	before, rest, _ := strings.Cut(instance, "<metadataOptions>")
	_, after, _ := strings.Cut(rest, "</metadataOptions>")
	for name, tt := range map[string]struct {
		text string
		want options
	}{
		"none":                   {"", options{}},
		"an empty element":       {"<metadataOptions/>", options{}},
		"text":                   {"<metadataOptions>required</metadataOptions>", options{}},
		"tokens alone":           {"<metadataOptions>" + tokens + "</metadataOptions>", options{HTTPTokens: "required"}},
		"a limit alone":          {"<metadataOptions>" + limit + "</metadataOptions>", options{HopLimit: 1}},
		"of a starting instance": {"<metadataOptions><state>pending</state>" + tokens + limit + "</metadataOptions>", options{HTTPTokens: "required", HopLimit: 1}},
		"the largest limit":      {"<metadataOptions><httpTokens>optional</httpTokens><httpPutResponseHopLimit>64</httpPutResponseHopLimit></metadataOptions>", options{HTTPTokens: "optional", HopLimit: 64}},
		"too large a limit":      {"<metadataOptions>" + tokens + "<httpPutResponseHopLimit>65</httpPutResponseHopLimit></metadataOptions>", options{HTTPTokens: "required"}},
		"a limit of 0":           {"<metadataOptions><httpPutResponseHopLimit>0</httpPutResponseHopLimit></metadataOptions>", options{}},
		"a negative limit":       {"<metadataOptions><httpPutResponseHopLimit>-1</httpPutResponseHopLimit></metadataOptions>", options{}},
		"a limit in words":       {"<metadataOptions><httpPutResponseHopLimit>one</httpPutResponseHopLimit></metadataOptions>", options{}},
		"a huge limit":           {"<metadataOptions><httpPutResponseHopLimit>" + strings.Repeat("9", 10_000) + "</httpPutResponseHopLimit></metadataOptions>", options{}},
		"an empty limit":         {"<metadataOptions><httpPutResponseHopLimit/></metadataOptions>", options{}},
		"an unknown word":        {"<metadataOptions><httpTokens>no-preference</httpTokens>" + limit + "</metadataOptions>", options{HopLimit: 1}},
		"a long word":            {"<metadataOptions><httpTokens>" + strings.Repeat("required", 10_000) + "</httpTokens></metadataOptions>", options{}},
		"an element inside":      {"<metadataOptions><httpTokens><x/></httpTokens>" + limit + "</metadataOptions>", options{HopLimit: 1}},
		"twice":                  {"<metadataOptions>" + tokens + tokens + limit + limit + "</metadataOptions>", options{}},
		"two elements":           {strings.Repeat("<metadataOptions>"+tokens+limit+"</metadataOptions>", 2), options{}},
		"elsewhere":              {tokens + limit, options{}},
	} {
		t.Run(name, func(t *testing.T) {
			e, _ := start(t, &fakeEC2{answers: map[string][]string{"DescribeInstances": {before + tt.text + after}, "DescribeImages": {images}}})
			got, err := e.Instance(t.Context(), theInstance())
			if err != nil {
				t.Fatal(err)
			}
			if got.MetadataOptions != tt.want || got.State != StateRunning {
				t.Errorf("got %+v, want %+v", got.MetadataOptions, tt.want)
			}
		})
	}
}

func TestImageOwner(t *testing.T) {
	tests := map[string]struct {
		answer string
		want   ec2ref.Account
		fails  bool
	}{
		"known":                {images, "444455556666", false},
		"no account":           {strings.Replace(images, "444455556666", "amazon", 1), "", true},
		"gone":                 {fault("InvalidAMIID.NotFound"), "", false},
		"no longer shared":     {fault("InvalidAMIID.Unavailable"), "", false},
		"not in the answer":    {noImages, "", false},
		"an answer on another": {strings.Replace(images, ami, "ami-other", 1), "", true},
		"not allowed to ask":   {fault("UnauthorizedOperation"), "", true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			e, _ := start(t, &fakeEC2{answers: map[string][]string{"DescribeInstances": {instance}, "DescribeImages": {tt.answer}}})
			got, err := e.Instance(t.Context(), theInstance())
			if (err != nil) != tt.fails {
				t.Fatalf("error %v, want one: %v", err, tt.fails)
			}
			if err == nil && got.ImageOwner != tt.want {
				t.Errorf("owner %q, want %q", got.ImageOwner, tt.want)
			}
		})
	}
}

func TestImageTags(t *testing.T) {
	own := strings.Replace(images, "444455556666", account, 1)
	tests := map[string]struct{ answer, want string }{
		"of the instance's own account": {own, "map[pipeline:golden]"},
		"of another account":            {images, "map[]"},
		"of nobody":                     {noImages, "map[]"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			e, _ := start(t, &fakeEC2{answers: map[string][]string{"DescribeInstances": {instance}, "DescribeImages": {tt.answer}}})
			for range 2 { // asked, and remembered
				got, err := e.Instance(t.Context(), theInstance())
				if err != nil || fmt.Sprint(got.ImageTags) != tt.want {
					t.Fatalf("tags %v, error %v; want %s", got.ImageTags, err, tt.want)
				}
				clear(got.ImageTags) // remembered facts stay the same
			}
		})
	}
}

func TestImageIsRememberedForAWhile(t *testing.T) {
	f := &fakeEC2{answers: map[string][]string{"DescribeInstances": {instance}, "DescribeImages": {noImages, images}}}
	e, _ := start(t, f)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	e.now = func() time.Time { return now }
	for i, asked := range []int{1, 2, 2, 3} {
		if i == 3 {
			now = now.Add(imageLife)
		}
		if _, err := e.Instance(t.Context(), theInstance()); err != nil {
			t.Fatal(err)
		}
		if n := f.count("DescribeImages"); n != asked {
			t.Errorf("request %d: asked %d times; want %d", i, n, asked)
		}
	}
}

// A process that was frozen asks again, although its monotonic clock stood still. It does so
// even if EC2 has closed the connection in the meantime.
func TestAFrozenProcessAsksAboutTheImageAgain(t *testing.T) {
	f := &fakeEC2{answers: map[string][]string{"DescribeInstances": {instance}, "DescribeImages": {images}}}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	e, waits := start(t, f)
	e.client.HTTP, e.endpoint = server.Client(), func(ec2ref.Region) (string, error) { return server.URL, nil }
	now := time.Now()
	e.now = func() time.Time { return now }
	for want := 1; want <= 2; want++ {
		if _, err := e.Instance(t.Context(), theInstance()); err != nil {
			t.Fatal(err)
		}
		if n := f.count("DescribeImages"); n != want {
			t.Errorf("asked %d times, want %d", n, want)
		}
		if times := clocktest.CheckStored(t, "EC2", e); times < 1 {
			t.Errorf("%d times found", times)
		}
		server.CloseClientConnections()
		now = clocktest.Freeze(now, clocktest.FreezeTime)
	}
	if len(*waits) > 1 {
		t.Errorf("waited %v for connections that were closed", *waits)
	}
}

// What one account or region says about an image does not count for another.
func TestImageIsRememberedForItsPlaceAlone(t *testing.T) {
	const other = "999988887777"
	f := &fakeEC2{answers: map[string][]string{"DescribeInstances": {instance}, "DescribeImages": {images}}}
	e, _ := startFor(t, f, nil, Account{ID: account}, Account{ID: other})
	for range 2 {
		for _, at := range []ec2ref.Place{{Account: account, Region: region}, {Account: account, Region: "us-east-1"}, {Account: other, Region: region}} {
			if _, err := e.Instance(t.Context(), ec2ref.Instance{Account: at.Account, Region: at.Region, ID: id}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := f.count("DescribeImages"); n != 3 {
		t.Errorf("asked %d times, want once for each account and region, 3", n)
	}
}

func TestRememberedImagesAreBounded(t *testing.T) {
	e, _ := start(t, &fakeEC2{})
	for i := range 3 * maxImages {
		e.remember(imageKey{theInstance().Place(), fmt.Sprintf("ami-%d", i)}, image{owner: account})
	}
	if n := len(e.images); n > maxImages {
		t.Errorf("%d images remembered, more than %d", n, maxImages)
	}
}

func TestNotFoundIsAskedAgain(t *testing.T) {
	for name, answer := range map[string]string{"an error": fault("InvalidInstanceID.NotFound"), "an empty answer": noInstances} {
		t.Run(name, func(t *testing.T) {
			e, waits := start(t, &fakeEC2{answers: map[string][]string{
				"DescribeInstances": {answer, answer, instance}, "DescribeImages": {images},
			}})
			if _, err := e.Instance(t.Context(), theInstance()); err != nil {
				t.Fatal(err)
			}
			if len(*waits) != 2 {
				t.Errorf("waited %v, want twice", *waits)
			}
		})
	}
}

func TestNotFoundEndsBeforeLong(t *testing.T) {
	f := &fakeEC2{answers: map[string][]string{"DescribeInstances": {fault("InvalidInstanceID.NotFound")}}}
	e, waits := start(t, f)
	_, err := e.Instance(t.Context(), theInstance())
	if !errors.Is(err, ErrNotFound) {
		t.Fatalf("error %v, want %v", err, ErrNotFound)
	}
	if n := f.count("DescribeInstances"); n != 5 {
		t.Errorf("asked %d times, want 5", n)
	}
	for i, longest := 0, 250*time.Millisecond; i < len(*waits); i, longest = i+1, longest*2 {
		if wait := (*waits)[i]; wait < 0 || wait >= longest {
			t.Errorf("wait %d is %s, not below %s", i, wait, longest)
		}
	}
}

func TestNotFoundWhenTimeIsUp(t *testing.T) {
	f := &fakeEC2{answers: map[string][]string{"DescribeInstances": {fault("InvalidInstanceID.NotFound")}}}
	e, _ := start(t, f)
	e.Wait = func(context.Context, time.Duration) error { return context.DeadlineExceeded }
	if _, err := e.Instance(t.Context(), theInstance()); !errors.Is(err, ErrNotFound) {
		t.Errorf("error %v, want what EC2 said", err)
	}
}

func TestOtherErrorsAreNotNotFound(t *testing.T) {
	for code, asked := range map[string]int{"UnauthorizedOperation": 1, "RequestLimitExceeded": 5} {
		f := &fakeEC2{answers: map[string][]string{"DescribeInstances": {fault(code)}}}
		e, _ := start(t, f)
		_, err := e.Instance(t.Context(), theInstance())
		if err == nil || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), code) {
			t.Errorf("%s: error %v", code, err)
		}
		if n := f.count("DescribeInstances"); n != asked {
			t.Errorf("%s: asked %d times, want %d", code, n, asked)
		}
	}
}

// It is the answer to another request, and says nothing about this one.
func TestAnAnswerOnAnotherInstanceIsAnError(t *testing.T) {
	other := strings.ReplaceAll(instance, id, "i-0123456789abcdef0")
	e, _ := start(t, &fakeEC2{answers: map[string][]string{"DescribeInstances": {other}}})
	if _, err := e.Instance(t.Context(), theInstance()); !errors.Is(err, errAnswer) || errors.Is(err, ErrNotFound) {
		t.Errorf("error %v, want %v", err, errAnswer)
	}
}

func TestRequestsAreSignedForTheRegion(t *testing.T) {
	f := &fakeEC2{answers: map[string][]string{"DescribeInstances": {instance}, "DescribeImages": {images}}}
	e, _ := start(t, f)
	if _, err := e.Instance(t.Context(), theInstance()); err != nil {
		t.Fatal(err)
	}
	for _, signed := range f.authorizations {
		if !strings.HasPrefix(signed, "AWS4-HMAC-SHA256 Credential=test/") || !strings.Contains(signed, "/us-west-2/ec2/aws4_request") {
			t.Errorf("Authorization %q", signed)
		}
	}
}

func TestAGarbledAnswerIsAnError(t *testing.T) {
	e, _ := start(t, &fakeEC2{answers: map[string][]string{"DescribeInstances": {"<html>"}}})
	if _, err := e.Instance(t.Context(), theInstance()); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("error %v", err)
	}
}
