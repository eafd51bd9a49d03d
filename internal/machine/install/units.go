package install

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/machine/systemd"
)

// timers are the units that start runs of hallmark.
func timers() []string {
	return slices.DeleteFunc(units(), func(name string) bool { return !strings.HasSuffix(name, ".timer") })
}

// machineUnits controls this machine's units of hallmark. Without a running systemd, as in a
// container, it only enables and disables.
type machineUnits struct{}

// Stop stops the timers, and a run that waits to be restarted. It returns a function that
// starts the timers that ran.
func (s machineUnits) Stop(ctx context.Context) (start func(ctx context.Context) error, err error) {
	start = func(context.Context) error { return nil }
	if !systemd.Runs() {
		return start, nil
	}
	shown, err := s.show(ctx)
	if err != nil {
		return start, err
	}
	var loaded, active []string
	for _, u := range shown {
		if u.loaded {
			loaded = append(loaded, u.name)
		}
		if u.active && slices.Contains(timers(), u.name) {
			active = append(active, u.name)
		}
	}
	if len(loaded) == 0 {
		return start, nil
	}
	start = func(ctx context.Context) error {
		if len(active) == 0 {
			return nil
		}
		return systemd.Run(ctx, append([]string{"start"}, active...)...)
	}
	if err := systemd.Run(ctx, append([]string{"stop"}, loaded...)...); err != nil {
		return start, fmt.Errorf("stop hallmark's timers: %w", err)
	}
	return start, nil
}

// Disable keeps the timers from starting at the next boot. It leaves their files in place,
// including a package's.
func (machineUnits) Disable(ctx context.Context) error {
	existing := slices.DeleteFunc(timers(), func(name string) bool {
		return !slices.ContainsFunc(unitFolders(), func(folder string) bool {
			_, err := os.Lstat(filepath.Join(folder, name))
			return err == nil
		})
	})
	if len(existing) == 0 {
		return nil
	}
	if err := systemd.Run(ctx, append([]string{"disable"}, existing...)...); err != nil {
		return fmt.Errorf("disable hallmark's timers: %w", err)
	}
	return nil
}

// Forget makes systemd notice that the units' files are gone.
func (s machineUnits) Forget(ctx context.Context) error {
	if !systemd.Runs() {
		return nil
	}
	if err := systemd.Run(ctx, "daemon-reload"); err != nil {
		return fmt.Errorf("make systemd forget hallmark's units: %w", err)
	}
	shown, err := s.show(ctx)
	if err != nil {
		return err
	}
	for _, u := range shown {
		if !u.failed {
			continue
		}
		if err := systemd.Run(ctx, "reset-failed", u.name); err != nil {
			return fmt.Errorf("make systemd forget hallmark's failed run: %w", err)
		}
	}
	return nil
}

// unitState is what systemd reports about one of hallmark's units.
type unitState struct {
	name                   string
	loaded, active, failed bool
}

func (machineUnits) show(ctx context.Context) ([]unitState, error) {
	shown, err := systemd.Show(ctx, "LoadState,ActiveState", units()...)
	if err != nil {
		return nil, fmt.Errorf("ask systemd about hallmark's units: %w", err)
	}
	return unitStates(shown), nil
}

func unitStates(shown []systemd.Unit) (states []unitState) {
	for _, u := range shown {
		active := u.Get("ActiveState")
		states = append(states, unitState{
			name: u.Get("Id"), loaded: u.Get("LoadState") == "loaded",
			active: slices.Contains([]string{"active", "activating", "reloading"}, active), failed: active == "failed",
		})
	}
	return states
}
