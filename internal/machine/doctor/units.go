package doctor

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/environ"
	"github.com/hallmark-ssh/hallmark/internal/machine/systemd"
)

// errNoSystemd says that this machine was not booted by systemd.
var errNoSystemd = errors.New("systemd does not run here")

const unitProperties = "Id,LoadState,ActiveState,SubState,UnitFileState,NextElapseUSecRealtime,LastTriggerUSec," +
	"Result,ExecMainCode,ExecMainStatus,ExecMainStartTimestamp,ExecMainExitTimestamp"

// showUnits asks systemd about Hallmark's units.
func showUnits(ctx context.Context) (map[string]Unit, error) {
	if !systemd.Runs() {
		return nil, errNoSystemd
	}
	output, err := runProgram(ctx, "systemctl", "show", "--property="+unitProperties, ServiceUnit, BootTimer, RenewTimer)
	if err != nil {
		return nil, fmt.Errorf("ask systemd: %w", err)
	}
	return parseUnits(output), nil
}

// runProgram returns a program's output. It never waits past the context's end, even if the
// program leaves a child behind that holds its output.
func runProgram(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // callers name the program
	cmd.Env = environ.ForPrograms("LC_ALL=C", "TZ=UTC")
	cmd.WaitDelay = 100 * time.Millisecond
	output, err := cmd.Output()
	if err != nil && ctx.Err() != nil {
		return "", fmt.Errorf("%s did not answer in time", name)
	}
	return string(output), err
}

// parseUnits reads the output of "systemctl show".
func parseUnits(output string) map[string]Unit {
	units := map[string]Unit{}
	for _, shown := range systemd.ParseShow(output) {
		u := Unit{
			Name: shown.Get("Id"), Loaded: shown.Get("LoadState") == "loaded",
			Active:  shown.Get("ActiveState") == "active" || shown.Get("ActiveState") == "activating" || shown.Get("ActiveState") == "reloading",
			Enabled: shown.Get("UnitFileState"), Result: shown.Get("Result"),
			Next: parseStamp(shown.Get("NextElapseUSecRealtime")), Last: parseStamp(shown.Get("LastTriggerUSec")),
			Started: parseStamp(shown.Get("ExecMainStartTimestamp")), Ended: parseStamp(shown.Get("ExecMainExitTimestamp")),
		}
		if shown.Get("ActiveState") != "" {
			u.State = fmt.Sprintf("%s (%s)", shown.Get("ActiveState"), shown.Get("SubState"))
		}
		u.ExitCode, _ = strconv.Atoi(shown.Get("ExecMainStatus"))
		u.Signal = shown.Get("ExecMainCode") == "2" || shown.Get("ExecMainCode") == "3" // CLD_KILLED, CLD_DUMPED of waitid(2)
		units[u.Name] = u
	}
	return units
}

// parseStamp reads a time of systemctl's in UTC, such as "Fri 2026-11-27 05:03:11 UTC". It is
// zero for "n/a" and for nothing.
func parseStamp(text string) time.Time {
	t, err := time.Parse("Mon 2006-01-02 15:04:05 MST", text)
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}
