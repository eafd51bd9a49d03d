//go:build linux && teleport

package teleportd_test

import (
	"slices"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/machine"
	"github.com/hallmark-ssh/hallmark/e2e/teleportd"
	"github.com/hallmark-ssh/hallmark/internal/caexport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// A function that joined before a rotation of the Host CA works in each phase and after it,
// whether or not the rotation ends its connection: a call joins again at most once. At the
// auth service it does so with the new CA in its roots, as docs/teleport.md says.
func TestBotAfterRotation(t *testing.T) {
	b := startBots(t, "rotation.test", "127.83.6.1")
	config := b.config(functionARN, teleportd.EnrollBot, teleportd.EnrollBot)
	atProxy := b.connect(t, config)
	before, old := b.sts.Calls(), b.hostCAs(t)
	b.rotateHost(t, atProxy, "init", "update_clients")

	config.Address, config.RootsPEM = b.AuthAddress(), slices.Concat(old, b.hostCAs(t))
	joined := b.sts.Calls()
	atAuth := b.connect(t, config)
	others := b.sts.Calls() - joined

	b.rotateHost(t, atProxy, "update_servers", "standby")
	// A connection that survived ends now, and the first login's CA is gone.
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.signs(t, atProxy, "after a restart", true)
	if joins := b.sts.Calls() - before - others; joins < 1 {
		t.Errorf("%d joins: how does it work by a login whose CA was retired?", joins)
	}
	b.enroll(t, atProxy)
	b.enroll(t, atAuth)
	b.connect(t, config)
}

// signs has a host key signed, with at most one join for each call. It calls again only if the
// services restart.
func (b bots) signs(t *testing.T, client *teleport.Client, when string, restarts bool) {
	t.Helper()
	joined, calls := b.sts.Calls(), 0
	if err := machine.Await(t.Context(), func() error {
		calls++
		_, err := client.SignHostKey(t.Context(), sshkeytest.NewSigner(t).PublicKey(), []string{"web-1"}, time.Hour)
		return err
	}); err != nil {
		t.Errorf("%s: %v", when, err)
	}
	if !restarts && calls > 1 {
		t.Errorf("%s: it works at the call number %d, and connections should survive", when, calls)
	}
	if again := b.sts.Calls() - joined; again > calls {
		t.Errorf("%s: %d joins in %d calls", when, again, calls)
	}
}

// connect returns a client that has worked.
func (b bots) connect(t *testing.T, config teleport.Config) *teleport.Client {
	t.Helper()
	client, err := b.dial(t, config)
	if err != nil {
		t.Fatal(err)
	}
	b.enroll(t, client)
	return client
}

// hostCAs are the CAs of the auth service's certificate, as tctl exports
// them.
func (b bots) hostCAs(t *testing.T) []byte {
	t.Helper()
	cas, err := b.TLSCAs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return cas
}

// rotateHost takes the Host CA through phases. In each, the client still works.
func (b bots) rotateHost(t *testing.T, client *teleport.Client, phases ...string) {
	t.Helper()
	for _, phase := range phases {
		if err := b.Rotate(t.Context(), caexport.Host, phase); err != nil {
			t.Fatal(err)
		}
		b.signs(t, client, phase, b.Behavior().RotationRestarts)
	}
}
