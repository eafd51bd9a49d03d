//go:build linux && teleport

package teleportd_test

import (
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/teleportd"
	"github.com/hallmark-ssh/hallmark/internal/teleport"
	"github.com/hallmark-ssh/hallmark/internal/teleport/caexport"
)

// A function that joined before a rotation of Teleport's Host authority goes on working
// after it: the call that finds its login of no use joins anew. At the auth service it
// does so if it was told of the new authority, as docs/teleport.md says.
func TestBotAfterRotation(t *testing.T) {
	b := startBots(t, "rotation.test", "127.83.6.1")
	config := b.config(functionARN, teleportd.EnrollBot, teleportd.EnrollBot)
	atProxy := b.connect(t, config)
	old := b.hostAuthority(t)
	b.rotateHost(t, "init", "update_clients")
	config.Address, config.RootsPEM = b.AuthAddress(), []byte(old+b.hostAuthority(t))
	atAuth := b.connect(t, config)
	b.rotateHost(t, "update_servers", "standby")

	joined := b.sts.Calls()
	if _, err := atProxy.SignHostKey(t.Context(), newKey(t), []string{"web-1"}, time.Hour); err != nil {
		t.Error(err)
	}
	if again := b.sts.Calls() - joined; again != 1 {
		t.Errorf("%d joins, want one", again)
	}
	b.enroll(t, atProxy)
	b.enroll(t, atAuth)
	b.connect(t, config)
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

// hostAuthority is the authority of the auth service's certificate, as tctl exports it.
func (b bots) hostAuthority(t *testing.T) string {
	t.Helper()
	authority, err := b.Tctl(t.Context(), "auth", "export", "--type=tls-host")
	if err != nil {
		t.Fatal(err)
	}
	return authority
}

func (b bots) rotateHost(t *testing.T, phases ...string) {
	t.Helper()
	for _, phase := range phases {
		if err := b.Rotate(t.Context(), caexport.Host, phase); err != nil {
			t.Fatal(err)
		}
	}
}
