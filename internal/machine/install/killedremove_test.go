//go:build linux && amd64

package install

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
)

// A removal that is killed at any step leaves either sshd's old settings or its new ones, and
// the next one finishes it. It may have lost its configuration.
func TestKilledRemove(t *testing.T) {
	for name, sample := range map[string]string{"drop-in": withInclude, "block": withoutInclude} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			machinetest.KillAtEveryStep(t, 24, func(step int) bool {
				m := newInstalled(t, sample)
				before := m.everything()
				without := m.settings()
				if _, err := m.Install(t.Context(), m.from); err != nil {
					t.Fatal(err)
				}
				m.enroll()
				with := m.settings()
				killed, what := machinetest.RunTraced(t, "TestKilledRemoveRun", m.root, step, killedRemove+"="+m.root)
				if between := m.settings(); between != with && between != without {
					t.Errorf("killed at step %d (%s) sshd's settings are\n%s\nneither the old\n%s\nnor the new\n%s", step, what, between, with, without)
				}
				m.forgetConfiguration()
				if _, err := m.Remove(t.Context(), RemoveOptions{}); err != nil {
					t.Fatalf("killed at step %d (%s), the next run: %v", step, what, err)
				}
				m.wantSame(m.everything(), before, "killed at "+what)
				return killed
			})
		})
	}
}

// forgetConfiguration makes the next run one without a signer, if the last one removed the
// configuration.
func (m *installed) forgetConfiguration() {
	if m.read("/etc/hallmark/config.yaml") == "" {
		m.leave = nil
	}
}

const killedRemove = "HALLMARK_KILLED_REMOVE"

// TestKilledRemoveRun is the removal that is killed.
func TestKilledRemoveRun(t *testing.T) {
	root := os.Getenv(killedRemove)
	if root == "" {
		t.Skip("it is for TestKilledRemove")
	}
	i := &image{t: t, root: root}
	i.Installer = &Installer{root: root, self: filepath.Join(root, "none"), server: i, log: t.Logf, observe: i.noteSettings}
	m := machineOf(i)
	if _, err := m.Remove(t.Context(), RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
}
