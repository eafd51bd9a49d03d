package teleport_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/gravitational/trace"

	"github.com/hallmark-ssh/hallmark/e2e/fake/sts"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
)

const (
	botRegion = "us-west-2"
	botARN    = "arn:aws:sts::111122223333:assumed-role/hallmark-enroll/enroll"
	accessKey = "ASIATESTTESTTESTTEST"
)

// joinable is a cluster with a bot that may join with its AWS role.
type joinable struct {
	*teleporttest.Cluster
	sts   *sts.Server
	clock *clock
}

func newJoinable(t *testing.T, options teleporttest.Options) *joinable {
	t.Helper()
	j := &joinable{clock: newClock()}
	j.sts = sts.New(sts.Options{Region: botRegion, Now: j.clock.now})
	j.sts.Register(sts.Credential{AccessKeyID: accessKey, SecretAccessKey: "secret", SessionToken: "token", ARN: botARN})
	options.KeyType, options.STS, options.Now = teleporttest.KeyEd25519, j.sts, j.clock.now
	j.Cluster = start(t, options)
	j.AddBot(teleporttest.Bot{
		Name: "hallmark", Token: "hallmark-signer", Roles: []string{"hallmark-signer"},
		AWSARN: "arn:aws:sts::111122223333:assumed-role/hallmark-enroll/*",
	})
	return j
}

func (j *joinable) config() teleport.Config {
	return teleport.Config{Address: j.Address(), RootsPEM: j.RootsPEM(), Login: bot(), Now: j.clock.now}
}

func bot() teleport.Bot {
	return teleport.Bot{
		Token: "hallmark-signer", Role: "hallmark-signer",
		Credentials: credentials.NewStaticCredentialsProvider(accessKey, "secret", "token"),
		Region:      botRegion, STSHost: "sts." + botRegion + ".amazonaws.com",
	}
}

// joins counts the joins through either service.
func (j *joinable) joins() int {
	calls := j.Calls()
	return calls[newJoin] + calls[oldJoin]
}

// The methods of the two join services, as the cluster counts them.
const (
	newJoin = "Join"
	oldJoin = "RegisterUsingIAMMethod"
)

func isJoin(method string) bool { return method == newJoin || method == oldJoin }

func generations() map[string]teleporttest.Generation {
	return map[string]teleporttest.Generation{"13": teleporttest.Generation13, "19": teleporttest.Generation19}
}

func TestBotWorksInItsRole(t *testing.T) {
	for name, generation := range generations() {
		t.Run(name, func(t *testing.T) {
			j := newJoinable(t, teleporttest.Options{Generation: generation})
			client := dial(t, j.config())
			if client.ClusterName() != j.Name() {
				t.Errorf("cluster %q", client.ClusterName())
			}
			if err := signOne(t, client); err != nil {
				t.Error(err)
			}
			if j.joins() != 1 || j.sts.Calls() != 1 {
				t.Errorf("%d joins, %d calls of STS; want one each", j.joins(), j.sts.Calls())
			}
		})
	}
}

// A login is kept while it is valid, and replaced before it expires: once, however many calls
// need it.
func TestBotRejoins(t *testing.T) {
	j := newJoinable(t, teleporttest.Options{})
	client := dial(t, j.config())
	for _, step := range []struct {
		rest  time.Duration
		joins int
	}{{0, 1}, {39 * time.Minute, 1}, {2 * time.Minute, 2}, {39 * time.Minute, 2}, {3 * time.Minute, 3}} {
		j.clock.advance(step.rest)
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				if _, err := client.CAs(timeout(t, time.Minute)); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if got := j.joins(); got != step.joins {
			t.Errorf("after %s more: %d joins, want %d", step.rest, got, step.joins)
		}
	}
}

// If a bot cannot join again, it stops working only when its login has expired.
func TestBotOutlastsFailedRejoin(t *testing.T) {
	j := newJoinable(t, teleporttest.Options{})
	client := dial(t, j.config())
	j.Intercept(func(_ context.Context, method string) error {
		if isJoin(method) {
			return trace.ConnectionProblem(nil, "no STS today")
		}
		return nil
	})
	call := func() error {
		_, err := client.CAs(timeout(t, time.Minute))
		return err
	}
	j.clock.advance(45 * time.Minute)
	if err := call(); err != nil {
		t.Errorf("with a quarter of the login's life left: %v", err)
	}
	j.clock.advance(16 * time.Minute)
	expect(t, call(), teleport.ErrUnavailable, "no STS today")
	j.Intercept(nil)
	if err := call(); err != nil {
		t.Errorf("joining works again: %v", err)
	}
}

