package agent

import (
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"golang.org/x/crypto/ssh"
)

// The certificates are put in place, so people can log in as soon as the setting is corrected,
// but the run fails.
func TestEnrollFailsIfNobodyCanLogIn(t *testing.T) {
	for _, test := range machinetest.UselessSettings() {
		t.Run(test.Want, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.sshd.Stop()
			m.sshd.SkipUnknown(t, test.Lines)
			m.sshd.Configure(m.sshd.HallmarkLines())
			machinetest.AppendTo(t, m.sshd.Config, test.Lines)
			m.sshd.Run()
			if m.sshd.TryLogin(machinetest.UserCertificate(t, m.openSSHCA), ssh.InsecureIgnoreHostKey()) == nil {
				t.Fatal("a certificate logs in all the same: the test is wrong")
			}
			_, err := m.Enroll(t.Context())
			machinetest.WantError(t, err, fault.Misconfigured, test.Want, "correct sshd's configuration")
			if s := m.state(); s == nil || !s.Presented {
				t.Errorf("state %+v, want it enrolled", s)
			}
		})
	}
}
