package install

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// running is a machine whose sshd runs, with its own files.
type running struct {
	*installed
	*machinetest.SSHD
}

func newRunning(t *testing.T) *running {
	t.Helper()
	m := &running{installed: newInstalled(t, withInclude)}
	m.SSHD = machinetest.NewSSHD(t, machinetest.FindSSHD(t), t.TempDir(), sshkeytest.NewSigner(t).PublicKey())
	m.live = m.SSHD
	if _, err := m.Install(t.Context(), m.from); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *running) pidFile() string { return filepath.Join(m.Dir, "sshd.pid") }

func TestRemoveReloads(t *testing.T) {
	m := newRunning(t)
	if _, err := m.Remove(t.Context(), RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if m.Reloads != 1 {
		t.Errorf("%d reloads", m.Reloads)
	}
	m.AcceptsLogins()
}

// If sshd does not come back, its files become what they were, and it reads them again.
func TestRemovePutsBack(t *testing.T) {
	for _, test := range []struct {
		name   string
		first  func(ctx context.Context, m *running) error // in place of the first reload
		starts int
	}{
		{"the reload fails", func(_ context.Context, m *running) error { return errors.New("no reload") }, 0},
		{"nothing happens", func(context.Context, *running) error { return nil }, 0},
		{"the reload ends sshd", func(_ context.Context, m *running) error { m.SSHD.Stop(); return nil }, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newRunning(t)
			m.settle = time.Second // nothing comes of the first reload, however long it is
			m.OnReload = func(ctx context.Context) error {
				if m.Reloads == 1 {
					return test.first(ctx, m)
				}
				m.settle = time.Minute // a safety net
				return m.Server.Reload(ctx, m.pidFile())
			}
			dropIn := m.read(sshdconf.DropIn)
			_, err := m.Remove(t.Context(), RemoveOptions{})
			machinetest.WantError(t, err, fault.Failed, "sshd", "run 'hallmark unenroll' again")
			if got := m.read(sshdconf.DropIn); got != dropIn {
				t.Errorf("the drop-in is %q", got)
			}
			if m.Starts != test.starts || !slices.Contains(m.calls, "disable") || slices.Contains(m.calls, "start") {
				t.Errorf("%d starts, calls %q", m.Starts, m.calls)
			}
			m.AcceptsLogins()
			m.OnReload = nil
			if _, err := m.Remove(t.Context(), RemoveOptions{}); err != nil {
				t.Errorf("the next run: %v", err)
			}
			if m.read(sshdconf.DropIn) != "" {
				t.Error("the drop-in is still there")
			}
		})
	}
}

// A reload would also apply what somebody has not activated yet.
func TestRemoveLeavesPendingChanges(t *testing.T) {
	m := newRunning(t)
	m.Write("sshd_config", "Banner none\n"+string(machinetest.ReadFile(t, filepath.Join(m.Dir, "sshd_config"))))
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(filepath.Join(m.Dir, "sshd_config"), later, later); err != nil {
		t.Fatal(err)
	}
	before := m.everything()
	_, err := m.Remove(t.Context(), RemoveOptions{})
	machinetest.WantError(t, err, fault.Failed, "pending change", "--reload")
	m.wantSame(m.everything(), before, "after the refusal")
	if _, err := m.Remove(t.Context(), RemoveOptions{ActivatePending: true}); err != nil {
		t.Error(err)
	}
	if strings.Contains(strings.Join(m.calls, " "), "start") {
		t.Errorf("calls %q", m.calls)
	}
}

// A second run has nothing to do, so it needs no reload: what is pending does not matter, and it
// leaves nothing behind.
func TestRemoveTwiceWithPendingChange(t *testing.T) {
	m := newRunning(t)
	if _, err := m.Remove(t.Context(), RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(filepath.Join(m.Dir, "sshd_config"), later, later); err != nil {
		t.Fatal(err)
	}
	m.leave = nil // there is no configuration
	before := m.everything()
	if changes, err := m.Remove(t.Context(), RemoveOptions{}); err != nil || len(changes) > 0 {
		t.Errorf("%q, %v", changes, err)
	}
	m.wantSame(m.everything(), before, "afterwards")
	if m.Reloads != 1 {
		t.Errorf("%d reloads", m.Reloads)
	}
}
