// Package systemd runs systemctl, and reads what it says about units.
package systemd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/environ"
)

// Runs reports whether systemd booted this machine (sd_booted(3)).
func Runs() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// timeout bounds a command. systemd itself kills a service that takes 90 seconds to stop
// (TimeoutStopSec= in systemd.service(5)).
const timeout = 2 * time.Minute

// Run runs systemctl. The error quotes what it printed.
func Run(ctx context.Context, args ...string) error {
	_, err := run(ctx, args...)
	return err
}

// Show returns properties, separated by commas, of units.
func Show(ctx context.Context, properties string, units ...string) ([]Unit, error) {
	output, err := run(ctx, append([]string{"show", "--property=Id," + properties}, units...)...)
	return ParseShow(output), err
}

// run returns systemctl's standard output.
func run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var output, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, "systemctl", args...)
	cmd.Env = environ.ForPrograms()
	cmd.Stdout, cmd.Stderr = &output, &errs
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // systemctl succeeded, and a child of it still holds the output open
	}
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = errors.New("it did not finish in time")
	}
	if err != nil {
		return "", fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return output.String(), nil
}

// Unit holds the properties of a unit. Some, such as Listen of a socket, have several values.
type Unit map[string][]string

// Get returns the last value of a property, or "".
func (u Unit) Get(property string) string {
	values := u[property]
	if len(values) == 0 {
		return ""
	}
	return values[len(values)-1]
}

// ParseShow reads the output of "systemctl show" with the property Id: one paragraph of
// KEY=VALUE lines for each unit. It skips a paragraph without an Id.
func ParseShow(output string) (units []Unit) {
	for paragraph := range strings.SplitSeq(strings.TrimSpace(output), "\n\n") {
		u := Unit{}
		for line := range strings.Lines(paragraph) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			u[key] = append(u[key], value)
		}
		if u.Get("Id") != "" {
			units = append(units, u)
		}
	}
	return units
}
