package inventory

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"

	"github.com/hallmark-ssh/hallmark/internal/clocktest"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

const (
	otherAccount = "999988887777"
	role         = "arn:aws:iam::" + account + ":role/hallmark/reader"
	otherRole    = "arn:aws:iam::" + otherAccount + ":role/hallmark/reader" // of the same name
)

// fakeSTS answers AssumeRole with an access key that names the account and a counter, and
// records the requests.
type fakeSTS struct {
	mu sync.Mutex
	// life is how long the credentials last, an hour if zero.
	life time.Duration
	// session replaces the ARN of the answer.
	session string
	// answer replaces the whole answer.
	answer   string
	requests []string // role, external id and session name
}

func (f *fakeSTS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, strings.Join([]string{r.FormValue("RoleArn"), r.FormValue("ExternalId"), r.FormValue("RoleSessionName")}, " "))
	if f.answer != "" {
		if strings.Contains(f.answer, "<Error>") {
			w.WriteHeader(http.StatusForbidden)
		}
		_, _ = fmt.Fprint(w, f.answer)
		return
	}
	inAccount := strings.Split(r.FormValue("RoleArn"), ":")[4]
	session := f.session
	if session == "" {
		session = "arn:aws:sts::" + inAccount + ":assumed-role/reader/" + r.FormValue("RoleSessionName")
	}
	life := f.life
	if life == 0 {
		life = time.Hour
	}
	type user struct{ Arn string }
	type temporary struct {
		AccessKeyID                               string `xml:"AccessKeyId"`
		SecretAccessKey, SessionToken, Expiration string
	}
	type result struct {
		AssumedRoleUser user
		Credentials     temporary
	}
	_ = xml.NewEncoder(w).Encode(struct {
		XMLName xml.Name `xml:"AssumeRoleResponse"`
		Result  result   `xml:"AssumeRoleResult"`
	}{Result: result{
		AssumedRoleUser: user{session},
		Credentials: temporary{
			AccessKeyID: fmt.Sprintf("ASIA%s-%d", inAccount, len(f.requests)), SecretAccessKey: "secret", SessionToken: "token-" + inAccount,
			Expiration: time.Now().Add(life).UTC().Format(time.RFC3339),
		},
	}})
}

func (f *fakeSTS) calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.requests)
}

func (f *fakeSTS) client(t *testing.T) *sts.Client {
	t.Helper()
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return sts.New(sts.Options{
		Region: region, BaseEndpoint: aws.String(server.URL), HTTPClient: server.Client(), RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider("OWN", "own", ""),
	})
}

func twoAccounts() []Account {
	return []Account{{ID: account, Role: role, ExternalID: "one"}, {ID: otherAccount, Role: otherRole, ExternalID: "two"}}
}

func fakeEC2Everywhere() *fakeEC2 {
	return &fakeEC2{answers: map[string][]string{"DescribeInstances": {instance}, "DescribeImages": {images}}}
}

// Two accounts have roles with the same name: each is asked with its own credentials, any
// number of times for one call to STS.
func TestCredentialsAreTheAccounts(t *testing.T) {
	roles, f := &fakeSTS{}, fakeEC2Everywhere()
	e, _ := startFor(t, f, roles.client(t), twoAccounts()...)
	for range 3 {
		for _, a := range []ec2ref.Account{account, otherAccount} {
			f.authorizations = nil
			if _, err := e.Instance(t.Context(), ec2ref.Instance{Account: a, Region: region, ID: id}); err != nil {
				t.Fatal(err)
			}
			for _, signed := range f.authorizations {
				if !strings.Contains(signed, "Credential=ASIA"+string(a)+"-") {
					t.Errorf("account %s was asked about with %q", a, signed)
				}
			}
		}
	}
	want := []string{role + " one hallmark-signer", otherRole + " two hallmark-signer"}
	if fmt.Sprint(roles.requests) != fmt.Sprint(want) {
		t.Errorf("calls of STS:\n got %q\nwant %q", roles.requests, want)
	}
}

