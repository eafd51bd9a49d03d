//go:build teleport && linux

package people

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/fake/imds"
	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// Teleport, both auth and proxy, is down while a machine has to renew: first alone, then
// together with everything else that a renewal needs. Logins without Teleport work, nothing is
// taken away, and once everything is back, the timer's next run repairs the rest. The signer's
// process survives the outage.
func TestTeleportDown(t *testing.T) {
	alice := newPerson(t, shared.lab.Teleport, "alice-after-outages", everywhere)
	m := shared.dev
	outages := map[string]func() (end func() error, err error){
		"signer": func() (func() error, error) {
			return func() error { return shared.lab.StartURL(context.WithoutCancel(t.Context())) }, shared.lab.StopURL()
		},
		"metadata": func() (func() error, error) {
			m.Metadata.SetTrouble(imds.Trouble{Disabled: true})
			return func() error { m.Metadata.SetTrouble(imds.Trouble{}); return nil }, nil
		},
		"sts": func() (func() error, error) {
			shared.lab.STS.SetDown(true)
			return func() error { shared.lab.STS.SetDown(false); return nil }, nil
		},
	}
	for _, others := range [][]string{{}, {"signer"}, {"metadata"}, {"sts"}, {"metadata", "signer", "sts"}} {
		t.Run(strings.Join(append([]string{"teleport"}, others...), "+"), func(t *testing.T) {
			kept := installed(t, m)
			age(t, m, 4*24*time.Hour) // more than a third of seven days
			ends := []func() error{func() error { return shared.lab.Teleport.Restart(context.WithoutCancel(t.Context())) }}
			if err := shared.lab.Teleport.Close(); err != nil {
				t.Fatal(err)
			}
			for _, other := range others {
				end, err := outages[other]()
				if err != nil {
					t.Fatal(err)
				}
				ends = append(ends, end)
			}
			out, err := m.Hallmark(t.Context(), "renew", "--timeout", "6s")
			switch {
			case err == nil:
				t.Errorf("hallmark renew succeeds: %s", out)
			case len(others) == 0 && !strings.Contains(err.Error(), string(protocol.CodeUpstream)):
				t.Errorf("hallmark renew says %v, want it to name %s", err, protocol.CodeUpstream)
			}
			if now := installed(t, m); now != kept {
				t.Errorf("the machine has\n%s\nand had\n%s", now, kept)
			}
			if _, err := shared.lab.SSHByKeyPair(t.Context(), m.Instance, "true"); err != nil {
				t.Errorf("a login that needs no Teleport: %v", err)
			}
			for _, end := range ends {
				if err := end(); err != nil {
					t.Fatal(err)
				}
			}
			// This stands for an hour of waiting.
			if err := os.Remove(m.Path("var/lib/hallmark/setback.json")); err != nil {
				t.Errorf("no failed run was noted: %v", err)
			}
			if _, err := m.Hallmark(t.Context(), "renew"); err != nil {
				t.Fatal(err)
			}
			if now := installed(t, m); now == kept {
				t.Error("the certificates were not renewed")
			}
			// The proxy has to read the nodes again.
			var login string
			poll(t, func() (err error) {
				login, err = alice.Tsh(t.Context(), "ssh", lab.User+"@"+m.state.Node.Hostname, reach)
				return err
			})
			reached(t, m, login, nil)
		})
	}
}

// installed is what a machine has from the cluster: certificates and CAs.
func installed(t *testing.T, m enrolled) string {
	t.Helper()
	paths, err := filepath.Glob(m.Path("etc/ssh/*-cert.pub"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("certificates %v, %v", paths, err)
	}
	var all strings.Builder
	for _, path := range append(paths, m.Path("etc/ssh/hallmark/openssh_ca.pub")) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(data)
	}
	return all.String()
}