// One temporary failure does not lock a bot out.
func TestBotRetries(t *testing.T) {
	j := newJoinable(t, teleporttest.Options{})
	failures := 2
	var mu sync.Mutex
	j.Intercept(func(_ context.Context, method string) error {
		mu.Lock()
		defer mu.Unlock()
		if isJoin(method) && failures > 0 {
			failures--
			return trace.ConnectionProblem(nil, "restarting")
		}
		return nil
	})
	dial(t, j.config())
	if j.joins() != 3 {
		t.Errorf("%d tries, want 3", j.joins())
	}
}

// Each error says what to change, and comes at once if waiting would not help.
func TestBotRefused(t *testing.T) {
	other := func(change func(*teleport.Bot)) teleport.Bot {
		b := bot()
		change(&b)
		return b
	}
	for name, tt := range map[string]struct {
		change func(*joinable, *teleport.Config)
		want   string
	}{
		"unknown token": {func(_ *joinable, c *teleport.Config) {
			c.Login = other(func(b *teleport.Bot) { b.Token = "nobody's" })
		}, "teleport.login.token"},
		"AWS role not in the list": {func(j *joinable, _ *teleport.Config) {
			j.sts.Register(sts.Credential{AccessKeyID: accessKey, SecretAccessKey: "secret", SessionToken: "token",
				ARN: "arn:aws:sts::111122223333:assumed-role/another/enroll"})
		}, "TeleportTokenArn"},
		"wrong credentials": {func(_ *joinable, c *teleport.Config) {
			c.Login = other(func(b *teleport.Bot) {
				b.Credentials = credentials.NewStaticCredentialsProvider(accessKey, "guessed", "token")
			})
		}, "AWS did not confirm"},
		"clock behind": {func(j *joinable, c *teleport.Config) {
			c.Now = func() time.Time { return j.clock.now().Add(-20 * time.Minute) }
		}, "the clock here is wrong"},
		"clock ahead": {func(j *joinable, c *teleport.Config) {
			c.Now = func() time.Time { return j.clock.now().Add(20 * time.Minute) }
		}, "the clock here is wrong"},
		"region that Teleport does not know": {func(_ *joinable, c *teleport.Config) {
			c.Login = other(func(b *teleport.Bot) { b.STSHost = "sts.us-moon-1.example.com" })
		}, "teleport.login.region"},
		"role that the bot may not use": {func(_ *joinable, c *teleport.Config) {
			c.Login = other(func(b *teleport.Bot) { b.Role = "editor" })
		}, "teleport.login.role"},
		"untrusted proxy": {func(_ *joinable, c *teleport.Config) { c.RootsPEM = nil }, "teleport.roots_file"},
		"name that the proxy does not have": {func(_ *joinable, c *teleport.Config) {
			c.Address = strings.Replace(c.Address, "127.0.0.1", "127.0.0.2", 1)
		}, "teleport.address"},
		"host that does not exist": {func(_ *joinable, c *teleport.Config) { c.Address = "proxy.invalid:443" }, "teleport.address"},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJoinable(t, teleporttest.Options{Listen: "0.0.0.0:0"})
			config := j.config()
			config.Address = strings.Replace(config.Address, "[::]", "127.0.0.1", 1)
			config.Address = strings.Replace(config.Address, "0.0.0.0", "127.0.0.1", 1)
			tt.change(j, &config)
			_, err := teleport.Dial(timeout(t, time.Minute), config)
			kind := teleport.ErrDenied
			if strings.Contains(name, "proxy") || strings.Contains(name, "host") {
				kind = teleport.ErrUnavailable
			}
			expect(t, err, kind, tt.want)
			// Before the client knows who answers, it reveals nothing.
			most := 1
			if errors.Is(kind, teleport.ErrUnavailable) {
				most = 0
			}
			if j.joins() > most {
				t.Errorf("tried %d times, want at most %d", j.joins(), most)
			}
		})
	}
}

