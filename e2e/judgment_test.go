//go:build e2e && linux

package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// lastAudit returns the signer's last line about an instance.
func lastAudit(t *testing.T, instance string) map[string]any {
	t.Helper()
	var last map[string]any
	for line := range strings.Lines(shared.lab.SignerLog()) {
		var entry map[string]any
		if json.Unmarshal([]byte(line), &entry) == nil && entry["msg"] == "enroll" && entry["instance"] == instance {
			last = entry
		}
	}
	if last == nil {
		t.Fatalf("the signer has no line about %s", instance)
	}
	return last
}

// fqdn is the name by which a client knows the cluster's CA for a machine.
func fqdn(s *state.State) string { return s.Node.Hostname + "." + s.Node.Cluster }

const newHostKeys = "rm /etc/ssh/ssh_host_* && ssh-keygen -A && systemctl reload ssh"

// An instance that comes with other host keys needs a person's permit, which works once.
func TestAnOperatorPermitsOneRekey(t *testing.T) {
	i := launch(t, lab.Template{Name: "permitted"})
	s := must[*state.State](t)(i.WaitEnrolled(t.Context()))
	run(t, i, "sh", "-c", newHostKeys)
	checkExit(t, i, 4, string(protocol.CodeKeyConflict))

	fingerprint := strings.Fields(run(t, i, "ssh-keygen", "-lf", "/etc/ssh/ssh_host_ed25519_key.pub"))[1]
	audit := must[string](t)(shared.lab.Operator(t.Context(), "permit-rekey", "--table", shared.lab.LedgerTable,
		"--account", s.Instance.AccountID.String(), "--region", lab.Region, "--instance", i.ID, "--fingerprint", fingerprint))
	if !strings.Contains(audit, lab.OperatorARN) || !strings.Contains(audit, fingerprint) {
		t.Errorf("audit line %s", audit)
	}
	hallmark(t, i, "enroll")
	if entry := lastAudit(t, i.ID); !strings.Contains(string(must[[]byte](t)(json.Marshal(entry))), lab.OperatorARN) {
		t.Errorf("the audit line of the enrollment does not say who permitted it: %v", entry)
	}
	renewed := must[*state.State](t)(i.State(t.Context()))
	must[string](t)(shared.lab.SSH(t.Context(), i, fqdn(renewed), "true"))

	run(t, i, "sh", "-c", newHostKeys)
	checkExit(t, i, 4, string(protocol.CodeKeyConflict))
	checkKeyPairLogin(t, i)
}

// If the policy lets a tag choose a host name, the first machine to ask gets it. The second
// machine is not kept out.
func TestAHostNameGoesToTheFirst(t *testing.T) {
	tags := map[string]string{"TeleportHostname": "bastion-1"}
	first := launch(t, lab.Template{Name: "bastion-a", Tags: tags})
	bastion := must[*state.State](t)(first.WaitEnrolled(t.Context()))
	if bastion.Node.Hostname != "bastion-1" {
		t.Errorf("the first is named %s", bastion.Node.Hostname)
	}
	second := launch(t, lab.Template{Name: "bastion-b", Tags: tags})
	s := must[*state.State](t)(second.WaitEnrolled(t.Context()))
	if want := "bastion-1-" + second.ID; s.Node.Hostname != want {
		t.Errorf("the second is named %s, want %s", s.Node.Hostname, want)
	}
	// Teleport names the holder by its node. The ledger, asked later, names the holder's
	// instance.
	if entry := string(must[[]byte](t)(json.Marshal(lastAudit(t, second.ID)))); !strings.Contains(entry, bastion.Node.ID) && !strings.Contains(entry, first.ID) {
		t.Errorf("the audit line does not say who holds the name: %s", entry)
	}
	must[string](t)(shared.lab.SSH(t.Context(), first, fqdn(bastion), "true"))
	must[string](t)(shared.lab.SSH(t.Context(), second, fqdn(s), "true"))
	if _, err := shared.lab.SSH(t.Context(), second, fqdn(bastion), "true"); err == nil {
		t.Error("the second machine is believed to be the first")
	}

	wrong := launch(t, lab.Template{Name: "impostor", Tags: map[string]string{"TeleportHostname": "admin", "Name": "impostor"}})
	if s := must[*state.State](t)(wrong.WaitEnrolled(t.Context())); s.Node.Hostname != "impostor-"+wrong.ID {
		t.Errorf("a name outside the policy's pattern gave %s", s.Node.Hostname)
	}
}

// The ledger outlives the function's environments: a new environment still has the machines.
func TestTheLedgerOutlivesTheFunction(t *testing.T) {
	i := launch(t, lab.Template{Name: "remembered"})
	must[*state.State](t)(i.WaitEnrolled(t.Context()))
	shared.lab.Signer.Restart()
	run(t, i, "sh", "-c", newHostKeys)
	checkExit(t, i, 4, string(protocol.CodeKeyConflict))
}

// The policy in force is the parameter's, or the last good one if the parameter is broken: a
// cold start finds it in the ledger's table. (internal/signer/policy/live tests, on a
// simulated clock, that a warm function looks again after 30 seconds.)
func TestPolicyOfTheParameter(t *testing.T) {
	const (
		changed = policy + "# changed\n"
		broken  = "version: 1\nrules: [{name: broken, nonsense: true}]\n"
	)
	i := launch(t, lab.Template{Name: "judged"})
	must[*state.State](t)(i.WaitEnrolled(t.Context()))
	t.Cleanup(func() { checkPolicy(t, i, policy, policy) })
	checkPolicy(t, i, changed, changed)
	checkPolicy(t, i, broken, changed)
	if !strings.Contains(shared.lab.SignerLog(), hash(broken)) {
		t.Error("the signer does not name the broken policy")
	}
}

// checkPolicy puts a policy and enrolls with a new environment of the function.
func checkPolicy(t *testing.T, i *lab.Instance, put, decides string) {
	t.Helper()
	if err := shared.lab.PutPolicy(context.WithoutCancel(t.Context()), put); err != nil {
		t.Fatal(err)
	}
	shared.lab.Signer.Restart()
	if _, err := i.Run(context.WithoutCancel(t.Context()), "rm", "/var/lib/hallmark/state.json"); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Hallmark(context.WithoutCancel(t.Context()), "enroll"); err != nil {
		t.Fatal(err)
	}
	if got := lastAudit(t, i.ID)["policy_sha256"]; got != hash(decides) {
		t.Errorf("policy %s decides, want %s", got, hash(decides))
	}
}

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}
