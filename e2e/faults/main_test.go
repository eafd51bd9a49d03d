//go:build e2e && linux

// Package faults breaks a machine in every way that docs/reliability.md lists. For each
// fault it logs in before and after a run of hallmark.service, records what the run logs,
// ends the fault, and checks which run heals the machine. The document's table holds the
// results.
//
// The test does not wait for timers. It ends the pause in setback.json, and starts the unit
// as the timer does. Runs that would keep asking for two minutes ask for seconds.
package faults

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/e2e/machine"
)

var update = flag.Bool("update", false, "rewrite the tables in docs/reliability.md")

// shared is the lab, an image, and the machine for most faults. TestMain fills it.
var shared struct {
	lab     *lab.Lab
	image   lab.Image
	machine *instance
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(machine.Tests("faults", setUp, m.Run))
}

func setUp(ctx context.Context, f *machine.Fleet) error {
	dir, err := os.MkdirTemp("", "faults-")
	if err != nil {
		return err
	}
	shared.lab, err = lab.New(ctx, f, lab.Built("../.."), dir)
	if err != nil {
		return err
	}
	if shared.image, _, err = shared.lab.BakeQuietly(ctx, lab.Debian12()); err != nil {
		return err
	}
	shared.machine, err = boot(ctx, lab.Template{Name: "broken"})
	if err != nil {
		return err
	}
	if _, err := shared.machine.WaitEnrolled(ctx); err != nil {
		return shared.lab.WithLogs(ctx, shared.machine.Instance, err)
	}
	return nil
}

// askFile limits how long hallmark.service asks.
const askFile = "/run/hallmark-ask"

// dropIn lets a test limit how long a run asks. The rest of the unit is unchanged.
const dropIn = `[Service]
Environment=ASK=2m
EnvironmentFile=-` + askFile + `
ExecStart=
ExecStart=/usr/local/bin/hallmark renew --timeout ${ASK}
`

// seldom keeps the hourly timer, which would interfere, from running during a test. It stays
// enabled and active, as on every machine.
const seldom = `[Timer]
OnCalendar=
OnCalendar=*-01-01
RandomizedDelaySec=0
Persistent=no
`

// boot launches a machine whose hourly timer does not run.
func boot(ctx context.Context, template lab.Template) (*instance, error) {
	template.Image = shared.image
	template.Prepare = func(_ context.Context, root string) error {
		for unit, content := range map[string]string{"hallmark.service": dropIn, "hallmark-renew.timer": seldom} {
			dir := filepath.Join(root, "etc/systemd/system", unit+".d")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, "test.conf"), []byte(content), 0o644); err != nil {
				return err
			}
		}
		return nil
	}
	i, err := shared.lab.Launch(ctx, template)
	return &instance{i}, err
}

// launch boots a machine, and powers it off after the test.
func launch(t *testing.T, template lab.Template) *instance {
	t.Helper()
	m, err := boot(t.Context(), template)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.PowerOff(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return m
}
