//go:build linux && amd64

package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/signerclient"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// A run that is killed at any step leaves a working sshd, and the next run repairs what it
// left. The run is a separate, traced process: it can be killed before each of the system
// calls that change something.
func TestKilledAtEveryStep(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(t *testing.T, m *machine)
		least   int // the least number of steps, so that the test cannot find none
	}{
		{"first enrollment, with a reload", func(_ *testing.T, m *machine) {
			m.sshd.Stop()
			m.sshd.Configure("")
			m.sshd.Run()
			m.sshd.Configure(m.sshd.HallmarkLines())
		}, 30},
		{"renewal with another CA", func(t *testing.T, m *machine) {
			if _, err := m.Enroll(t.Context()); err != nil {
				t.Fatal(err)
			}
			s := m.state()
			s.RenewAfter = time.Now().Add(-time.Hour)
			if err := state.Save(m.stateDir, s); err != nil {
				t.Fatal(err)
			}
			ca := sshkeytest.NewSigner(t)
			m.mu.Lock() // the run that was killed cannot be waited for by channels
			defer m.mu.Unlock()
			m.openSSHCA = ca
		}, 30},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			machinetest.KillAtEveryStep(t, test.least, func(step int) bool {
				m.unenroll()
				test.prepare(t, m)
				killed, last := m.runUntil(step)
				m.worksAfterwards(fmt.Sprintf("killed at step %d (%s)", step, last))
				return killed
			})
		})
	}
}

// unenroll restores the machine to its state before the first enrollment.
func (m *machine) unenroll() {
	m.t.Helper()
	certificates, err := filepath.Glob(filepath.Join(m.dir, "*-cert.pub"))
	if err != nil {
		m.t.Fatal(err)
	}
	for _, path := range append(certificates, m.stateDir) {
		if err := os.RemoveAll(path); err != nil {
			m.t.Fatal(err)
		}
	}
	m.sshd.Write("hallmark/openssh_ca.pub", string(cafile.Render([]ssh.PublicKey{sshkeytest.NewSigner(m.t).PublicKey()})))
}

// worksAfterwards checks the machine as it was left, then as the next run leaves it.
func (m *machine) worksAfterwards(when string) {
	m.t.Helper()
	m.sshd.AcceptsLogins()
	m.sshd.Stop()
	m.sshd.Run() // a boot, or an upgrade of sshd
	m.sshd.AcceptsLogins()
	if pinned := m.sshd.KeyPath("ed25519"); len(m.sshd.Pins(pinned)) == 0 {
		m.t.Errorf("%s: a client that knows only the Ed25519 key does not get in", when)
	}
	o, err := m.Enroll(m.t.Context())
	if err != nil {
		m.t.Fatalf("%s: the next run: %v", when, err)
	}
	if !o.State.Presented {
		m.t.Errorf("%s: after the next run sshd was not seen to present the certificates", when)
	}
	if err := m.sshd.TryLogin(machinetest.UserCertificate(m.t, m.openSSHCA), m.hostCertificateOnly()); err != nil {
		m.t.Errorf("%s: login by certificate: %v", when, err)
	}
	for _, pattern := range []string{".*.hallmark-*", "*/.*.hallmark-*"} {
		left, err := filepath.Glob(filepath.Join(m.dir, pattern))
		if err != nil || len(left) > 0 {
			m.t.Errorf("%s: the next run leaves %q", when, left)
		}
	}
}

// killedRun is the environment variable that makes TestKilledRun a run of hallmark.
const killedRun = "HALLMARK_KILLED_RUN"

// TestKilledRun is the run that is killed.
func TestKilledRun(t *testing.T) {
	dir := os.Getenv(killedRun)
	if dir == "" {
		t.Skip("it is for TestKilledAtEveryStep")
	}
	c := config.Config{SignerURL: os.Getenv("HALLMARK_SIGNER"), Audience: "hallmark.example.com", SignerCAFile: filepath.Join(dir, "signer_ca.pem")}
	r := newPolicy(t.Logf)
	metadata := imds.New(r)
	signer, err := signerclient.New(c, r, metadata, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	e := &Enroller{
		Config:   c,
		Timeout:  time.Minute,
		stateDir: filepath.Join(dir, "state"), caFile: filepath.Join(dir, "hallmark", "openssh_ca.pub"),
		server:   &sshd.Server{Program: os.Getenv("HALLMARK_SSHD"), Config: filepath.Join(dir, "sshd_config")},
		metadata: metadata, signer: signer, retry: r, now: time.Now, settle: 10 * time.Second, suspended: suspended,
	}
	if _, err := e.Renew(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// runUntil runs a renewal in a separate process, and kills it before the given step. If the
// run ended before that step, it returns false. It also returns which step it was.
func (m *machine) runUntil(step int) (killed bool, what string) {
	m.t.Helper()
	return machinetest.RunTraced(m.t, "TestKilledRun", m.dir, step,
		killedRun+"="+m.dir, "AWS_EC2_METADATA_SERVICE_ENDPOINT="+m.metadata.Endpoint, "HALLMARK_SIGNER="+m.Config.SignerURL, "HALLMARK_SSHD="+m.sshd.Program)
}
