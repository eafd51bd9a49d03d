package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// errNoSystemd says that this machine was not booted by systemd.
var errNoSystemd = errors.New("systemd does not run here")

const unitProperties = "Id,LoadState,ActiveState,SubState,UnitFileState,NextElapseUSecRealtime,LastTriggerUSec," +
	"Result,ExecMainCode,ExecMainStatus,ExecMainStartTimestamp,ExecMainExitTimestamp"

// showUnits asks systemd about Hallmark's units.
func showUnits(ctx context.Context) (map[string]Unit, error) {
	if info, err := os.Lstat("/run/systemd/system"); err != nil || !info.IsDir() { // sd_booted(3)
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
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	cmd.WaitDelay = 100 * time.Millisecond
	output, err := cmd.Output()
	if err != nil && ctx.Err() != nil {
		return "", fmt.Errorf("%s did not answer in time", name)
	}
	return string(output), err
}

// parseUnits reads "systemctl show": one paragraph of KEY=VALUE lines for each unit.
func parseUnits(output string) map[string]Unit {
	units := map[string]Unit{}
	for paragraph := range strings.SplitSeq(strings.TrimSpace(output), "\n\n") {
		p := map[string]string{}
		for line := range strings.Lines(paragraph) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			p[key] = value
		}
		u := Unit{
			Name: p["Id"], Loaded: p["LoadState"] == "loaded",
			Active:  p["ActiveState"] == "active" || p["ActiveState"] == "activating" || p["ActiveState"] == "reloading",
			Enabled: p["UnitFileState"], Result: p["Result"],
			Next: parseStamp(p["NextElapseUSecRealtime"]), Last: parseStamp(p["LastTriggerUSec"]),
			Started: parseStamp(p["ExecMainStartTimestamp"]), Ended: parseStamp(p["ExecMainExitTimestamp"]),
		}
		if p["ActiveState"] != "" {
			u.State = fmt.Sprintf("%s (%s)", p["ActiveState"], p["SubState"])
		}
		u.ExitCode, _ = strconv.Atoi(p["ExecMainStatus"])
		u.Signal = p["ExecMainCode"] == "2" || p["ExecMainCode"] == "3" // CLD_KILLED, CLD_DUMPED of waitid(2)
		if u.Name != "" {
			units[u.Name] = u
		}
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
