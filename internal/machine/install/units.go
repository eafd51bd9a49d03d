package install

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
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
	if !s.runs() {
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
		return systemctl(ctx, append([]string{"start"}, active...)...)
	}
	if err := systemctl(ctx, append([]string{"stop"}, loaded...)...); err != nil {
		return start, fmt.Errorf("stop hallmark's timers: %w", err)
	}
	return start, nil
}

// Disable keeps the timers from starting at the next boot. Their files are still there, those
// of a package too.
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
	if err := systemctl(ctx, append([]string{"disable"}, existing...)...); err != nil {
		return fmt.Errorf("disable hallmark's timers: %w", err)
	}
	return nil
}

// Forget makes systemd notice that the units' files are gone.
func (s machineUnits) Forget(ctx context.Context) error {
	if !s.runs() {
		return nil
	}
	if err := systemctl(ctx, "daemon-reload"); err != nil {
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
		if err := systemctl(ctx, "reset-failed", u.name); err != nil {
			return fmt.Errorf("make systemd forget hallmark's failed run: %w", err)
		}
	}
	return nil
}

// runs is sd_booted(3).
func (machineUnits) runs() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// unitState is what systemd reports about one of hallmark's units.
type unitState struct {
	name                   string
	loaded, active, failed bool
}

func (machineUnits) show(ctx context.Context) ([]unitState, error) {
	args := append([]string{"show", "--property=Id,LoadState,ActiveState"}, units()...)
	output, err := exec.CommandContext(ctx, "systemctl", args...).Output()
	if err != nil {
		return nil, fmt.Errorf("ask systemd about hallmark's units: %w", err)
	}
	return parseUnitStates(string(output)), nil
}

// parseUnitStates reads "systemctl show": one paragraph of KEY=VALUE lines per unit.
func parseUnitStates(output string) (states []unitState) {
	for paragraph := range strings.SplitSeq(strings.TrimSpace(output), "\n\n") {
		var u unitState
		for line := range strings.Lines(paragraph) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			switch key {
			case "Id":
				u.name = value
			case "LoadState":
				u.loaded = value == "loaded"
			case "ActiveState":
				u.active = slices.Contains([]string{"active", "activating", "reloading"}, value)
				u.failed = value == "failed"
			}
		}
		if u.name != "" {
			states = append(states, u)
		}
	}
	return states
}

func systemctl(ctx context.Context, args ...string) error {
	output, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}
