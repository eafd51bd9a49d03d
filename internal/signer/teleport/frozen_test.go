package teleport_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/clocktest"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
)

// freezer is the clock of a process that can be frozen. Its times have a monotonic
// reading, as the system's have.
type freezer struct {
	mu  sync.Mutex
	now time.Time
}

func newFreezer() *freezer { return &freezer{now: time.Now()} }

func (f *freezer) read() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *freezer) freeze() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = clocktest.Freeze(f.now, clocktest.FreezeTime)
}

// The other end of a connection that was frozen with the process may have closed long ago.
func TestAFrozenClientDialsAgain(t *testing.T) {
	cluster := quick(t)
	clock := newFreezer()
	c := config(t, cluster)
	c.Now = clock.read
	client := dial(t, c)
	calls := countConnections(cluster)
	for want := 1; want <= 2; want++ {
		if _, err := client.CAs(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		if got := calls.connections(); got != want {
			t.Errorf("%d connections, want %d", got, want)
		}
		clock.freeze()
	}
}

// A bot's login is valid for an hour and is replaced after two thirds of it.
func TestAFrozenBotJoinsAgain(t *testing.T) {
	j := newJoinable(t, teleporttest.Options{})
	clock := newFreezer()
	c := j.config()
	c.Now = clock.read
	client := dial(t, c)
	for want := 1; want <= 2; want++ {
		if _, err := client.CAs(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		if got := j.joins(); got != want {
			t.Errorf("%d joins, want %d", got, want)
		}
		clock.freeze()
		j.clock.advance(clocktest.FreezeTime)
	}
}

// A secret is read again after a few minutes.
func TestAFrozenClientReadsItsSecretAgain(t *testing.T) {
	cluster := quick(t)
	clock := newFreezer()
	reads := 0
	client := dial(t, teleport.Config{Address: cluster.Address(), Now: clock.read, Login: teleport.IdentitySecret{
		Name: "secret", Read: func(context.Context) ([]byte, error) { reads++; return cluster.IdentityFile(), nil },
	}})
	for want := 1; want <= 2; want++ {
		if _, err := client.CAs(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		if reads != want {
			t.Errorf("%d reads, want %d", reads, want)
		}
		clock.freeze()
	}
}

// No time that a client keeps has a monotonic reading, even if the clock has one.
func TestNoClientStoresAMonotonicReading(t *testing.T) {
	cluster, j := quick(t), newJoinable(t, teleporttest.Options{})
	secret := teleport.Config{Address: cluster.Address(), Login: teleport.IdentitySecret{
		Name: "secret", Read: func(context.Context) ([]byte, error) { return cluster.IdentityFile(), nil },
	}}
	for name, c := range map[string]teleport.Config{"identity file": config(t, cluster), "secret": secret, "bot": j.config()} {
		c.Now = time.Now
		client := dial(t, c)
		if _, err := client.CAs(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		// These are when it was used, when it last compared its login, and when that expires
		// and is renewed.
		if times := clocktest.CheckStored(t, name, client); times < 4 {
			t.Errorf("%s: only %d times found: the test does not see what is stored", name, times)
		}
	}
}
