package install

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// While a run is in progress, no image may be sealed, and no installation may change the
// machine.
func TestInstallAndSealTakeTheLock(t *testing.T) {
	i := newImage(t, withInclude)
	unlock, err := state.Lock(filepath.Join(i.root, state.Dir), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	before := i.tree()
	_, err = i.Install(t.Context(), i.from)
	machinetest.WantError(t, err, fault.Temporary, state.ErrRunning.Error(), "wait")
	_, err = Seal(i.root)
	machinetest.WantError(t, err, fault.Temporary, state.ErrRunning.Error(), "wait")
	if !equal(i.tree(), before) {
		t.Error("one of them changed something")
	}
}
