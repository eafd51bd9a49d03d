package install

import (
	"path/filepath"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// If the disk is the problem, the advice is not to check sshd's configuration.
func TestReadOnlyConfiguration(t *testing.T) {
	m := newInstalled(t, withInclude)
	if _, err := m.Install(t.Context(), m.from); err != nil {
		t.Fatal(err)
	}
	etc := filepath.Join(m.root, filepath.Dir(sshdconf.MainConfig))
	machinetest.BindMount(t, etc)
	machinetest.MakeReadOnly(t, etc)
	before := m.everything()
	_, err := m.Install(t.Context(), m.from)
	machinetest.WantError(t, err, fault.Failed, "read-only", "nothing was changed; check that the disk is neither full nor read-only")
	_, err = m.Remove(t.Context(), RemoveOptions{})
	machinetest.WantError(t, err, fault.Failed, "read-only", "nothing was changed; check that the disk is neither full nor read-only")
	m.wantSame(m.everything(), before, "afterwards")
}

// A folder on which somebody has mounted a file system stays, and nothing else.
func TestRemoveKeepsMountPoints(t *testing.T) {
	m := newInstalled(t, withInclude)
	before := m.everything()
	if _, err := m.Install(t.Context(), m.from); err != nil {
		t.Fatal(err)
	}
	m.enroll()
	machinetest.BindMount(t, filepath.Join(m.root, state.Dir))
	if _, err := m.Remove(t.Context(), RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	m.wantSame(m.everything(), before, "afterwards")
}
