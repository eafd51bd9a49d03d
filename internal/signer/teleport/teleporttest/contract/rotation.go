package contract

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/caexport"
	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

func (target Target) cas(t *testing.T) {
	openssh := target.await(t, caexport.OpenSSH, func([]string) bool { return true })
	host := target.await(t, caexport.Host, func([]string) bool { return true })
	if len(openssh) != 1 || len(host) != 1 {
		t.Fatalf("got %d OpenSSH and %d Host keys, want one of each", len(openssh), len(host))
	}
	if openssh[0] == host[0] {
		t.Error("one key for users and hosts")
	}
}

// rotation is a phase, and which of the old and new key are trusted then. The first one signs.
type rotation struct {
	phase       teleporttest.Phase
	first, last string
}

func (target Target) rotateOpenSSH(t *testing.T) {
	target.rotate(t, caexport.OpenSSH, []rotation{
		{teleporttest.PhaseInit, "old", "new"},
		{teleporttest.PhaseUpdateClients, "new", "old"},
		{teleporttest.PhaseRollback, "old", "new"},
		{teleporttest.PhaseStandby, "old", "old"},
	})
	target.rotate(t, caexport.OpenSSH, []rotation{
		{teleporttest.PhaseInit, "old", "new"},
		{teleporttest.PhaseUpdateClients, "new", "old"},
		{teleporttest.PhaseUpdateServers, "new", "old"},
		{teleporttest.PhaseStandby, "new", "new"},
	})
}

func (target Target) rotateHost(t *testing.T) {
	target.rotate(t, caexport.Host, []rotation{
		{teleporttest.PhaseInit, "old", "new"},
		{teleporttest.PhaseUpdateClients, "new", "old"},
		{teleporttest.PhaseUpdateServers, "new", "old"},
		{teleporttest.PhaseStandby, "new", "new"},
	})
}

// rotate moves a CA through the phases. In each, the cluster and its export list the keys in
// the same order, and the first key signs host certificates.
func (target Target) rotate(t *testing.T, kind caexport.Kind, rotations []rotation) {
	old := target.await(t, kind, func(keys []string) bool { return len(keys) == 1 })[0]
	var next string
	name := func(key string) string {
		switch key {
		case old:
			return "old"
		case next:
			return "new"
		}
		return key
	}
	for _, r := range rotations {
		check(t, target.Rotate(t.Context(), kind, r.phase))
		keys := target.await(t, kind, func(keys []string) bool {
			if next == "" && len(keys) == 2 {
				next = keys[1]
			}
			return name(keys[0]) == r.first && name(keys[len(keys)-1]) == r.last && (len(keys) == 1) == (r.phase == teleporttest.PhaseStandby)
		})
		t.Logf("%s: %v", r.phase, keys)
		target.sign(t)
	}
}

// await reads a CA's keys until they are as expected, and its export agrees. It asks for the
// export only then: Teleport limits how often one may ask.
func (target Target) await(t *testing.T, kind caexport.Kind, ok func(keys []string) bool) []string {
	t.Helper()
	var got []string
	target.eventually(t, func(c *teleport.Client) error {
		cas, err := c.CAs(deadline(t))
		if err != nil {
			return err
		}
		got = fingerprints(cas.OpenSSH)
		if kind == caexport.Host {
			got = fingerprints(cas.Host)
		}
		if !ok(got) {
			return fmt.Errorf("the cluster says %v", got)
		}
		public, err := target.Export(deadline(t), kind)
		if err != nil {
			return err
		}
		if exported := fingerprints(public); !slices.Equal(got, exported) {
			return fmt.Errorf("the cluster says %v, its export %v", got, exported)
		}
		return nil
	})
	return got
}

// sign checks that the first key of the Host CA signs a host certificate.
func (target Target) sign(t *testing.T) {
	t.Helper()
	key, principals := sshkeytest.NewSigner(t).PublicKey(), []string{uuid.NewString()}
	target.eventually(t, func(c *teleport.Client) error {
		cert, err := c.SignHostKey(deadline(t), key, principals, time.Hour)
		if err != nil {
			return err
		}
		cas, err := c.CAs(deadline(t))
		if err != nil {
			return err
		}
		if !bytes.Equal(cert.SignatureKey.Marshal(), cas.Host[0].Marshal()) {
			return errors.New("signed by another key than the first")
		}
		return hostcert.Check(cert, hostcert.Want{
			Key: key, Principals: principals, CAs: cas.Host, MaxLifetime: time.Hour,
		}, time.Now())
	})
}

// eventually retries until it works. A cluster restarts in some phases of a rotation, and
// older logins may not be valid afterwards.
func (target Target) eventually(t *testing.T, try func(*teleport.Client) error) {
	t.Helper()
	ctx := deadline(t)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		c := target.Connect(t)
		err := errors.Join(try(c), c.Close())
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(err)
		}
	}
}

func fingerprints(keys []ssh.PublicKey) []string {
	var all []string
	for _, key := range keys {
		all = append(all, ssh.FingerprintSHA256(key))
	}
	return all
}
