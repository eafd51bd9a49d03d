//go:build e2e && linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/e2e/machine"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
)

// privateDNS lets a machine find the VPC endpoints. cloud-init writes /etc/hosts from this
// template.
func privateDNS(_ context.Context, root string) error {
	name := filepath.Join(root, "etc/cloud/templates/hosts.debian.tmpl")
	hosts, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(hosts, lab.HostsLines...), 0o644)
}

// Machines without a default route reach the signer only through VPC endpoints: they are
// baked, boot, enroll, renew and follow a rotation of the OpenSSH CA.
func TestPrivateNetworks(t *testing.T) {
	for _, kind := range []entry.Kind{entry.PrivateAPI, entry.Invoke} {
		t.Run(string(kind), func(t *testing.T) {
			endpoint := must[*lab.Endpoint](t)(shared.lab.StartEndpoint(context.WithoutCancel(t.Context()), kind))
			image, _, err := shared.lab.BakeQuietly(t.Context(), lab.Source{
				Name: "b-" + string(kind), Release: machine.Debian12, Endpoint: endpoint, Prepare: privateDNS,
			})
			if err != nil {
				t.Fatal(err)
			}
			i := launchOf(t, image, lab.Template{Name: string(kind), Profile: true, Prepare: privateDNS})
			first := must[*state.State](t)(i.WaitEnrolled(t.Context()))
			if routes := run(t, i, "ip", "route", "show", "default"); strings.TrimSpace(routes) != "" {
				t.Fatalf("the machine has a default route: %s", routes)
			}
			checkArrival(t, kind, i)
			name := first.Node.Hostname + "." + first.Node.Cluster
			checkLogin(t, i, name)
			checkKeyPairLogin(t, i)

			edit(t, i, func(s *state.State) {
				s.EnrolledAt, s.RenewAfter = s.EnrolledAt.Add(-13*time.Hour), time.Now().Add(-time.Minute)
			})
			if out := hallmark(t, i, "renew"); !strings.Contains(out, "certificates are due for renewal") {
				t.Errorf("hallmark renew says %q", out)
			}
			if after := enrolledState(t, i); !after.RenewAfter.After(time.Now()) {
				t.Errorf("renewal is due %v still", after.RenewAfter)
			}
			checkLogin(t, i, name)
			followRotation(t, endpoint, i)
			checkLogin(t, i, name)
		})
	}
}

// checkArrival checks what the signer learned about the instance's request.
func checkArrival(t *testing.T, kind entry.Kind, i *lab.Instance) {
	t.Helper()
	for line := range strings.Lines(shared.lab.SignerLog()) {
		var l struct {
			Code        string `json:"code"`
			Instance    string `json:"instance"`
			Source      string `json:"source"`
			VPCEndpoint string `json:"vpc_endpoint"`
			IAM         string `json:"iam_arn"`
		}
		if json.Unmarshal([]byte(line), &l) != nil || l.Instance != i.ID || l.Code != "granted" {
			continue
		}
		fromAPI := l.Source == i.Address.String() && l.VPCEndpoint == lab.VPCEndpoint && strings.HasSuffix(l.IAM, "/"+i.ID)
		ofNobody := l.Source == "" && l.VPCEndpoint == "" && l.IAM == ""
		if kind == entry.PrivateAPI && !fromAPI || kind == entry.Invoke && !ofNobody {
			t.Errorf("audit line %s", line)
		}
		return
	}
	t.Error("no audit line of the enrollment")
}

// followRotation begins a rotation of the OpenSSH CA, and rolls it back.
func followRotation(t *testing.T, endpoint *lab.Endpoint, i *lab.Instance) {
	t.Helper()
	keys := func() int {
		return strings.Count(run(t, i, "cat", "/etc/ssh/hallmark/openssh_ca.pub"), "ssh-")
	}
	before := keys()
	for _, step := range []struct {
		phase teleporttest.Phase
		want  int
	}{{teleporttest.PhaseInit, before + 1}, {teleporttest.PhaseRollback, before + 1}, {teleporttest.PhaseStandby, before}} {
		if err := shared.lab.RotateOpenSSH(step.phase); err != nil {
			t.Fatal(err)
		}
		poll(t, func() error {
			endpoint.Restart() // a warm signer looks every minute
			// Machines do not ask again for some minutes after an answer.
			edit(t, i, func(s *state.State) { s.EnrolledAt = time.Now().Add(-time.Hour) })
			hallmark(t, i, "renew")
			if got := keys(); got != step.want {
				return fmt.Errorf("%d keys of the OpenSSH CA, want %d", got, step.want)
			}
			return nil
		})
	}
}