// If the client has the auth service's CA, it joins there directly.
func TestBotJoinsAtAuthService(t *testing.T) {
	j := newJoinable(t, teleporttest.Options{})
	config := j.config()
	login := j.IdentityFile()
	config.RootsPEM = login[bytes.LastIndex(login, []byte("-----BEGIN CERTIFICATE")):]
	if err := signOne(t, dial(t, config)); err != nil {
		t.Error(err)
	}
}

// After a rotation of the cluster's TLS CAs the old login no longer works. The call that
// notices this joins again, once for all concurrent calls.
func TestBotRejoinsAfterRotation(t *testing.T) {
	for version, generation := range generations() {
		for ca, rotate := range map[string]func(*teleporttest.Cluster, teleporttest.Phase) error{
			"host": (*teleporttest.Cluster).RotateHost, "user": (*teleporttest.Cluster).RotateUser,
		} {
			for name, pause := range map[string]time.Duration{"connection lost": 0, "connection rested": 2 * idleLimit} {
				t.Run(version+", "+ca+", "+name, func(t *testing.T) {
					j := newJoinable(t, teleporttest.Options{Generation: generation})
					relay := newRelay(t, j.Address())
					config := j.config()
					config.Address = relay.address
					client := dial(t, config)
					if err := signOne(t, client); err != nil {
						t.Fatal(err)
					}
					rotateFully(t, j.Cluster, rotate)
					relay.dropAll()
					j.clock.advance(pause)
					var group sync.WaitGroup
					for range 4 {
						group.Go(func() {
							if err := signOne(t, client); err != nil {
								t.Error(err)
							}
						})
					}
					group.Wait()
					if j.joins() != 2 {
						t.Errorf("%d joins, want 2", j.joins())
					}
				})
			}
		}
	}
}

// rotateFully replaces a CA faster than anybody could follow.
func rotateFully(t *testing.T, cluster *teleporttest.Cluster, rotate func(*teleporttest.Cluster, teleporttest.Phase) error) {
	t.Helper()
	for _, phase := range phases() {
		if err := rotate(cluster, phase); err != nil {
			t.Fatal(err)
		}
	}
}

func phases() []teleporttest.Phase {
	return []teleporttest.Phase{
		teleporttest.PhaseInit, teleporttest.PhaseUpdateClients, teleporttest.PhaseUpdateServers, teleporttest.PhaseStandby,
	}
}

// If a new login does not help either, the error says what is wrong, and the client asks for
// only one.
func TestBotRejoinsInVain(t *testing.T) {
	j := newJoinable(t, teleporttest.Options{})
	relay := newRelay(t, j.Address())
	config := j.config()
	config.Address = relay.address
	client := dial(t, config)
	rotateFully(t, j.Cluster, (*teleporttest.Cluster).RotateUser)
	relay.dropAll()
	j.Intercept(func(_ context.Context, method string) error {
		if isJoin(method) {
			return trace.AccessDenied("the token is not valid")
		}
		return nil
	})
	_, err := client.CAs(timeout(t, time.Minute))
	expect(t, err, teleport.ErrDenied, "teleport.login.token")
	if !strings.Contains(err.Error(), "remote error: tls:") {
		t.Errorf("%v does not say why a new login was wanted", err)
	}
	if j.joins() != 2 {
		t.Errorf("%d joins, want 2", j.joins())
	}
}

// A login from a file stays the same: the error says so at once.
func TestIdentityFileAfterRotation(t *testing.T) {
	cluster := quick(t)
	relay := newRelay(t, cluster.Address())
	c := config(t, cluster)
	c.Address = relay.address
	client := dial(t, c)
	rotateFully(t, cluster, (*teleporttest.Cluster).RotateUser)
	relay.dropAll()
	_, err := client.CAs(timeout(t, time.Minute))
	expect(t, err, teleport.ErrUnavailable, "newer than its last rotation")
	// The new file is used at once.
	fresh, err := cluster.NewIdentityFile(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	replace(t, string(c.Login.(teleport.IdentityFile)), fresh)
	if _, err := client.CAs(timeout(t, time.Minute)); err != nil {
		t.Error(err)
	}
}