func TestAnAccountWithoutARoleUsesTheOwnCredentials(t *testing.T) {
	roles, f := &fakeSTS{}, fakeEC2Everywhere()
	e, _ := startFor(t, f, roles.client(t), Account{ID: account}, twoAccounts()[1])
	if _, err := e.Instance(t.Context(), theInstance()); err != nil {
		t.Fatal(err)
	}
	if roles.calls() != 0 || !strings.Contains(f.authorizations[0], "Credential=test/") {
		t.Errorf("%d calls of STS, signed %q", roles.calls(), f.authorizations[0])
	}
}

func TestAnAccountThatIsNotListedMakesNoCall(t *testing.T) {
	roles, f := &fakeSTS{}, fakeEC2Everywhere()
	e, waits := startFor(t, f, roles.client(t), twoAccounts()...)
	for _, a := range []ec2ref.Account{"123456789012", "", "11112222333", account + " "} {
		if _, err := e.Instance(t.Context(), ec2ref.Instance{Account: a, Region: region, ID: id}); !errors.Is(err, ErrNotListed) {
			t.Errorf("account %q: error %v, want %v", a, err, ErrNotListed)
		}
	}
	if roles.calls() != 0 || len(f.requests) != 0 || len(*waits) != 0 {
		t.Errorf("%d calls of STS, %d of EC2, %d waits; want none", roles.calls(), len(f.requests), len(*waits))
	}
}

// Members of an organization come and go while the process runs. One that left gets no
// call, although STS's credentials for it would still work.
func TestMembersComeAndGo(t *testing.T) {
	roles, f := &fakeSTS{}, fakeEC2Everywhere()
	e, _ := startFor(t, f, roles.client(t))
	members := map[ec2ref.Account]bool{}
	e.credentials.member = func(id ec2ref.Account) (Account, bool) {
		return Account{ID: id, Role: "arn:aws:iam::" + string(id) + ":role/member", ExternalID: "x"}, members[id]
	}
	ask := func() error {
		_, err := e.Instance(t.Context(), ec2ref.Instance{Account: account, Region: region, ID: id})
		return errors.Join(err, e.CheckAccount(t.Context(), account))
	}
	if err := ask(); !errors.Is(err, ErrNotListed) || roles.calls()+len(f.requests) != 0 {
		t.Fatalf("before it joined: error %v, %d calls of STS, %d of EC2", err, roles.calls(), len(f.requests))
	}
	members[account] = true
	for range 2 {
		if err := ask(); err != nil {
			t.Fatal(err)
		}
	}
	if roles.calls() != 1 || !strings.HasPrefix(roles.requests[0], "arn:aws:iam::"+account+":role/member x ") {
		t.Errorf("STS was asked %q", roles.requests)
	}
	asked := len(f.requests)
	members[account] = false
	if err := ask(); !errors.Is(err, ErrNotListed) || len(f.requests) != asked {
		t.Errorf("after it left: error %v, %d more calls of EC2", err, len(f.requests)-asked)
	}
}

