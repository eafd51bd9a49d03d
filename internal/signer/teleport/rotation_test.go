package teleport_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// phaseOf is a phase of one CA's rotation, and whether the bot joins in it.
type phaseOf struct {
	phase teleporttest.Phase
	joins bool
}

// In each phase of each rotation the bot's login is valid and machines accept its
// certificates. The bot joins again while both the old and the new CA are trusted, although no
// connection breaks. When the old CA is gone, nothing is left to do.
func TestRotationWithoutRestart(t *testing.T) {
	const (
		begin, clients, servers = teleporttest.PhaseInit, teleporttest.PhaseUpdateClients, teleporttest.PhaseUpdateServers
		end, back               = teleporttest.PhaseStandby, teleporttest.PhaseRollback
	)
	for ca, tt := range map[string]struct {
		rotate func(*teleporttest.Cluster, teleporttest.Phase) error
		phases []phaseOf
	}{
		// A new login has the servers' new CA.
		"host":           {(*teleporttest.Cluster).RotateHost, []phaseOf{{begin, true}, {clients, false}, {servers, false}, {end, false}}},
		"host, rollback": {(*teleporttest.Cluster).RotateHost, []phaseOf{{begin, true}, {clients, false}, {servers, false}, {back, false}, {end, false}}},
		// A new login is signed by the users' new CA.
		"user":           {(*teleporttest.Cluster).RotateUser, []phaseOf{{begin, false}, {clients, true}, {servers, false}, {end, false}}},
		"user, rollback": {(*teleporttest.Cluster).RotateUser, []phaseOf{{begin, false}, {clients, true}, {back, true}, {end, false}}},
		"openssh":        {(*teleporttest.Cluster).RotateOpenSSH, []phaseOf{{begin, false}, {clients, false}, {servers, false}, {end, false}}},
	} {
		for version, generation := range generations() {
			t.Run(version+", "+ca, func(t *testing.T) {
				j := newJoinable(t, teleporttest.Options{Generation: generation})
				relay := newRelay(t, j.Address())
				config := j.config()
				config.Address = relay.address
				client := dial(t, config)
				joins := 1
				for _, p := range tt.phases {
					if err := tt.rotate(j.Cluster, p.phase); err != nil {
						t.Fatal(err)
					}
					j.clock.advance(6 * time.Minute) // shorter than a login's life
					if p.joins {
						joins++
					}
					verifyOnMachine(t, client)
					if j.joins() != joins {
						t.Errorf("after phase %s: %d joins, want %d", p.phase, j.joins(), joins)
					}
				}
				// A login of a CA that is gone would stop working here.
				relay.dropAll()
				verifyOnMachine(t, client)
				if j.joins() != joins {
					t.Errorf("after the rotation: %d joins, want %d", j.joins(), joins)
				}
			})
		}
	}
}

// verifyOnMachine has a key certified and checks the certificate as a machine does.
func verifyOnMachine(t *testing.T, client *teleport.Client) {
	t.Helper()
	key, principals := sshkeytest.NewSigner(t).PublicKey(), []string{"web-1"}
	cert, err := client.SignHostKey(timeout(t, time.Minute), key, principals, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cas, err := client.CAs(timeout(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	// The cluster's clock is ahead.
	now := time.Unix(int64(cert.ValidAfter), 0).Add(time.Minute)
	if err := hostcert.Check(cert, hostcert.Want{
		Key: key, Principals: principals, CAs: cas.Host, MaxLifetime: time.Hour,
	}, now); err != nil {
		t.Error(err)
	}
}

// Checking for a rotation costs two calls in five minutes, however many other calls there are.
func TestRotationIsLookedForRarely(t *testing.T) {
	j := newJoinable(t, teleporttest.Options{})
	client := dial(t, j.config())
	call := func() {
		t.Helper()
		if _, err := client.Node(timeout(t, time.Minute), "nobody"); err == nil {
			t.Fatal("a node of nobody")
		}
	}
	read := func() int { return j.Calls()["GetCertAuthority"] }
	for _, step := range []struct {
		rest time.Duration
		want int
	}{{0, 0}, {4 * time.Minute, 0}, {2 * time.Minute, 2}, {4 * time.Minute, 2}, {2 * time.Minute, 4}} {
		j.clock.advance(step.rest)
		for range 5 {
			call()
		}
		if got := read(); got != step.want {
			t.Errorf("after %s more: %d readings, want %d", step.rest, got, step.want)
		}
	}
}

// A login from a file cannot follow a rotation by itself: the log says so, and calls continue.
func TestRotationOfIdentityFile(t *testing.T) {
	cluster := quick(t)
	clock := newClock()
	var log bytes.Buffer
	c := config(t, cluster)
	c.Now, c.Log = clock.now, slog.New(slog.NewJSONHandler(&log, nil))
	client := dial(t, c)
	for _, phase := range []teleporttest.Phase{teleporttest.PhaseInit, teleporttest.PhaseUpdateClients} {
		if err := cluster.RotateUser(phase); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		clock.advance(4 * time.Minute)
		if err := signOne(t, client); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(log.String(), "renew the login before the rotation ends"); n != 1 {
		t.Errorf("%d warnings, want 1; log: %s", n, &log)
	}
}