func TestCredentialsAreFetchedOnceForAll(t *testing.T) {
	roles := &fakeSTS{}
	byAccount := newCredentials(Config{Roles: roles.client(t), Accounts: twoAccounts()})
	var all sync.WaitGroup
	for range 50 {
		for _, provider := range byAccount.listed {
			all.Go(func() {
				if _, err := provider.Retrieve(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	if n := roles.calls(); n != 2 {
		t.Errorf("%d calls of STS for two accounts", n)
	}
}

func TestCredentialsAreRenewedBeforeTheirEnd(t *testing.T) {
	for name, tt := range map[string]struct {
		life  time.Duration
		calls int
	}{
		"with time left":      {renewBefore + time.Minute, 1},
		"soon to end":         {renewBefore - time.Minute, 3},
		"that ended long ago": {-time.Hour, 3},
	} {
		t.Run(name, func(t *testing.T) {
			roles := &fakeSTS{life: tt.life}
			provider := newCredentials(Config{Roles: roles.client(t), Accounts: twoAccounts()}).listed[account]
			for range 3 {
				if _, err := provider.Retrieve(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if n := roles.calls(); n != tt.calls {
				t.Errorf("%d calls of STS, want %d", n, tt.calls)
			}
		})
	}
}

// A caller who gives up does not take the answer away from the others who wait for it.
func TestOneWhoGivesUpLeavesTheCallToTheOthers(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	slow := assumerFunc(func(ctx context.Context) error {
		close(asked)
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	provider := newCredentials(Config{Roles: slow, Accounts: twoAccounts()}).listed[account]
	impatient, giveUp := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { _, err := provider.Retrieve(impatient); first <- err }()
	<-asked
	go func() { _, err := provider.Retrieve(t.Context()); second <- err }()
	giveUp()
	if err := <-first; err == nil {
		t.Error("the one who gave up got an answer")
	}
	close(release)
	if err := <-second; err != nil {
		t.Errorf("the other got %v", err)
	}
}

// assumerFunc answers for the first account's role, unless it fails.
type assumerFunc func(ctx context.Context) error

func (f assumerFunc) AssumeRole(ctx context.Context, _ *sts.AssumeRoleInput, _ ...func(*sts.Options)) (*sts.AssumeRoleOutput, error) {
	if err := f(ctx); err != nil {
		return nil, err
	}
	return assumed("arn:aws:sts::" + account + ":assumed-role/reader/hallmark-signer"), nil
}

func TestTheCallOfSTSIsBounded(t *testing.T) {
	var deadline time.Time
	provider := Credentials(assumerFunc(func(ctx context.Context) error {
		deadline, _ = ctx.Deadline()
		return nil
	}), twoAccounts()[0])
	if _, err := provider.Retrieve(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := time.Until(deadline); left > assumeTimeout {
		t.Errorf("the call may take %s, more than %s", left, assumeTimeout)
	}
}

func TestAssumeRoleRefuses(t *testing.T) {
	const denied = `<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>`
	tests := map[string]struct {
		sts  *fakeSTS
		want string
	}{
		"another account":        {&fakeSTS{session: "arn:aws:sts::" + otherAccount + ":assumed-role/reader/hallmark-signer"}, otherAccount},
		"a user":                 {&fakeSTS{session: "arn:aws:iam::" + account + ":user/reader"}, "not a session of a role"},
		"a federated user":       {&fakeSTS{session: "arn:aws:sts::" + account + ":federated-user/reader"}, "not a session of a role"},
		"no ARN":                 {&fakeSTS{session: "reader"}, "STS's answer"},
		"an account in the name": {&fakeSTS{session: "arn:aws:sts::" + otherAccount + ":assumed-role/" + account + "/x"}, otherAccount},
		"nothing":                {&fakeSTS{answer: "<AssumeRoleResponse><AssumeRoleResult/></AssumeRoleResponse>"}, "without an identity"},
		"no keys": {&fakeSTS{answer: "<AssumeRoleResponse><AssumeRoleResult><AssumedRoleUser><Arn>arn:aws:sts::" + account + ":assumed-role/reader/x</Arn></AssumedRoleUser>" +
			"<Credentials><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"}, "half of the credentials"},
		"another action's answer": {&fakeSTS{answer: "<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>arn:aws:sts::" + account +
			":assumed-role/reader/x</Arn></GetCallerIdentityResult></GetCallerIdentityResponse>"}, "assume role"},
		"an error with status 200": {&fakeSTS{answer: strings.ReplaceAll(denied, "Error>", "Fault>")}, "assume role"},
		"a refusal":                {&fakeSTS{answer: denied}, "AccessDenied"},
		"no XML":                   {&fakeSTS{answer: "<html"}, "assume role"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := fakeEC2Everywhere()
			e, _ := startFor(t, f, tt.sts.client(t), twoAccounts()...)
			_, err := e.Instance(t.Context(), theInstance())
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), role) {
				t.Errorf("error %v; want %q and the role", err, tt.want)
			}
			if errors.Is(err, ErrNotFound) || errors.Is(err, ErrNotListed) || len(f.requests) != 0 {
				t.Errorf("error %v, %d calls of EC2; want another error, and none", err, len(f.requests))
			}
		})
	}
}

// identifier answers with an account, or an error.
type identifier struct {
	account string
	err     error
	calls   int
}

func (i *identifier) GetCallerIdentity(context.Context, *sts.GetCallerIdentityInput, ...func(*sts.Options)) (*sts.GetCallerIdentityOutput, error) {
	i.calls++
	return &sts.GetCallerIdentityOutput{Account: aws.String(i.account)}, i.err
}

func TestCheckAccount(t *testing.T) {
	member := Account{ID: otherAccount, Role: otherRole, ExternalID: "two"}
	for name, tt := range map[string]struct {
		identity *identifier
		account  ec2ref.Account
		want     string
		calls    int // of two questions
	}{
		"the own account":        {&identifier{account: account}, account, "", 1},
		"credentials of another": {&identifier{account: otherAccount}, account, otherAccount, 2},
		"no account":             {&identifier{}, account, "belong to account", 2},
		"STS does not answer":    {&identifier{err: errors.New("timeout")}, account, "timeout", 2},
		"an account with a role": {&identifier{account: account}, otherAccount, "", 0},
		"an account not listed":  {&identifier{account: account}, "123456789012", "not listed", 0},
	} {
		t.Run(name, func(t *testing.T) {
			e := New(Config{Accounts: []Account{{ID: account}, member}, Identity: tt.identity, Now: time.Now})
			for range 2 {
				if err := e.CheckAccount(t.Context(), tt.account); (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %v, want %q", err, tt.want)
				}
			}
			if tt.identity.calls != tt.calls {
				t.Errorf("STS was asked %d times, want %d", tt.identity.calls, tt.calls)
			}
		})
	}
}

// assumed is STS's answer for a session.
func assumed(session string) *sts.AssumeRoleOutput {
	return &sts.AssumeRoleOutput{
		AssumedRoleUser: &types.AssumedRoleUser{Arn: aws.String(session)},
		Credentials: &types.Credentials{
			AccessKeyId: aws.String("ASIA"), SecretAccessKey: aws.String("secret"), SessionToken: aws.String("token"),
			Expiration: aws.Time(time.Now().Add(time.Hour)),
		},
	}
}

// assume returns the credentials of a role.
func assume(client RoleAssumer) aws.CredentialsProvider {
	return Credentials(client, Account{ID: account, Role: role, ExternalID: "one"})
}

// Lambda freezes the process, and its monotonic clock stands still: credentials that have
// expired in the meantime still seem valid by that clock.
func TestAFrozenProcessAssumesTheRoleAgain(t *testing.T) {
	roles := new(frozenSTS)
	provider := assume(roles)
	for want := 1; want <= 2; want++ {
		if _, err := provider.Retrieve(t.Context()); err != nil {
			t.Fatal(err)
		}
		if roles.calls != want {
			t.Errorf("STS was asked %d times, want %d", roles.calls, want)
		}
	}
}

// frozenSTS issues credentials for half an hour, and then the process is frozen for longer:
// they have expired by the wall clock, but not by the monotonic one.
type frozenSTS struct{ calls int }

func (s *frozenSTS) AssumeRole(context.Context, *sts.AssumeRoleInput, ...func(*sts.Options)) (*sts.AssumeRoleOutput, error) {
	s.calls++
	return &sts.AssumeRoleOutput{
		AssumedRoleUser: &types.AssumedRoleUser{Arn: aws.String("arn:aws:sts::" + account + ":assumed-role/reader/hallmark-signer")},
		Credentials: &types.Credentials{
			AccessKeyId: aws.String("ASIA"), SecretAccessKey: aws.String("secret"), SessionToken: aws.String("token"),
			Expiration: aws.Time(clocktest.Freeze(time.Now().Add(30*time.Minute), -clocktest.FreezeTime)),
		},
	}, nil
}

// STS closes the connections of a frozen process. The next call must not fail because of that.
func TestAssumeRoleOnAConnectionThatSTSClosed(t *testing.T) {
	roles := &fakeSTS{life: time.Minute} // less than renewBefore: asked each time
	server, closed := clocktest.HangUp(t, roles)
	provider := assume(sts.New(sts.Options{
		Region: region, BaseEndpoint: aws.String(server.URL), HTTPClient: server.Client(),
		Retryer:     retry.NewStandard(func(o *retry.StandardOptions) { o.Backoff = atOnce{} }),
		Credentials: credentials.NewStaticCredentialsProvider("OWN", "own", ""),
	}))
	for tries := 1; closed.Load() == 0; tries++ { // package net/http may drop a connection by itself
		if _, err := provider.Retrieve(t.Context()); err != nil || tries > 100 {
			t.Fatalf("call %d: error %v", tries, err)
		}
	}
}

// atOnce lets the SDK retry without waiting.
type atOnce struct{}

func (atOnce) BackoffDelay(int, error) (time.Duration, error) { return 0, nil }
